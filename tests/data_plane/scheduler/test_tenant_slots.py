"""A tenant that floods many adapters leaves another its slots."""

from data_plane.engine.events import Delta, Failed, Finished
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import Bench, source

SAMPLING = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def test_a_flood_of_adapters_costs_the_tenant_of_one_adapter_at_most_a_tenth_of_its_share():
    bench = Bench(num_blocks=1024, max_loras=4, max_cpu_loras=32, max_num_seqs=16, max_num_batched_tokens=64)
    wanted = {"flood": 120, "victim": 32}
    live, tokens, count = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0), 0
    for step in range(800):
        for tenant, most in wanted.items():
            while live[tenant] < most:
                name = f"its{count % 16}" if tenant == "flood" else "mine"
                prompt = (count % 256, count // 256, 7, 7, 7, 7)
                bench.add(f"{tenant} {count}", prompt, source(name, tenant=tenant), SAMPLING, tenant=tenant)
                live[tenant] += 1
                count += 1
        for event in bench.step():
            tenant = event.request_id.split()[0]
            live[tenant] -= isinstance(event, Finished | Failed)
            if step >= 100 and isinstance(event, Delta):
                tokens[tenant] += len(event.token_ids)
    assert tokens["victim"] >= 0.9 * sum(tokens.values()) / 2
