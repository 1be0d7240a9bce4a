import pytest

from data_plane.engine.assemble import EnginePolicy
from data_plane.engine.events import Delta
from data_plane.scheduler.fairness import VirtualCounters
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import Bench, source

SAMPLING = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def test_being_away_earns_no_credit():
    counters = VirtualCounters()
    counters.join("busy")
    counters.charge_output("busy", 100)
    counters.join("late")
    assert counters.served("late") == counters.served("busy") == 200


def test_who_comes_back_keeps_what_it_owes():
    counters = VirtualCounters()
    for tenant in ("a", "b"):
        counters.join(tenant)
    counters.charge_output("a", 100)
    counters.leave("a")
    counters.join("a")
    assert counters.served("a") > counters.served("b")


def test_weight_divides_the_cost():
    counters = VirtualCounters(lambda tenant: 4.0 if tenant == "gold" else 1.0)
    for tenant in ("gold", "tin"):
        counters.join(tenant)
    for tenant in ("gold", "tin"):
        counters.charge_prompt(tenant, 8)
    assert (counters.served("gold"), counters.served("tin")) == (2.0, 8.0)


def served(bench: Bench, steps: int) -> dict[str, int]:
    tokens = {"flood": 0, "victim": 0}
    for _ in range(steps):
        for event in bench.step():
            if isinstance(event, Delta):
                tokens[event.request_id.split("-")[0]] += 1
    return tokens


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_flooding_tenant_leaves_the_other_its_share(weight, adapters):
    policy = EnginePolicy(tenant_weight=lambda tenant: weight if tenant == "victim" else 1.0)
    bench = Bench(num_blocks=400, policy=policy)
    for number in range(200):
        bench.add(f"flood-{number}", (1, 2), source("f") if adapters else None, SAMPLING, tenant="flood")
    for number in range(100):
        bench.add(f"victim-{number}", (1, 2), source("v") if adapters else None, SAMPLING, tenant="victim")
    tokens = served(bench, 120)
    share = tokens["victim"] / sum(tokens.values())
    assert share == pytest.approx(weight / (weight + 1), rel=0.1)


def test_priority_orders_the_requests_of_one_tenant_and_not_of_another():
    bench = Bench(max_num_seqs=1)
    bench.add("low", (1,), sampling=SAMPLING, tenant="a", priority=0)
    bench.add("high", (1,), sampling=SAMPLING, tenant="a", priority=5)
    bench.run()
    assert list(bench.events) == ["high", "low"]
