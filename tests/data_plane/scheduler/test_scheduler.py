"""The scheduler under any sequence of requests, cancels and evictions.

The engine around it is real, the tensor side simulated: a step over its budget, a mixed-up block or slot
and a lease too many each fail (see fakes.py).
"""

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_plane.engine.events import Evict, Finished, Started
from data_plane.errors import RequestCancelled, WorkerError
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import Bench, oracle, source

ADAPTERS = [None, source("a"), source("b"), source("c", tenant="other"), source("d", tenant="other")]


@dataclass(frozen=True)
class Add:
    """A request: prompts are prefixes of one text, so that blocks are shared."""

    num_prompt: int
    adapter: int
    max_tokens: int
    n: int
    priority: int


@dataclass(frozen=True)
class Cancel:
    index: int


@dataclass(frozen=True)
class Leave:
    adapter: int
    cancel_running: bool


adds = st.builds(
    Add, st.integers(1, 30), st.integers(0, 4), st.integers(1, 10), st.integers(1, 3), st.integers(-1, 1)
)
operations = st.lists(
    st.one_of(
        adds,
        adds,
        st.integers(1, 4),
        st.builds(Cancel, st.integers(0, 20)),
        st.builds(Leave, st.integers(1, 4), st.booleans()),
    ),
    max_size=40,
)


def sampling_of(add: Add) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=add.max_tokens, n=add.n)


EVICTED_BEFORE_ADMITTED = [
    *(Add(1, 1, 3, 1, 0), Add(1, 4, 3, 1, 0), 1, 2),
    *(Add(1, 0, 1, 1, 0), Add(1, 0, 1, 1, 0), Add(1, 0, 2, 3, 0), Add(1, 2, 1, 1, 0), Add(1, 3, 1, 1, 0), 4),
    *(Add(1, 0, 1, 1, 0), Leave(3, cancel_running=False)),
]


@settings(max_examples=60, deadline=None)
@given(operations, st.integers(24, 60), st.integers(1, 2))
@example(EVICTED_BEFORE_ADMITTED, 24, 2)
@example([Add(1, 0, 1, 1, 0), Cancel(0)], 24, 1)
def test_every_request_ends_with_its_own_answer_and_leaves_nothing_behind(operations, num_blocks, max_loras):
    bench = Bench(num_blocks=num_blocks, max_loras=max_loras, max_num_seqs=4)
    asked: list[Add] = []
    for operation in operations:
        match operation:
            case Add():
                name = str(len(asked))
                adapter = ADAPTERS[operation.adapter]
                prompt = tuple(range(operation.num_prompt))
                tenant = adapter.revision.tenant if adapter else "base"
                try:
                    bench.add(
                        name,
                        prompt,
                        adapter,
                        sampling_of(operation),
                        tenant=tenant,
                        priority=operation.priority,
                    )
                except WorkerError:
                    continue
                asked.append(operation)
            case Cancel(index):
                bench.engine.cancel(str(index))
            case Leave(adapter, cancel_running):
                bench.engine.command(Evict(ADAPTERS[adapter].revision.digest, cancel_running))
            case steps:
                for _ in range(steps):
                    bench.step()
                    bench.engine.check()
    bench.run()
    bench.step()  # hands out what a cancel after the last step said
    bench.engine.check()
    for number, add in enumerate(asked):
        events = bench.events[str(number)]
        if not isinstance(events[-1], Finished):
            assert isinstance(bench.error(str(number)), RequestCancelled)
            continue
        adapter = ADAPTERS[add.adapter]
        digest = adapter.revision.digest if adapter else None
        for index in range(add.n):
            expected = oracle(digest, tuple(range(add.num_prompt)), sampling_of(add))
            limit = 64 - add.num_prompt
            assert bench.tokens(str(number), index) == expected[:limit]
    status = bench.engine.status()
    assert (status.running_requests, status.waiting_requests) == (0, 0)
    assert status.free_blocks == num_blocks
    assert all(held.leases == 0 for held in status.adapters)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=2, max_size=12))
def test_of_equal_requests_for_one_adapter_the_earlier_starts_no_later(requests):
    bench = Bench(num_blocks=40, max_num_seqs=3)
    for number, (num_prompt, adapter) in enumerate(requests):
        bench.add(str(number), tuple(range(num_prompt)), ADAPTERS[adapter], tenant="one")
    started: dict[int, int] = {}
    for step in range(2000):
        if not bench.engine.has_work:
            break
        for event in bench.step():
            if isinstance(event, Started):
                started[int(event.request_id)] = step
    assert len(started) == len(requests), "every request starts"
    for adapter in range(5):
        order = [started[i] for i, (_, wanted) in enumerate(requests) if wanted == adapter]
        assert order == sorted(order)
