"""No adapter directory, however wrong, does anything but be refused or compute what PEFT computes."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import grpc
import pytest
from redis.asyncio import Redis

from protos.registry.v1 import registry_pb2 as registry
from tests.control_plane.replica import Replica, replica
from tests.data_plane.conftest import *  # noqa: F403 - the tiny model and its adapters
from tests.data_plane.world import World
from tests.fuzz.adapters import mutate
from tests.fuzz.calls import Outcome, call
from tests.fuzz.cases import HANG_S, Case
from tests.fuzz.credentials import Caller
from tests.fuzz.surface import Rpc, served
from tests.fuzz.verdict import Judge
from tests.fuzz.worker import FuzzedWorker
from tests.tiny import make_adapter

SEED = 5
SHORT, LONG = 150, 5_000
Mutant = tuple[str, Path]


@pytest.fixture(scope="module")
def originals(world: World) -> list[Path]:
    """Valid adapters of every kind that is served."""
    root = world.root / "originals"
    return [
        *world.adapters.values(),
        make_adapter(root / "dora", world.base, seed=4, rank=4, use_dora=True),
        make_adapter(root / "bias", world.base, seed=5, rank=4, lora_bias=True),
        make_adapter(root / "ends", world.base, seed=6, rank=4, target_modules=("q_proj", "embed_tokens")),
        make_adapter(root / "saved", world.base, seed=7, rank=4, modules_to_save=["lm_head"]),
    ]


def mutants(count: int, originals: list[Path], root: Path) -> Iterator[Mutant]:
    """So many mutated directories, one after another in the same place, and what was done to each."""
    for number in range(count):
        rng = Random(f"{SEED}:{number}")
        directory = root / "adapter"
        shutil.copytree(rng.choice(originals), directory)
        yield f"case {SEED}:{number}: {mutate(directory, rng)}", directory
        shutil.rmtree(directory)


def fuzz_worker(world: World, originals: list[Path], root: Path, count: int, *, allow_bin: bool) -> None:
    worker = FuzzedWorker(world, root, allow_bin=allow_bin)
    endings, objections = Counter[str](), []
    try:
        for name, directory in mutants(count, originals, root):
            verdict = worker.judge(directory)
            endings[verdict.ending] += 1
            if verdict.objection:
                objections.append(f"{name}\n  {verdict.objection}")
        worker.check_well()
    finally:
        worker.close()
        print(dict(endings))
    assert not objections, "\n".join(objections)
    # Neither side of the question may go untried.
    assert min(endings["served"], endings["AdapterRefused"]) > count / 20


async def fuzz_register(redis: Redis, originals: list[Path], root: Path, count: int) -> None:
    codes, objections = Counter[str](), []
    async with replica(redis, root / "private", adapter_roots=(root,)) as control:
        rpcs = await served("control plane", control.channel)
        register = next(rpc for rpc in rpcs if rpc.descriptor.name == "RegisterAdapter")
        judge = Judge((*control.keys.values(), str(root / "private")))
        for name, directory in mutants(count, originals, root):
            case = _registration(register, control, name, directory)
            outcome = await call(control.channel, case, case.caller.metadata)
            codes[outcome.code.name] += 1
            objection = judge.objection(case, outcome) or _objection_to_code(outcome)
            if objection:
                objections.append(f"{name}\n  {objection}")
            if outcome.code is grpc.StatusCode.OK:
                request = registry.DeleteAdapterRequest(tenant="acme", name="fuzzed")
                await control.registry.DeleteAdapter(request, metadata=control.as_("admin"))
    print(dict(codes))
    assert not objections, "\n".join(objections)
    assert min(codes["OK"], codes["FAILED_PRECONDITION"]) > count / 20


def _registration(register: Rpc, control: Replica, name: str, directory: Path) -> Case:
    request = registry.RegisterAdapterRequest(
        tenant="acme", name="fuzzed", source=str(directory), base_model="base"
    )
    caller = Caller("admin", control.as_("admin"), may=True)
    frames = (request.SerializeToString(),)
    return Case(name=name, rpc=register, frames=frames, caller=caller, timeout_s=HANG_S, patience_s=HANG_S)


def _objection_to_code(outcome: Outcome) -> str | None:
    expected = ("OK", "FAILED_PRECONDITION", "UNAVAILABLE")  # good, never good, not readable now
    return None if outcome.code.name in expected else f"{outcome.code.name}: {outcome.text}"


@pytest.mark.processes  # as tests/fuzz/test_requests.py
@pytest.mark.parametrize("allow_bin", [False, True])
def test_a_worker_refuses_a_mutated_adapter_or_computes_what_peft_does(
    world: World, originals: list[Path], tmp_path: Path, allow_bin: bool
) -> None:
    fuzz_worker(world, originals, tmp_path, SHORT, allow_bin=allow_bin)


@pytest.mark.processes
async def test_a_mutated_adapter_is_registered_or_refused_with_the_reason(
    redis: Redis, originals: list[Path], tmp_path: Path
) -> None:
    await fuzz_register(redis, originals, tmp_path, SHORT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_thousands_of_mutated_adapters_are_refused_or_compute_what_peft_does(
    redis: Redis, world: World, originals: list[Path], tmp_path: Path
) -> None:
    await fuzz_register(redis, originals, tmp_path / "registered", LONG)
    fuzz_worker(world, originals, tmp_path / "loaded", LONG, allow_bin=True)
