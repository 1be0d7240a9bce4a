from structlog.testing import capture_logs

from data_plane.engine.cpu_kernels import choose_kernels, load_or_build
from kernels.cpu.attention import TorchAttention
from kernels.cpu.native_attention import NativeAttention
from kernels.cpu.native_lora import NativeLoraOps
from kernels.cpu.toolchain import BuildFailed
from kernels.lora.torch_ops import TorchLoraOps
from tests.kernels.cpu.implementations import kernels_at


def no_compiler():
    raise BuildFailed("no C++ compiler (g++) was found")


def test_without_a_compiler_pytorch_computes_and_one_line_says_why():
    with capture_logs() as lines:
        kernels = choose_kernels("auto", no_compiler)
    assert isinstance(kernels.lora, TorchLoraOps)
    assert isinstance(kernels.attention, TorchAttention)
    assert kernels.native is None
    assert [(line["path"], line["reason"]) for line in lines] == [
        ("torch", "no C++ compiler (g++) was found")
    ]


def test_torch_is_not_even_tried_when_it_is_forced():
    with capture_logs() as lines:
        kernels = choose_kernels("torch", lambda: kernels_at("plain"))
    assert kernels.native is None
    assert [line["reason"] for line in lines] == ["cpu_kernels is torch"]


def test_cpp_is_taken_where_it_can_be_built_and_its_level_is_said():
    plain = kernels_at("plain")
    with capture_logs() as lines:
        kernels = choose_kernels("auto", lambda: plain)
    assert isinstance(kernels.lora, NativeLoraOps)
    assert isinstance(kernels.attention, NativeAttention)
    assert [(line["path"], line["level"]) for line in lines] == [("c++", "plain")]


def test_the_cache_of_the_user_has_the_machines_best_level():
    kernels_at("plain")
    assert choose_kernels("auto", load_or_build).native is not None
