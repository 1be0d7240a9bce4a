"""Desired state kept change by change: it equals the full plan, at a cost that does not grow."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from control_plane.placement.commands import Command, Evict
from control_plane.placement.desired import Desired
from control_plane.placement.holders import MAX_ADAPTERS, Pair
from control_plane.placement.plan import holders, plan
from control_plane.registry.types import Adapter, AdapterKey, PinTier, RevisionState, TrafficWeight
from control_plane.workers.holdings import HeldAdapter
from control_plane.workers.types import StatusChange, Worker, WorkerState
from tests.control_plane.placement.examples import MB, adapter, held, worker

NAMES = [f"bot-{number}" for number in range(6)]
WORKER_IDS = ["a", "b", "c", "d"]


def observe(desired: Desired, seen: Worker) -> set[Pair]:
    return {pair for chunk in desired.observe(seen) for pair in chunk}


def filled(num_adapters: int, num_workers: int, num_holders: int = 2) -> Desired:
    """A fleet in which everybody holds what it should."""
    desired = Desired(num_holders)
    fleet = {
        f"w{number}": worker(f"w{number}", capacity={"cpu_bytes": 1 << 40}) for number in range(num_workers)
    }
    for one in fleet.values():
        observe(desired, one)
    holds: dict[str, list[HeldAdapter]] = {worker_id: [] for worker_id in fleet}
    for number in range(num_adapters):
        desired.put(adapter(f"bot-{number}", resource_version=number + 1))
        for worker_id in desired.holders(AdapterKey("acme", f"bot-{number}")):
            holds[worker_id].append(held(f"bot-{number}"))
    for worker_id, one in fleet.items():
        observe(desired, worker(worker_id, *holds[worker_id], capacity={"cpu_bytes": one.capacity.cpu_bytes}))
    assert not any(desired.commands(*pair) for pair in desired.pairs())
    return desired


@st.composite
def adapters(draw: Any) -> Adapter:
    current = draw(st.integers(1, 3))
    stable = draw(st.integers(1, current))
    split = (TrafficWeight(current, 9), TrafficWeight(stable, draw(st.integers(0, 1))))
    made = adapter(
        draw(st.sampled_from(NAMES)),
        current=current,
        rank=draw(st.sampled_from([8, 16])),
        size_bytes=draw(st.sampled_from([MB, 3 * MB])),
        base_model=draw(st.sampled_from(["", "llama", "qwen"])),
        pin=draw(st.sampled_from(PinTier)),
        traffic=draw(st.sampled_from([(), split])),
        deleted_s=draw(st.sampled_from([0.0, 0.0, 0.0, 1.0])),
    )
    failed = draw(st.integers(0, 9)) == 0
    states = [replace(one, state=RevisionState.FAILED) if failed else one for one in made.revisions]
    return replace(made, revisions=tuple(states))


@st.composite
def workers(draw: Any) -> Worker:
    copies = st.builds(held, st.sampled_from(NAMES), st.integers(1, 3), pinned=st.booleans())
    holds = draw(st.lists(copies, max_size=5, unique_by=lambda one: one.digest))
    return worker(
        draw(st.sampled_from(WORKER_IDS)),
        *holds,
        base_model=draw(st.sampled_from(["llama", "llama", "qwen"])),
        state=draw(st.sampled_from([WorkerState.READY, WorkerState.READY, *WorkerState])),
        session=draw(st.sampled_from(["s1", "s2"])),
        capacity={
            "max_lora_rank": draw(st.sampled_from([8, 64])),
            "cpu_bytes": draw(st.sampled_from([2, 6, 100])) * MB,
            "max_cpu_loras": draw(st.sampled_from([0, 3])),
        },
    )


class Changes(RuleBasedStateMachine):
    """Any sequence of changes, some of which come twice or late."""

    @initialize(num_holders=st.integers(0, 3))
    def begin(self, num_holders: int) -> None:
        self.num_holders = num_holders
        self.desired = Desired(num_holders)
        self.adapters: dict[AdapterKey, Adapter] = {}
        self.workers: dict[str, Worker] = {}
        self.version = 0

    @rule(changed=adapters())
    def put(self, changed: Adapter) -> None:
        self.version += 1
        changed = replace(changed, resource_version=self.version, generation=self.version)
        self.adapters[changed.key] = changed
        self._expect(lambda: set(self.desired.put(changed)))

    @rule(stale=adapters())
    def put_what_is_older(self, stale: Adapter) -> None:
        # What is gone or going is read anew before an old state of it is taken: the sweep's business.
        if stale.key in self.adapters and not self.adapters[stale.key].deleting:
            self._expect(lambda: set(self.desired.put(replace(stale, resource_version=0))))

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.version += 1
        key, version = AdapterKey("acme", name), self.version
        self.adapters.pop(key, None)
        self._expect(lambda: set(self.desired.remove(key, version)))

    @rule(name=st.sampled_from(NAMES))
    def delete_again_what_was_registered_since(self, name: str) -> None:
        self._expect(lambda: set(self.desired.remove(AdapterKey("acme", name), 0)))

    @rule(
        worker_id=st.sampled_from(WORKER_IDS),
        copy=st.builds(held, st.sampled_from(NAMES), pinned=st.booleans()),
    )
    def report_a_change(self, worker_id: str, copy: HeldAdapter) -> None:
        before = self.workers.get(worker_id)
        if before is not None:
            gone = () if before.status.held.get(copy.digest) != copy else (copy.digest,)
            change = StatusChange(worker(worker_id, *([] if gone else [copy])).status, gone)
            seen = self.workers[worker_id] = replace(before, status=before.status.after(change))
            self._expect(lambda: {pair for chunk in self.desired.observe(seen, {copy.key}) for pair in chunk})

    @rule(seen=workers())
    def report(self, seen: Worker) -> None:
        self.workers[seen.worker_id] = seen
        self._expect(lambda: observe(self.desired, seen))

    @rule(data=st.data(), changed=adapters())
    def put_while_a_worker_comes_or_goes(self, data: Any, changed: Adapter) -> None:
        seen = data.draw(workers())
        self.version += 1
        changed = replace(changed, resource_version=self.version, generation=self.version)
        self.adapters[changed.key], self.workers[seen.worker_id] = changed, seen

        def interleaved() -> set[Pair]:
            touched: set[Pair] = set()
            for at, chunk in enumerate(self.desired.observe(seen)):
                touched |= set(chunk) | (set(self.desired.put(changed)) if at == 0 else set())
            return touched | set(self.desired.put(changed))

        self._expect(interleaved)

    def _expect(self, change: Callable[[], set[Pair]]) -> None:
        """Every pair that has other commands now is among those the change answers with."""
        before = self._by_pair()
        touched = change()
        # One that has none any more need not be: commands are derived when they are sent.
        assert {pair for pair, now in self._by_pair().items() if now != before.get(pair)} <= touched

    def _by_pair(self) -> dict[Pair, list[Command]]:
        found = {pair: _without_versions(self.desired.commands(*pair)) for pair in self.desired.pairs()}
        return {pair: commands for pair, commands in found.items() if commands}

    @invariant()
    def it_is_what_the_full_plan_derives(self) -> None:
        fleet = list(self.workers.values())
        expected = plan(self.adapters, fleet, version=self.version, num_holders=self.num_holders)
        found = [command for pair in self.desired.pairs() for command in self.desired.commands(*pair)]
        assert sorted(_without_versions(found), key=repr) == sorted(_without_versions(expected), key=repr)
        for key, one in self.adapters.items():
            assert self.desired.holders(key) == list(holders(one, fleet, num_holders=self.num_holders))


def _without_versions(commands: list[Command]) -> list[Command]:
    # An eviction's generation only says that it is newer than the deletion.
    return [replace(one, generation=0) if isinstance(one.action, Evict) else one for one in commands]


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)


def changes() -> dict[str, Callable[[Desired], object]]:
    """One change of each kind that is about an adapter."""
    bot = AdapterKey("acme", "bot-7")
    return {
        "register": lambda desired: desired.put(adapter("new", resource_version=10**6)),
        "publish": lambda desired: desired.put(adapter("bot-7", current=2, resource_version=10**6)),
        "pin": lambda desired: desired.put(adapter("bot-7", pin=PinTier.CPU, resource_version=10**6)),
        "delete": lambda desired: desired.remove(bot, 10**6),
        "report": lambda desired: observe(desired, worker(desired.holders(bot)[0], session="again")),
    }


@pytest.mark.parametrize("kind", ["register", "publish", "pin", "delete"])
def test_a_change_of_an_adapter_costs_the_same_with_four_times_the_adapters(kind: str) -> None:
    def cost(num_adapters: int) -> tuple[int, int]:
        desired = filled(num_adapters, num_workers=10)
        examined, scores = desired.num_examined, desired.num_scores
        changes()[kind](desired)
        return desired.num_examined - examined, desired.num_scores - scores

    assert cost(250) == cost(1000)
    assert cost(250)[0] <= 2  # its holders


def test_a_report_examines_only_what_differs_in_it() -> None:
    desired = filled(400, num_workers=4)
    key = AdapterKey("acme", "bot-7")
    holder = desired.holders(key)[0]
    mine = [
        held(f"bot-{number}")
        for number in range(400)
        if holder in desired.holders(AdapterKey("acme", f"bot-{number}"))
    ]
    seen = worker(holder, *mine, held("new"), capacity={"cpu_bytes": 1 << 40})
    before = desired.num_examined
    assert observe(desired, seen) == {(holder, AdapterKey("acme", "new"))}
    assert desired.num_examined == before + 1
    assert observe(desired, replace(seen, status=replace(seen.status, running_requests=3))) == set()
    assert desired.num_examined == before + 1


def test_a_worker_that_leaves_or_joins_examines_its_own_share_of_the_adapters() -> None:
    desired = filled(1000, num_workers=10)
    share = 2 * 1000 / 10
    before = desired.num_examined
    observe(desired, worker("w3", state=WorkerState.LOST))
    left = desired.num_examined - before
    assert 0.7 * 2 * share < left < 1.3 * 2 * share  # the one that lost each adapter and the one that got it
    before, scores = desired.num_examined, desired.num_scores
    observe(desired, worker("w3", capacity={"cpu_bytes": 1 << 40}))
    assert desired.num_scores - scores == 1000  # one comparison for each adapter
    assert desired.num_examined - before < 1.3 * 3 * share


def test_a_long_change_pauses_often() -> None:
    desired = Desired(1)
    for number in range(3000):
        desired.put(adapter(f"bot-{number}", resource_version=number))
    for number in range(8):
        observe(desired, worker(f"w{number}"))
    chunks = [len(chunk) for chunk in desired.observe(worker("w0", state=WorkerState.LOST))]
    assert sum(chunks) >= 500
    assert max(chunks) <= 3 * MAX_ADAPTERS
    chunks = [len(chunk) for chunk in desired.observe(worker("w0"))]
    assert sum(chunks) >= 500
    assert max(chunks) <= 3 * MAX_ADAPTERS


def test_a_worker_that_comes_back_is_offered_its_adapters_and_nobody_evicts_any() -> None:
    desired = filled(60, num_workers=3, num_holders=1)
    gone = worker("w1", state=WorkerState.LOST)
    moved = observe(desired, gone)
    actions = [command.action for pair in moved for command in desired.commands(*pair)]
    assert {type(action).__name__ for action in actions} == {"Load"}
    returned = observe(desired, worker("w1", capacity={"cpu_bytes": 1 << 40}))
    told = {
        (command.worker_id, type(command.action).__name__)
        for pair in returned
        for command in desired.commands(*pair)
    }
    assert told == {("w1", "Load")}
