"""The engine in this process: real weights, real threads, PEFT's answers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_plane.adapters.reader import PeftReader
from data_plane.adapters.revision import Tier
from data_plane.engine.events import FinishReason
from data_plane.engine.local import LocalEngine
from data_plane.errors import AdapterRefused, AdapterUnknown, InvalidRequest
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.world import World, tiny_config

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[LocalEngine]:
    config = tiny_config(world.base, world.root, max_cpu_loras=8, max_waiting_requests=3, max_num_seqs=4)
    with LocalEngine(config) as engine:
        yield engine


@pytest.fixture
def adapters(engine: LocalEngine, world: World) -> Iterator[None]:
    for name in ("wide", "narrow"):
        engine.add_adapter(name, world.adapters[name])
    yield
    for name in list(engine.list_adapters()):
        engine.remove_adapter(name)
    assert engine.status().cpu_bytes_used == engine.status().slot_bytes_used == 0


def tokens(generations) -> list[tuple[int, ...]]:
    return [generation.choices[0].token_ids for generation in generations]


def test_prompts_come_as_text_or_ids_alone_or_many(engine: LocalEngine):
    ids = engine._runtime.tokenizer.encode("The sea")
    alone = tokens(engine.generate("The sea", GREEDY))
    assert len(alone[0]) == 6
    assert tokens(engine.generate(ids, GREEDY)) == alone
    assert tokens(engine.generate(["The sea", "The sea"], GREEDY)) == 2 * alone
    assert tokens(engine.generate([ids], GREEDY)) == alone
    assert engine.generate([], GREEDY) == []


def test_each_prompt_may_have_its_own_adapter(engine: LocalEngine, adapters: None):
    names = ["wide", None, "narrow"] * 5  # more than may wait, more than run at once
    many = engine.generate(["The sea"] * 15, GREEDY, adapter=names)
    for name in ("wide", None, "narrow"):
        (alone,) = tokens(engine.generate("The sea", GREEDY, adapter=name))
        assert {generation for generation, n in zip(tokens(many), names, strict=True) if n == name} == {alone}
    assert len(set(tokens(many))) == 3
    assert [g.receipt.revision.name if g.receipt.revision else None for g in many] == names


def test_texts_logprobs_receipts_and_usage_are_returned(engine: LocalEngine, adapters: None):
    sampling = replace(GREEDY, logprobs=2, n=2)
    (generation,) = engine.generate("The sea", sampling, adapter="wide")
    assert [choice.reason for choice in generation.choices] == [FinishReason.LENGTH] * 2
    assert all(len(choice.logprobs) == len(choice.token_ids) == 6 for choice in generation.choices)
    assert generation.receipt.tier in (Tier.CPU, Tier.SLOT)
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (7, 12)


def test_an_adapter_is_replaced_only_when_asked_to(engine: LocalEngine, adapters: None, world: World):
    before = engine.generate("The sea", GREEDY, adapter="wide")
    with pytest.raises(InvalidRequest, match=r"name: 'wide' is loaded already: set load_inplace"):
        engine.add_adapter("wide", world.adapters["patterned"])
    source = engine.add_adapter("wide", world.adapters["patterned"], load_inplace=True)
    after = engine.generate("The sea", GREEDY, adapter="wide")
    assert tokens(before) != tokens(after)
    assert after[0].receipt.revision == source.revision
    assert source.revision.number == 2


def test_pins_and_tiers_are_listed(engine: LocalEngine, adapters: None):
    engine.pin_adapter("narrow")
    held = engine.list_adapters()
    assert (held["narrow"].tier, held["narrow"].pinned) == (Tier.SLOT, True)
    assert not held["wide"].pinned


def test_removing_an_adapter_frees_its_bytes_and_its_name(engine: LocalEngine, adapters: None):
    assert engine.remove_adapter("narrow") > 0
    assert "narrow" not in engine.list_adapters()
    with pytest.raises(AdapterUnknown, match="narrow is not loaded"):
        engine.generate("x", adapter="narrow")


def test_a_failure_is_raised_and_ends_the_rest(engine: LocalEngine):
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.generate([[1, 2], [], [1]] * 4, replace(GREEDY, max_tokens=100))
    assert len(tokens(engine.generate("on it goes", GREEDY))) == 1
    assert engine.status().running_requests == 0


def test_as_many_adapters_as_prompts_are_asked_for(engine: LocalEngine):
    with pytest.raises(InvalidRequest, match="one for each of 2 prompts"):
        engine.generate(["a", "b"], GREEDY, adapter=[None])


def test_a_directory_outside_the_roots_is_refused(engine: LocalEngine, tmp_path: Path):
    with pytest.raises(AdapterRefused, match=r"adapter stranger: .* outside of adapter_roots"):
        engine.add_adapter("stranger", tmp_path)


def test_modules_named_at_start_are_there_by_name(world: World):
    modules = [f"one={world.adapters['narrow']}", {"name": "two", "path": str(world.adapters["wide"])}]
    config = tiny_config(world.base, world.root, adapter_roots=(), lora_modules=modules, max_cpu_loras=3)
    with LocalEngine(config) as engine:
        assert engine.list_adapters().keys() == {"one", "two"}
        assert tokens(engine.generate("a", GREEDY, adapter="one")) != tokens(engine.generate("a", GREEDY))


def test_what_left_the_cpu_cache_is_read_from_disk_and_the_receipt_says_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_config(
        world.base, world.root, max_loras=1, disk_cache_dir=tmp_path, disk_cache_bytes=10 << 20
    )
    with LocalEngine(config) as engine:
        for name in ("narrow", "wide"):
            engine.add_adapter(name, world.adapters[name])
        cold = engine.generate("a", GREEDY, adapter="narrow")
        assert cold[0].receipt.tier is Tier.DISK
        assert engine.status().disk_bytes_used == sum(f.stat().st_size for f in tmp_path.rglob("adapter_*"))
        assert engine.status().cold_loads == 2
    reads: list[str] = []
    monkeypatch.setattr(PeftReader, "read", _noting(PeftReader.read, reads))
    with LocalEngine(config) as engine:
        engine.add_adapter("narrow", world.adapters["narrow"])
        assert tokens(engine.generate("a", GREEDY, adapter="narrow")) == tokens(cold)
        assert engine.status().cold_loads == 0, "a restarted worker needs no source"
    assert all(uri.startswith(str(tmp_path)) for uri in reads)


def _noting(read, reads: list[str]):
    def noting(self, source):
        reads.append(source.uri)
        return read(self, source)

    return noting
