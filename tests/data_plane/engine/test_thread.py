import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from data_plane.adapters.types import PackedAdapter
from data_plane.engine.assemble import load_threads
from data_plane.engine.events import Event, Evict, Failed, Finished, GenerationRequest, Load
from data_plane.engine.thread import EngineThread
from data_plane.errors import DeadlineExceeded, Draining, InvalidRequest, RequestCancelled, WorkerError
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import GREEDY, PAGE_BYTES, Bench, oracle, source

SUPPORT, LEGAL = source("support"), source("legal")
WAIT_S = 10


class Listener:
    """The events of one request, and a future of its last."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last: Future[Event] = Future()
        self.talking = threading.Event()

    def put(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        if len(self.events) > 1:
            self.talking.set()
        if isinstance(self.events[-1], Finished | Failed):
            self.last.set_result(self.events[-1])

    def error(self) -> Exception:
        last = self.last.result(WAIT_S)
        assert isinstance(last, Failed)
        return last.error

    def tokens(self) -> list[int]:
        assert isinstance(self.last.result(WAIT_S), Finished)
        return [token for event in self.events for token in getattr(event, "token_ids", ())]


class Harness:
    def __init__(self, on_death=lambda: None) -> None:
        self.bench = Bench(queues=load_threads(1), clock=time.monotonic, num_blocks=2000, max_model_len=4000)
        self.deliveries: list[list[tuple[Listener, Sequence[Event]]]] = []
        self.thread: EngineThread[Listener] = EngineThread(
            self.bench.engine, self._deliver, on_death=on_death
        )
        self.thread.start()

    def _deliver(self, deliveries: list[tuple[Listener, Sequence[Event]]]) -> None:
        self.deliveries.append(deliveries)
        for listener, events in deliveries:
            listener.put(events)

    def submit(self, name: str, adapter=None, max_tokens: int = 8, **options) -> Listener:
        listener = Listener()
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=max_tokens > 8)
        self.thread.submit(
            GenerationRequest(
                request_id=name, prompt_ids=(1, 2, 3), sampling=sampling, adapter=adapter, **options
            ),
            listener,
        )
        return listener


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.thread.stop()


def test_requests_submitted_from_other_threads_are_answered(harness):
    listeners = {
        name: harness.submit(name, adapter) for name, adapter in (("a", SUPPORT), ("b", LEGAL), ("c", None))
    }
    assert listeners["a"].tokens() == oracle(SUPPORT.revision.digest, (1, 2, 3), GREEDY)
    assert listeners["b"].tokens() == oracle(LEGAL.revision.digest, (1, 2, 3), GREEDY)
    assert listeners["c"].tokens() == oracle(None, (1, 2, 3), GREEDY)


def test_the_events_of_a_step_are_delivered_in_one_call(harness):
    listeners = [harness.submit(str(number), max_tokens=200) for number in range(4)]
    for listener in listeners:
        listener.tokens()
    assert max(len(deliveries) for deliveries in harness.deliveries) == 4


def test_a_sleeping_engine_wakes_when_a_load_ends(harness):
    begin, read = threading.Event(), harness.bench.reader.read

    def slow_read(adapter) -> PackedAdapter:
        begin.wait(WAIT_S)
        return read(adapter)

    harness.bench.reader.read = slow_read
    cold = harness.submit("cold", SUPPORT)
    assert harness.submit("warm").tokens() == oracle(None, (1, 2, 3), GREEDY), "the load stalled another"
    assert not cold.last.done()
    begin.set()
    assert cold.tokens() == oracle(SUPPORT.revision.digest, (1, 2, 3), GREEDY)


def test_a_sleeping_engine_wakes_at_a_deadline(harness):

    blocked = threading.Event()
    harness.bench.reader.read = lambda adapter: blocked.wait(WAIT_S)
    listener = harness.submit("a", SUPPORT, deadline_s=time.monotonic() + 0.05)
    assert isinstance(listener.error(), DeadlineExceeded)
    blocked.set()


def test_a_cancel_ends_a_stream_and_frees_what_it_held(harness):
    listener = harness.submit("a", SUPPORT, max_tokens=3000)
    assert listener.talking.wait(WAIT_S)
    harness.thread.cancel("a")
    assert isinstance(listener.error(), RequestCancelled)
    harness.submit("b").tokens()
    status = harness.thread.status()
    assert [held.leases for held in status.adapters] == [0]


def test_a_refusal_arrives_like_any_other_end(harness):
    listener = Listener()
    harness.thread.submit(GenerationRequest(request_id="a", prompt_ids=(), sampling=GREEDY), listener)
    assert isinstance(listener.error(), InvalidRequest)


def test_commands_answer_with_bytes_and_change_the_status(harness):
    reported: list[int] = []
    harness.thread.on_status(lambda: reported.append(len(harness.thread.status().adapters)))
    assert (
        harness.thread.command(Load(SUPPORT, into_slot=True)).result(WAIT_S).size_bytes == 1000 + PAGE_BYTES
    )
    assert (
        harness.thread.command(Evict(SUPPORT.revision.digest)).result(WAIT_S).size_bytes == 1000 + PAGE_BYTES
    )
    harness.submit("a").tokens()
    assert 1 in reported
    assert harness.thread.status().adapters == ()


def test_stopping_fails_what_is_left_and_refuses_what_comes():
    harness = Harness()
    running = harness.submit("a", max_tokens=3000)
    assert running.talking.wait(WAIT_S)
    harness.thread.stop()
    assert isinstance(running.error(), Draining)
    assert isinstance(harness.submit("b").error(), Draining)
    with pytest.raises(Draining):
        harness.thread.command(Load(SUPPORT)).result(WAIT_S)
    harness.bench.engine.check()


def test_a_bug_in_the_step_loop_ends_every_wait_and_is_told():
    died = threading.Event()
    harness = Harness(on_death=died.set)
    running = harness.submit("a", SUPPORT, max_tokens=3000)
    assert running.talking.wait(WAIT_S)
    evicted = harness.thread.command(Evict(SUPPORT.revision.digest))

    def bug() -> list[Event]:
        raise RuntimeError("a bug")

    harness.bench.engine.step = bug  # type: ignore[method-assign]
    assert died.wait(WAIT_S)
    assert "died" in str(running.error())
    with pytest.raises(WorkerError, match="died"):
        evicted.result(WAIT_S)
    assert isinstance(harness.submit("b").error(), Draining)
    with pytest.raises(Draining):
        harness.thread.snapshot().result(WAIT_S)
    harness.thread.stop()


def test_an_orderly_end_is_no_death():
    died = threading.Event()
    harness = Harness(on_death=died.set)
    blocked = harness.submit("a", max_tokens=3000)
    assert blocked.talking.wait(WAIT_S)
    harness.thread.stop()
    assert not died.is_set()


def test_a_snapshot_shows_what_was_answered_before(harness):
    harness.thread.command(Load(SUPPORT)).result(WAIT_S)
    (held,) = harness.thread.snapshot().result(WAIT_S).adapters
    assert held.revision == SUPPORT.revision
