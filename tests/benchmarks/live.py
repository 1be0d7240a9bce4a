"""An engine on its own thread, as a worker runs it, and what each of its streams saw and when.

Every time is of `time.monotonic`, taken on the engine's thread as the events of a step come out.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Self

from data_plane.adapters.revision import AdapterSource
from data_plane.adapters.types import AdapterReader
from data_plane.config import EngineConfig
from data_plane.engine import events
from data_plane.engine.assemble import build_engine
from data_plane.engine.runtime import build_runtime
from data_plane.engine.thread import EngineThread
from data_plane.scheduler.sampling import SamplingParams
from tests.oracle import MODEL_DIR

TIMEOUT_S = 120.0


class LiveStream:
    """One request: when it was sent, and when its tokens came."""

    def __init__(self, on_end: Callable[["LiveStream"], None] | None = None) -> None:
        self.request_id = ""
        self.sent_s = time.monotonic()
        self.token_s: list[float] = []
        self.failure: Exception | None = None
        self.started = Event()
        self.ended = Event()
        self._on_end = on_end

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.token_s[0] - self.sent_s

    def push(self, sent: Sequence[events.Event], now_s: float) -> None:
        """Take what a step said."""
        for event in sent:
            match event:
                case events.Delta():
                    self.token_s += [now_s] * len(event.token_ids)
                    self.started.set()
                case events.Failed(error=error):
                    self.failure = error
                    self._end()
                case events.Finished():
                    self._end()

    def result(self) -> "LiveStream":
        """Wait for the end; raise what went wrong."""
        self.wait()
        if self.failure is not None:
            raise self.failure
        return self

    def wait(self) -> None:
        """Wait for the end, whatever it is."""
        if not self.ended.wait(TIMEOUT_S):
            raise TimeoutError(f"a stream has not ended in {TIMEOUT_S:g} s")

    def _end(self) -> None:
        self.started.set()
        self.ended.set()
        if self._on_end is not None:
            self._on_end(self)


class LiveEngine:
    """The engine of the real model on a thread; `wrap` may put another reader before the real one."""

    def __init__(
        self, wrap: Callable[[AdapterReader], AdapterReader] = lambda reader: reader, **settings: object
    ) -> None:
        config = EngineConfig(model=MODEL_DIR, **settings)
        # One thread loads the model and steps it; data_plane/openmp.py says why.
        executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        runtime = executor.submit(build_runtime, config).result()
        self.vocab_size = max(runtime.tokenizer.get_vocab().values()) + 1
        tensors = dataclasses.replace(runtime, reader=wrap(runtime.reader))
        self._thread: EngineThread[LiveStream] = EngineThread(
            build_engine(tensors, config), _deliver, executor=executor
        )
        self._count = itertools.count()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.stop()

    def send(
        self,
        prompt_ids: tuple[int, ...],
        adapter: AdapterSource | None,
        num_tokens: int,
        *,
        tenant: str = "",
        on_end: Callable[[LiveStream], None] | None = None,
    ) -> LiveStream:
        """Ask for so many greedy tokens, whatever they are. `on_end` is called on the engine's thread."""
        stream = LiveStream(on_end)
        request = events.GenerationRequest(
            request_id=str(next(self._count)),
            prompt_ids=prompt_ids,
            sampling=SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True),
            adapter=adapter,
            tenant=tenant,
        )
        stream.request_id = request.request_id
        self._thread.submit(request, stream)
        return stream

    def cancel(self, stream: LiveStream) -> None:
        """End a stream before the next step, and wait until it has ended."""
        self._thread.cancel(stream.request_id)
        stream.wait()

    def command(self, command: events.Command) -> "Future[events.CommandDone]":
        """Hand a command over."""
        return self._thread.command(command)

    def status(self) -> events.EngineStatus:
        """The latest snapshot."""
        return self._thread.status()


def _deliver(batch: list[tuple[LiveStream, Sequence[events.Event]]]) -> None:
    now_s = time.monotonic()
    for stream, sent in batch:
        stream.push(sent, now_s)
