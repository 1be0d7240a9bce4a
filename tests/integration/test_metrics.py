"""The metrics of real processes, scraped while they serve."""

import re
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protos.registry.v1 import registry_pb2
from tests.integration.stack import Process

pytestmark = pytest.mark.processes


def scrape(process: Process) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample of a process, by name."""
    address = re.search(r"metrics_address=(\S+)", process.log)[1]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for sample in (sample for family in families for sample in family.samples):
        samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def value(samples, name: str, **labels: str) -> float:
    return sum(number for found, number in samples[name] if labels.items() <= found.items())


async def test_both_planes_show_what_an_adapters_requests_did(stack, tiny) -> None:
    async with stack.client() as client:
        for number in range(3):  # two slots: one has to leave
            name = f"a{number}"
            request = registry_pb2.RegisterAdapterRequest(
                tenant="acme", name=name, source=str(tiny.source(number))
            )
            await client.registry.RegisterAdapter(request, metadata=client.metadata)
            answer = await client.generate(f"acme/{name}", [1, 2, 3, 4, 5], max_tokens=6)
            assert len(answer.token_ids) == 6
        await client.generate("acme/a2", [1, 2, 3, 4, 5], max_tokens=6)
        await client.worker_until(lambda worker: worker.status.running_requests == 0)
        call = client.stream("acme/a2", [1, 2, 3], max_tokens=200)
        while (await call.read()).WhichOneof("event") != "delta":
            continue
        running = scrape(stack.workers[0])
        call.cancel()
    worker, plane = scrape(stack.workers[0]), scrape(stack.control_planes[0])

    # The load of adapters, by tier.
    loads = {
        tier: value(worker, "loraplane_adapter_load_seconds_count", tier=tier) for tier in ("source", "cpu")
    }
    assert loads["source"] == 3
    assert loads["cpu"] >= 3
    assert value(worker, "loraplane_adapter_load_seconds_sum", tier="source") > 0
    assert value(worker, "loraplane_adapter_evictions_total", tier="slot") >= 1
    assert value(worker, "loraplane_adapter_lookups_total", tier="slot") >= 1
    # Who is resident, with how many bytes.
    assert value(worker, "loraplane_adapters", tier="slot") == 2
    resident = {labels["adapter"] for labels, _ in worker["loraplane_adapter_leases"]}
    assert "a2" in resident
    assert value(worker, "loraplane_adapter_bytes", adapter="a2", tier="slot") > 0
    assert value(worker, "loraplane_adapter_bytes", adapter="a2", tier="cpu") > 0
    assert 0 <= value(worker, "loraplane_rank_pool_fragmentation_ratio") < 1
    # How requests went.
    assert value(worker, "loraplane_time_to_first_token_seconds_count") >= 4
    assert value(worker, "loraplane_queue_seconds_count") >= 4
    assert value(worker, "loraplane_inter_token_seconds_count") >= 4 * 5
    assert value(worker, "loraplane_completion_tokens_total") >= 4 * 6
    assert value(worker, "loraplane_requests_total", outcome="finished") == 4
    # What routers read.
    [(info, _)] = running["vllm:lora_requests_info"]
    assert info == {"max_lora": "2", "waiting_lora_adapters": "", "running_lora_adapters": "acme/a2"}
    assert value(running, "vllm:num_requests_running") == 1

    # The control plane's side of the same.
    assert value(plane, "loraplane_settled_tokens_total", tenant="acme", kind="completion") >= 4 * 6
    assert (
        value(
            plane,
            "loraplane_call_seconds_count",
            method="/loraplane.registry.v1.AdapterRegistry/RegisterAdapter",
            code="OK",
        )
        == 3
    )
    assert value(plane, "loraplane_workers", state="ready") == 1
    assert value(plane, "loraplane_adapter_holders", adapter="a2") == 1
    assert value(plane, "loraplane_leader") == 1
