"""`make demo`: the main job, end to end, on the real model through real processes.

Each step runs what a person would type (shown behind `$`) or a few lines of gRPC, and checks what
it shows: a step that does not show what it promises ends the demo with exit code 1.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from control_plane.cli.failures import line_of
from control_plane.cli.generate import receipt, summary
from protos.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "build/models/smollm2-135m-instruct"
ADAPTERS = ROOT / "tests/data/adapters"
STATE = ROOT / "build/demo"
LORAPLANE = (sys.executable, "-m", "control_plane.cli")
QUESTION = "What is the best way to learn to swim?"
BASE = "smollm2-135m-instruct"
REGISTERED = (("acme", "json-only"), ("acme", "pirate"), ("globex", "legalese"))


class DemoFailed(Exception):
    """A step did not show what it promises."""


def check(condition: bool, promise: str) -> None:
    """A step's promise holds, or the demo ends."""
    if not condition:
        raise DemoFailed(promise)
    print(f"  ✓ {promise}")


def title(number: int, text: str) -> None:
    """Head of a step."""
    print(f"\n\033[1m{number}. {text}\033[0m", flush=True)


@dataclass(slots=True)
class Generation:
    """One generation as its stream told it."""

    started: pb.Started = field(default_factory=pb.Started)
    text: str = ""
    finished: pb.Finished = field(default_factory=pb.Finished)
    elapsed_s: float = 0.0


class Demo:
    """The steps, and the connection they share."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._key = ""

    async def run(self) -> None:
        """All steps in order."""
        title(1, "the model")
        print(f"  {BASE} in {os.path.relpath(MODEL)}, {_size(MODEL) >> 20} MiB")
        title(2, "three processes: Valkey, control plane, worker")
        self._up()
        title(3, "three adapters of two tenants")
        self._register()
        async with grpc.aio.insecure_channel(self._endpoint) as channel:
            self._stub = inference_pb2_grpc.InferenceStub(channel)
            self._fleet = fleet_pb2_grpc.FleetStub(channel)
            title(4, "four generations at once: three adapters and the base model in one batch")
            await self._generate_together()
            title(5, "new weights while it generates")
            await self._publish_while_running()
            title(6, "a quota")
            await self._exceed_quota()
            title(7, "evict, and load again")
            await self._evict()
            title(8, "kill -9 of control plane and Valkey")
            await self._crash()
        print("\nall of it works")

    def _up(self) -> None:
        self._cli("up", "--detach", "--model", str(MODEL), "--adapter-root", str(ADAPTERS),
                  "--endpoint", self._endpoint)  # fmt: skip
        self._key = (STATE / "admin.key").read_text().strip()

    def _register(self) -> None:
        for tenant, name in REGISTERED:
            source = ADAPTERS / tenant / name
            self._cli("adapter", "register", name, "--tenant", tenant, "--source", str(source), quiet=True)
        self._cli("adapter", "list")
        rows = json.loads(self._cli("adapter", "list", "--json", quiet=True))["adapters"]
        states = {row["revisions"][0]["state"] for row in rows}
        check(len(rows) == 3 and states == {"REVISION_STATE_READY"}, "three adapters are ready")

    async def _generate_together(self) -> None:
        models = [*(f"{tenant}/{name}" for tenant, name in REGISTERED), BASE]
        screen = Screen(models)
        results = await asyncio.gather(*(self._generate(model, screen.writer(model)) for model in models))
        screen.flush()
        print()
        for model, result in zip(models, results, strict=True):
            print(f"  {model:<22} {receipt(result.started)}")
            print(f"  {'':<22} {summary(result.finished, result.elapsed_s)}")
        worker = await self._worker()
        distinct = worker.status.max_adapters_in_step
        check(distinct == 3, f"the largest number of distinct adapters in one step: {distinct}")
        check(len({result.text for result in results}) == 4, "four different answers")

    async def _publish_while_running(self) -> None:
        model = "acme/pirate"
        running = asyncio.create_task(self._generate(model, ignore_eos=True, max_tokens=160))
        before = await self._when_running(model)
        await asyncio.to_thread(
            self._cli, "adapter", "publish", "pirate", "--tenant", "acme",
            "--source", str(ADAPTERS / "acme/pirate-v2"), "--policy", "finish-running",
        )  # fmt: skip
        check(not running.done() and before, "it was published while a stream was running")
        new = await self._generate(model)
        old = await running
        print(f"  running: {receipt(old.started)}\n    {_excerpt(old.text)}")
        print(f"  next:    {receipt(new.started)}\n    {_excerpt(new.text)}")
        check(old.started.revision == 1 and len(old.text) > 0, "the running stream ended on revision 1")
        check(new.started.revision == 2, "the next request names revision 2")
        check(not old.text.startswith(new.text), "their outputs differ")

    async def _exceed_quota(self) -> None:
        self._cli("quota", "set", "acme", "--requests-per-minute", "1")
        key = self._cli("key", "create", "--tenant", "acme", "--role", "inference", show=False).strip()
        await self._generate("json-only", key=key)
        try:
            await self._generate("json-only", key=key)
        except grpc.aio.AioRpcError as error:
            print(f"  {line_of(error)}")
            check(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, "the second request is refused")
        else:
            raise DemoFailed("the second request is refused")
        self._cli("quota", "set", "acme", "--requests-per-minute", "600")

    async def _evict(self) -> None:
        self._cli("worker", "list")
        before = (await self._worker()).status
        reports = json.loads(
            self._cli("adapter", "evict", "legalese", "--tenant", "globex", "--json", quiet=True)
        )["reports"]
        freed = sum(int(report["size_bytes"]) for report in reports)
        after = await self._worker_until(lambda status: all(a.name != "legalese" for a in status.adapters))
        self._cli("worker", "list")
        gone = (before.slot_bytes_used + before.cpu_bytes_used) - (
            after.slot_bytes_used + after.cpu_bytes_used
        )
        check(freed > 0 and gone == freed, f"{freed} bytes came back")
        again = await self._generate("globex/legalese")
        print(f"  {receipt(again.started)}")
        check(again.started.tier == pb.TIER_SOURCE, "the next request loaded it again from its source")

    async def _crash(self) -> None:
        for name in ("control-plane", "valkey"):
            pid = int((STATE / "run" / f"{name}.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            print(f"  $ kill -9 {pid}  # {name}")
        self._up()
        self._cli("adapter", "list")
        rows = json.loads(self._cli("adapter", "list", "--json", quiet=True))["adapters"]
        found = {(row["tenant"], row["name"], int(row["current_revision"])) for row in rows}
        expected = {("acme", "json-only", 1), ("acme", "pirate", 2), ("globex", "legalese", 1)}
        check(found == expected, "every adapter and revision is still there")
        quota = json.loads(self._cli("quota", "get", "acme", "--json", quiet=True))
        check(quota["limits"].get("requests_per_minute") == "600", "and so is the quota")
        result = await self._generate("acme/pirate")
        print(f"  {receipt(result.started)}\n    {_excerpt(result.text)}")
        check(result.started.revision == 2, "the worker came back by itself and serves")

    async def _generate(
        self,
        model: str,
        write: Callable[[str], None] = lambda text: None,
        *,
        key: str = "",
        max_tokens: int = 48,
        ignore_eos: bool = False,
    ) -> Generation:
        result, began_s = Generation(), time.monotonic()
        async for response in self._stream(model, key or self._key, max_tokens, ignore_eos):
            match response.WhichOneof("event"):
                case "started":
                    result.started = response.started
                case "delta":
                    result.text += response.delta.text
                    write(response.delta.text)
                case "finished":
                    result.finished = response.finished
        result.elapsed_s = time.monotonic() - began_s
        return result

    def _stream(
        self, model: str, key: str, max_tokens: int, ignore_eos: bool
    ) -> AsyncIterator[pb.GenerateResponse]:
        message = pb.ChatMessage(role="user", parts=[pb.ContentPart(text=QUESTION)])
        request = pb.GenerateRequest(
            model=model,
            chat=pb.ChatMessages(messages=[message]),
            sampling=pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=ignore_eos),
        )
        return self._stub.Generate(
            request,
            metadata=(("authorization", f"Bearer {key}"),),
            wait_for_ready=True,
            timeout=120,
        )

    async def _worker(self) -> fleet_pb2.Worker:
        metadata = (("authorization", f"Bearer {self._key}"),)
        answer = await self._fleet.ListWorkers(fleet_pb2.ListWorkersRequest(), metadata=metadata)
        return answer.workers[0]

    async def _worker_until(
        self, reached: Callable[[fleet_pb2.WorkerStatus], bool]
    ) -> fleet_pb2.WorkerStatus:
        """The worker's status once `reached`, as the control plane learns of it."""
        metadata = (("authorization", f"Bearer {self._key}"),)
        request = fleet_pb2.WatchWorkersRequest()
        watch = self._fleet.WatchWorkers(request, metadata=metadata, timeout=10)
        async for event in watch:
            if reached(event.worker.status):
                watch.cancel()
                return event.worker.status
        raise DemoFailed("the worker's state did not change within 10 s")

    async def _when_running(self, model: str) -> bool:
        name = model.rpartition("/")[2]
        await self._worker_until(lambda s: any(a.name == name and a.leases for a in s.adapters))
        return True

    def _cli(self, *arguments: str, quiet: bool = False, show: bool = True) -> str:
        """Run `loraplane …`; print the command and, unless `quiet`, what it printed."""
        print(f"  $ loraplane {' '.join(_shown(argument) for argument in arguments)}", flush=True)
        done = subprocess.run(
            [*LORAPLANE, *arguments],
            cwd=ROOT,
            env={**os.environ, "LORAPLANE_STATE_DIR": str(STATE), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DemoFailed(f"loraplane {arguments[0]} exits 0, not {done.returncode}: {done.stderr}")
        if show and not quiet:
            print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        return done.stdout


class Screen:
    """Several texts growing at once: a line of one when it is long enough, as they come."""

    LINE_CHARACTERS = 60

    def __init__(self, names: list[str]) -> None:
        self._width = max(map(len, names))
        self._pending = dict.fromkeys(names, "")

    def writer(self, name: str) -> Callable[[str], None]:
        """Where the stream of this name writes."""

        def write(text: str) -> None:
            self._pending[name] += text.replace("\n", " ")
            if len(self._pending[name]) >= self.LINE_CHARACTERS:
                self._print(name)

        return write

    def flush(self) -> None:
        """Print what is left."""
        for name, text in self._pending.items():
            if text:
                self._print(name)

    def _print(self, name: str) -> None:
        print(f"  {name:<{self._width}} │ {self._pending[name]}", flush=True)
        self._pending[name] = ""


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:120]


def _shown(argument: str) -> str:
    return argument.replace(f"{ROOT}/", "")


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Run the demo; return the exit code."""
    down = [*LORAPLANE, "down", "--state-dir", str(STATE)]
    subprocess.run(down, cwd=ROOT, capture_output=True, check=False)
    shutil.rmtree(STATE, ignore_errors=True)
    try:
        asyncio.run(Demo(f"127.0.0.1:{_free_port()}").run())
    except DemoFailed as failure:
        print(f"  ✗ {failure}", file=sys.stderr)
        return 1
    finally:
        subprocess.run(down, cwd=ROOT, capture_output=True, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
