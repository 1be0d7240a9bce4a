"""A worker's engine with every tier driven over its bound, in a process of its own.

    python -m tests.data_plane.engine.pressure SECONDS CPU_KERNELS DIRECTORY

Own, because memory is what is looked at: a process that runs other tests has its own ups and downs, and
imported torch before the settings that a worker sets for it. Prints what happened as one line of JSON.
"""

import data_plane  # isort: skip  # noqa: F401 - sets what torch reads once, as in a worker

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Semaphore

from safetensors.torch import load_file, save_file

from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.config import EngineConfig
from data_plane.engine.assemble import build_engine
from data_plane.engine.events import (
    CommandDone,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Load,
    Pin,
    Started,
)
from data_plane.engine.runtime import build_runtime
from data_plane.engine.thread import EngineThread
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.world import World, make_world, source_of, tiny_config

NUM_ADAPTERS = 24
MAX_WAITING = 8
OUTSTANDING = 16  # above what may wait and run together
NUM_BLOCKS, BLOCK_BYTES = 75, 2048  # of four tokens
LONGEST_PROMPT = 200
NUM_SAMPLES = 40
TIMEOUT_S = 30.0
WEIGHTS = "adapter_model.safetensors"


@dataclass
class Report:
    """What happened; bytes are resident memory of the process."""

    start_bytes: int = 0  # the model is loaded, nothing was computed
    warm_bytes: int = 0  # every number of tokens up to LONGEST_PROMPT was computed
    samples_bytes: list[int] = field(default_factory=list)  # from then on, evenly in time
    ends: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    refused_commands: Counter[str] = field(default_factory=Counter)
    disk_bytes: int = 0
    disk_bytes_used: int = 0
    disk_bytes_found: int = 0


class Client:
    """Counts how requests end; a place is free again when one does."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._places = Semaphore(OUTSTANDING)

    def take_place(self) -> None:
        assert self._places.acquire(timeout=TIMEOUT_S), "the engine stands still"

    def take_every_place(self) -> None:
        """Until every request has ended."""
        for _ in range(OUTSTANDING):
            self.take_place()
        self._places.release(OUTSTANDING)

    def deliver(self, deliveries: list[tuple[object, Sequence[Event]]]) -> None:
        for _, events in deliveries:
            for event in events:
                match event:
                    case Started(tier=tier):
                        self._report.tiers[tier.value if tier else "base"] += 1
                    case Finished():
                        self._end("finished")
                    case Failed(error=error):
                        self._end(type(error).__name__)

    def note(self, command: "Future[CommandDone]") -> None:
        if (error := command.exception()) is not None:
            self._report.refused_commands[type(error).__name__] += 1

    def _end(self, how: str) -> None:
        self._report.ends[how] += 1
        self._places.release()


class Pressure:
    """Requests and commands for more of everything than there is room."""

    def __init__(self, world: World, directory: Path, cpu_kernels: str) -> None:
        self.sources = make_adapters(world, directory / "source")
        self.config = _config(world, directory, cpu_kernels)
        self.runtime = build_runtime(self.config)
        self.engine = build_engine(self.runtime, self.config)
        self.report = Report(disk_bytes=self.config.disk_cache_bytes)
        self.client = Client(self.report)
        self.thread: EngineThread[object] = EngineThread(self.engine, self.client.deliver)
        self._rng = random.Random(0)
        self._number = 0

    def run(self, seconds: float) -> Report:
        self.report.start_bytes = rss_bytes()
        self.thread.start()
        try:
            self._warm_up()
            self.report.warm_bytes = rss_bytes()
            self._press(seconds)
            self.report.disk_bytes_used = self.thread.snapshot().result(TIMEOUT_S).disk_bytes_used
        finally:
            self.thread.stop()
        self.engine.check()
        kept = self.config.disk_cache_dir.rglob("adapter_*")
        self.report.disk_bytes_found = sum(file.stat().st_size for file in kept)
        return self.report

    def _warm_up(self) -> None:
        """Compute every number of tokens once, and every adapter."""
        for length in range(1, LONGEST_PROMPT):
            self.client.take_place()
            self._submit(length, 1, self.sources[length % NUM_ADAPTERS])
            self.client.take_every_place()
        self.report.ends.clear()
        self.report.tiers.clear()

    def _press(self, seconds: float) -> None:
        begun_s = time.monotonic()
        while (elapsed_s := time.monotonic() - begun_s) < seconds:
            if elapsed_s >= len(self.report.samples_bytes) * seconds / NUM_SAMPLES:
                self.report.samples_bytes.append(rss_bytes())
            self.client.take_place()
            source = self.sources[int(NUM_ADAPTERS * self._rng.random() ** 2)]
            adapter = source if self._rng.random() < 0.9 else None
            self._submit(self._rng.randrange(1, LONGEST_PROMPT), self._rng.randrange(1, 24), adapter)
            if self._number % 10 == 0:
                self._command(source)
            self._look()
        self.client.take_every_place()

    def _submit(self, length: int, max_tokens: int, adapter: AdapterSource | None) -> None:
        self._number += 1
        request = GenerationRequest(
            request_id=str(self._number),
            prompt_ids=tuple(self._rng.randrange(256) for _ in range(length)),
            sampling=SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True),
            adapter=adapter,
            tenant=adapter.revision.name if adapter else "",
        )
        self.thread.submit(request, self.client)

    def _command(self, source: AdapterSource) -> None:
        pin = Pin(self._rng.choice(self.sources).revision.digest, self._rng.choice([Tier.CPU, None, None]))
        for command in (Load(source, into_slot=True), pin):
            self.thread.command(command).add_done_callback(self.client.note)

    def _look(self) -> None:
        status = self.thread.status()
        # Beyond those that were let in to wait: the running ones, when their blocks were taken.
        assert status.waiting_requests <= MAX_WAITING + self.config.max_num_seqs
        assert status.cpu_bytes_used <= self.config.cpu_cache_bytes
        assert status.slot_bytes_used <= self.runtime.bytes.rank_pool


def make_adapters(world: World, directory: Path) -> list[AdapterSource]:
    """Adapters of their own digests, from one that PEFT made."""
    tensors = load_file(world.adapters["wide"] / WEIGHTS)
    sources = []
    for number in range(NUM_ADAPTERS):
        adapter = directory / f"adapter{number}"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_bytes(
            (world.adapters["wide"] / "adapter_config.json").read_bytes()
        )
        save_file({key: tensor * (1 + number / 100) for key, tensor in tensors.items()}, adapter / WEIGHTS)
        sources.append(source_of(adapter))
    return sources


def _config(world: World, directory: Path, cpu_kernels: str) -> EngineConfig:
    """Room for three adapters on disk, four in the CPU cache and two in slots."""
    file_bytes = sum(file.stat().st_size for file in (directory / "source" / "adapter0").iterdir())
    packed_bytes = world.runtime.reader.read(source_of(world.adapters["wide"])).num_bytes
    return tiny_config(
        world.base,
        directory / "source",
        max_loras=2,
        max_cpu_loras=6,
        cpu_cache_bytes=4 * packed_bytes,
        kv_cache_bytes=NUM_BLOCKS * BLOCK_BYTES,
        max_num_seqs=6,
        max_waiting_requests=MAX_WAITING,
        disk_cache_bytes=3 * file_bytes,
        disk_cache_dir=directory / "cache",
        cpu_kernels=cpu_kernels,
    )


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    seconds, cpu_kernels, directory = float(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    report = Pressure(make_world(directory / "world"), directory, cpu_kernels).run(seconds)
    print(json.dumps(vars(report)))


if __name__ == "__main__":
    main()
