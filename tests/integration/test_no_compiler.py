"""A worker on a machine without a C++ compiler serves all the same, on plain PyTorch."""

import pytest

from protos.registry.v1 import registry_pb2 as registry
from tests.integration.stack import Stack

pytestmark = pytest.mark.processes


async def test_a_worker_without_a_compiler_serves_and_one_line_says_why(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no program is found there
    with Stack(tmp_path, model=tiny.model, adapter_roots=[tiny.adapters], kv_cache_bytes=1 << 24) as stack:
        async with stack.client() as client:
            request = registry.RegisterAdapterRequest(tenant="acme", name="a0", source=str(tiny.source(0)))
            await client.registry.RegisterAdapter(request, metadata=client.metadata)
            answer = await client.generate("acme/a0", [5, 6, 7], max_tokens=8)
        (worker,) = stack.workers
        lines = [line for line in worker.log.splitlines() if "cpu_kernels" in line]
    assert answer.token_ids == tiny.oracle.greedy([5, 6, 7], tiny.source(0), 8)
    (line,) = lines
    assert "path=torch" in line
    assert "no C++ compiler (g++) was found" in line
