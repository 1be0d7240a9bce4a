"""Two control-plane replicas and two workers on one store: the smallest stack that can lose any of them."""

import re
from pathlib import Path
from typing import Self

from tests.integration.stack import Process, Stack

WORKER_LEASE_S = 3.0
_LEADS = re.compile(r"leadership won\s+token=(\d+)")


class Pairs(Stack):
    """Each worker knows both replicas and prefers another one."""

    def __enter__(self) -> Self:
        self.valkey.start()
        try:
            self.add_control_plane()
            self.add_control_plane()
            # gRPC goes to the next address when the first is away.
            self.add_worker("ipv4:" + ",".join(self.endpoints))
            self.add_worker("ipv4:" + ",".join(reversed(self.endpoints)))
            for endpoint in self.endpoints:
                self.await_serving("readiness", endpoint)
        except BaseException:
            self._stop()
            raise
        return self


def two_of_each(tiny, directory: Path, *, reservation_ttl_s: float = 60.0) -> Pairs:
    """The stack; fp32, two slots a worker, room for four adapters in RAM."""
    return Pairs(
        directory,
        model=tiny.model,
        adapter_roots=[tiny.adapters],
        control_plane={
            "reservation_ttl_s": reservation_ttl_s,
            "grant_ttl_s": 4,
            "shutdown_grace_s": 2,
            "worker_lease_ttl_s": WORKER_LEASE_S,
        },
        allow_insecure=True,  # several addresses are not seen to be loopback ones
        max_loras=2,
        max_cpu_loras=4,
        max_lora_rank=16,
        max_model_len=256,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        kv_cache_bytes=4 << 20,
        num_threads=1,
    )


def newest_term(replica: Process) -> int:
    """The fencing token of a replica's last term as leader; 0 when it never led."""
    return max(map(int, _LEADS.findall(replica.log)), default=0)


def leader_of(stack: Stack) -> Process:
    """The replica that leads or, when none does, led last."""
    return max(stack.control_planes, key=newest_term)
