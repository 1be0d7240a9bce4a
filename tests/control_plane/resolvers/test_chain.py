"""The chain: the first that finds wins, a failing one never hides a later one's find."""

import asyncio
from dataclasses import dataclass, field

import pytest

from control_plane.errors import ControlError, NotFound, Refused, SourceUnavailable
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.types import Resolved, ResolveRequest

FOUND = Resolved(
    uri="here", digest="sha256:0", rank=8, target_modules=(), size_bytes=1, base_model_hint="org/Base"
)
BY_NAME = ResolveRequest(tenant="acme", name="bot")
BY_SOURCE = ResolveRequest(tenant="acme", name="bot", source="/adapters/bot")


@dataclass
class Fixed:
    """A resolver that always gives the same answer."""

    name: str
    answer: Resolved | ControlError | None
    num_calls: int = 0

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        self.num_calls += 1
        if isinstance(self.answer, ControlError):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.num_calls = -1


@dataclass
class Hanging:
    """A resolver that answers once it is told to, or never."""

    name: str = "hanging"
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    num_calls: int = 0
    num_cancelled: int = 0

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        self.num_calls += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return None

    async def close(self) -> None:
        """Nothing is held."""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_the_first_that_finds_wins() -> None:
    last = Fixed("last", FOUND)
    chain = ResolverChain([Fixed("first", None), Fixed("second", FOUND), last], Clock())
    assert await chain.resolve(BY_NAME) == FOUND
    assert last.num_calls == 0


@pytest.mark.parametrize("error", [Refused("no config"), SourceUnavailable("timeout")])
async def test_a_failing_one_falls_to_the_next(error: ControlError) -> None:
    chain = ResolverChain([Fixed("first", error), Fixed("second", FOUND)], Clock())
    assert await chain.resolve(BY_NAME) == FOUND


async def test_refusals_of_all_are_in_the_message() -> None:
    chain = ResolverChain([Fixed("disk", Refused("no config")), Fixed("hub", Refused("no weights"))], Clock())
    with pytest.raises(Refused, match="disk: no config; hub: no weights"):
        await chain.resolve(BY_NAME)


async def test_one_that_may_work_later_makes_the_whole_worth_another_try() -> None:
    chain = ResolverChain(
        [Fixed("disk", Refused("no config")), Fixed("s3", SourceUnavailable("timeout", 7.0))], Clock()
    )
    with pytest.raises(SourceUnavailable, match="disk: no config; s3: timeout") as error:
        await chain.resolve(BY_NAME)
    assert error.value.retry_after_s == 7.0


async def test_a_name_that_nobody_knows_is_asked_for_again_only_after_the_ttl() -> None:
    clock, resolver = Clock(), Fixed("disk", None)
    chain = ResolverChain([resolver], clock, negative_ttl_s=5.0)
    for _ in range(3):
        with pytest.raises(NotFound, match=r"acme/bot.*asked: disk"):
            await chain.resolve(BY_NAME)
    assert resolver.num_calls == 1
    clock.now += 5.0
    resolver.answer = FOUND
    assert await chain.resolve(BY_NAME) == FOUND


async def test_an_unknown_path_is_asked_for_again_at_once() -> None:
    resolver = Fixed("disk", None)
    chain = ResolverChain([resolver], Clock())
    for _ in range(2):
        with pytest.raises(NotFound, match="/adapters/bot"):
            await chain.resolve(BY_SOURCE)
    assert resolver.num_calls == 2


@pytest.mark.parametrize(
    ("trained_on", "asked_for", "fits"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m", True),
        ("/models/SmolLM2-135M/", "org/smollm2-135M", True),
        ("", "smollm2", True),
        ("org/SmolLM2", "", True),
        ("/cache/snapshots/" + "a" * 40, "smollm2", True),
        ("meta-llama/Llama-3-8B", "smollm2-135m", False),
    ],
)
async def test_an_adapter_of_another_base_model_is_refused_by_both_names(
    trained_on: str, asked_for: str, fits: bool
) -> None:
    found = Resolved(
        uri="here", digest="sha256:0", rank=8, target_modules=(), size_bytes=1, base_model_hint=trained_on
    )
    chain = ResolverChain([Fixed("disk", found)], Clock())
    request = ResolveRequest(tenant="acme", name="bot", base_model=asked_for)
    if fits:
        assert await chain.resolve(request) == found
    else:
        with pytest.raises(Refused, match=f"{trained_on}.*{asked_for}"):
            await chain.resolve(request)


async def test_one_that_hangs_falls_to_the_next_after_its_time() -> None:
    hanging = Hanging()
    chain = ResolverChain([hanging, Fixed("disk", FOUND)], Clock(), timeout_s=0.01)
    assert await chain.resolve(BY_NAME) == FOUND
    assert hanging.num_cancelled == 1


async def test_one_that_hangs_is_named_with_its_time_and_makes_the_whole_worth_another_try() -> None:
    chain = ResolverChain([Hanging(), Fixed("disk", Refused("no config"))], Clock(), timeout_s=0.01)
    with pytest.raises(
        SourceUnavailable, match=r"hanging: acme/bot was not read within 0\.01 s; disk: no conf"
    ):
        await chain.resolve(BY_NAME)


async def test_an_unforeseen_error_of_ours_does_not_hide_what_a_later_one_finds() -> None:
    chain = ResolverChain([Fixed("first", NotFound("source", "x")), Fixed("second", FOUND)], Clock())
    assert await chain.resolve(BY_NAME) == FOUND


async def test_a_rush_for_an_unknown_name_asks_once() -> None:
    resolver = Hanging()
    chain = ResolverChain([resolver], Clock())
    rush = [asyncio.create_task(chain.resolve(BY_NAME)) for _ in range(20)]
    await asyncio.sleep(0)
    resolver.may_answer.set()
    answers = await asyncio.gather(*rush, return_exceptions=True)
    assert all(isinstance(answer, NotFound) for answer in answers)
    assert resolver.num_calls == 1


async def test_names_do_not_wait_for_each_other() -> None:
    resolver = Hanging()
    chain = ResolverChain([resolver], Clock())
    waiting = [asyncio.create_task(chain.resolve(ResolveRequest(tenant="acme", name=name))) for name in "abc"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert resolver.num_calls == 3
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_closing_the_chain_closes_every_resolver() -> None:
    resolvers = [Fixed("disk", None), Fixed("s3", None)]
    await ResolverChain(resolvers, Clock()).close()
    assert [resolver.num_calls for resolver in resolvers] == [-1, -1]
