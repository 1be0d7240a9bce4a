from pathlib import Path

import pytest
from structlog.testing import capture_logs

from data_plane.config import EngineConfig
from data_plane.engine.cpu_platform import CpuPlatform
from data_plane.engine.platform import choose_platform
from data_plane.errors import InvalidRequest


def config(device: str) -> EngineConfig:
    return EngineConfig(model=Path("base"), device=device, cpu_kernels="torch")


@pytest.mark.parametrize(
    ("device", "has_cuda", "reason"),
    [("auto", False, "torch sees no GPU"), ("cpu", True, "device is cpu"), ("cpu", False, "device is cpu")],
)
def test_the_cpu_is_chosen_where_it_is_wanted_or_all_there_is(device: str, has_cuda: bool, reason: str):
    with capture_logs() as lines:
        platform = choose_platform(config(device), lambda: has_cuda)
    assert isinstance(platform, CpuPlatform)
    assert [line["reason"] for line in lines if line["event"] == "device"] == [reason]


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InvalidRequest, match="device: 'cuda' needs a GPU"):
        choose_platform(config("cuda"), lambda: False)
