"""No request, however wrong, crashes a server, hangs it, or makes it tell what is its own business."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.api.roles import ROLES
from tests.fuzz.campaign import Campaign, Report
from tests.fuzz.servers import running_servers

SEED = 20_261_122
SHORT, LONG = 2_500, 100_000
MAX_GROWTH_BYTES = 200 << 20


@pytest.mark.processes  # `make check` has no half a minute for it
async def test_a_few_thousand_random_requests_leave_both_planes_well(redis: Redis, tmp_path: Path) -> None:
    check(await _fuzz(redis, tmp_path, SHORT))


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_hundred_thousand_random_requests_leave_both_planes_well(
    redis: Redis, tmp_path: Path
) -> None:
    check(await _fuzz(redis, tmp_path, LONG))


async def _fuzz(redis: Redis, root: Path, num_cases: int) -> Report:
    async with running_servers(redis, root) as servers:
        return await Campaign(servers, SEED).run(num_cases)


def check(report: Report) -> None:
    print(report.table())
    print(f"resident: {[size >> 20 for size in report.resident]} MiB")
    assert not report.defects, "\n\n".join(map(str, report.defects))
    assert report.growth_bytes < MAX_GROWTH_BYTES
    # By name of the method, after the plane's.
    assert set(ROLES) <= {rpc.rpartition(" ")[2] for rpc in report.codes}
