"""The KV write as torch.compile and CUDA graphs see it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.gpu.kv_write import KvWriteRefused
from kernels.gpu.library import write_kv
from tests.kernels.gpu.stand_ins import plain_write_kv


def step() -> tuple[torch.Tensor, ...]:
    key, value = torch.randn(2, 3, 2, 16)
    return key, value, torch.zeros(4, 2, 2, 16), torch.zeros(4, 2, 2, 16), torch.tensor([6, 0, 3])


def test_torch_finds_the_schema_and_the_fake_implementation_true():
    torch.library.opcheck(write_kv, step(), test_utils=("test_schema", "test_faketensor"))


def test_what_the_launch_refuses_is_refused_while_a_graph_is_made():
    with FakeTensorMode(), pytest.raises(KvWriteRefused, match="is none of a cache"):
        write_kv(*(torch.empty(3, 2, 16) for _ in range(2)), *torch.empty(2, 4, 2, 3, 16), torch.empty(3))


def test_compiled_it_writes_the_caches_that_it_was_given():
    def layer(key: torch.Tensor, value: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        write_kv(key * 2, value, *rest)
        return rest[0] + 1

    key, value, *caches, rows = step()
    expected = [cache.clone() for cache in caches]
    with torch.inference_mode():
        found = torch.compile(layer, backend="aot_eager", fullgraph=True)(key, value, *caches, rows)
    plain_write_kv(key * 2, value, *expected, rows)
    assert torch.equal(torch.stack(caches), torch.stack(expected))
    assert torch.equal(found, expected[0] + 1)
