"""Where the CPU time of processes goes: seconds of their threads, as Linux counts them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds since a process began; of its first thread, which has the event loop, and of all."""

    first_s: float
    all_s: float

    def since(self, before: "CpuTime") -> "CpuTime":
        """What was spent meanwhile."""
        return CpuTime(self.first_s - before.first_s, self.all_s - before.all_s)


def cpu_time(pid: int) -> CpuTime:
    """Of a process that runs; threads that have ended are not counted."""
    seconds = _by_thread(Path(f"/proc/{pid}/task"))
    return CpuTime(seconds[pid], sum(seconds.values()))


def _by_thread(tasks: Path) -> Mapping[int, float]:
    # Nanoseconds on a core: https://docs.kernel.org/scheduler/sched-stats.html
    return {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks.iterdir()
    }
