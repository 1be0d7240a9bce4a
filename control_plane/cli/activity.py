"""Activity: what tenants use, the most active first, for a view that is drawn again and again.

Which tenants there are comes from API keys and from what workers hold: one that asks the base model alone
holds nothing. Asking is bounded: ASKED tenants a look, those that run something or were shown first, the
others in turn, so that with thousands each is found within some looks.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice

from control_plane.cli.command import Session
from protos.access.v1 import access_pb2, access_pb2_grpc
from protos.fleet.v1 import fleet_pb2
from protos.quota.v1 import quota_pb2, quota_pb2_grpc

SHOWN = 20
ASKED = 100

Usages = Mapping[str, quota_pb2.Usage]


class Activity:
    """The last known usage of every tenant that was asked about."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[str, quota_pb2.Usage] = {}
        self._fresh: dict[str, int] = {}  # work since the look before
        self._others: deque[str] = deque()

    def look(self, workers: Iterable[fleet_pb2.Worker]) -> Usages:
        """Ask again; return the most active tenants, at most SHOWN."""
        asked = self._to_ask(workers)
        with self._session.connection.channel() as channel:
            stub = quota_pb2_grpc.TenantQuotasStub(channel)
            calls = {
                tenant: stub.GetUsage.future(
                    quota_pb2.GetUsageRequest(tenant=tenant), metadata=self._session.connection.metadata
                )
                for tenant in asked
            }
            usages = {tenant: call.result() for tenant, call in calls.items()}
        self._fresh = {
            tenant: work(usage) - work(self._known.get(tenant, usage)) for tenant, usage in usages.items()
        }
        self._known |= usages
        return {tenant: self._known[tenant] for tenant in self._most_active()}

    def _to_ask(self, workers: Iterable[fleet_pb2.Worker]) -> list[str]:
        held = [one for worker in workers for one in worker.status.adapters]
        if not self._others:  # everybody had a turn: there may be new ones
            self._others.extend(sorted({one.tenant for one in held} | self._with_keys()))
        running = [one.tenant for one in held if one.leases]
        first = dict.fromkeys([*running, *self._most_active()])
        asked = list(islice(first, ASKED))
        while self._others and len(asked) < ASKED:
            tenant = self._others.popleft()
            if tenant not in first:
                asked.append(tenant)
        return asked

    def _with_keys(self) -> set[str]:
        page: access_pb2.ListKeysResponse = self._session.call(
            access_pb2_grpc.AccessKeysStub, "ListKeys", access_pb2.ListKeysRequest()
        )
        return {key.tenant for key in page.keys if key.tenant}

    def _most_active(self) -> list[str]:
        return most_active(self._known, self._fresh)[:SHOWN]


def work(usage: quota_pb2.Usage) -> int:
    """What a tenant had done, in tokens; a request that was refused counts as one."""
    return usage.prompt_tokens + usage.completion_tokens + usage.rejected_requests


def most_active(usages: Usages, fresh: Mapping[str, int]) -> list[str]:
    """Tenants by what runs now, then by what was done lately, then by what was done ever."""
    return sorted(
        usages,
        key=lambda tenant: (
            -usages[tenant].concurrent_requests,
            -fresh.get(tenant, 0),
            -work(usages[tenant]),
            tenant,
        ),
    )
