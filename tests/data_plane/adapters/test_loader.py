"""Loading through the disk cache: one read of the source, a checked digest, and no trust in the disk."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_plane.adapters.disk_cache import DiskCache
from data_plane.adapters.loader import DiskLoader
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.reader import EXTRA_VOCABULARY
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.sources import DirectorySource
from data_plane.errors import AdapterRefused, AdapterUnreadable
from tests.data_plane.world import World, source_of

WEIGHTS = "adapter_model.safetensors"


class CountedSource:
    """A source of directories that counts its reads."""

    def __init__(self, root: Path) -> None:
        self._source = DirectorySource((root,))
        self.reads: Counter[str] = Counter()

    def fetch(self, source: AdapterSource, *, max_bytes: int) -> dict[str, bytes] | None:
        self.reads[source.revision.digest] += 1
        return self._source.fetch(source, max_bytes=max_bytes)


class CountedReader:
    """The reader of sources, which also counts as a read of the source."""

    def __init__(self, reader, reads: Counter[str]) -> None:
        self._reader, self._reads = reader, reads

    def read(self, source: AdapterSource) -> PackedLora:
        self._reads[source.revision.digest] += 1
        return self._reader.read(source)


class Setting:
    def __init__(self, world: World, directory: Path, max_bytes: int = 10 << 20) -> None:
        self.adapter = Path(shutil.copytree(world.adapters["narrow"], directory / "source" / "narrow"))
        self.source = source_of(self.adapter)
        self.files = CountedSource(directory / "source")
        self.cache = DiskCache(directory / "cache", max_bytes)
        reader = replace(world.runtime.reader, roots=(directory / "source",))
        self.loader = DiskLoader(
            reader=CountedReader(reader, self.files.reads),
            landed=replace(reader, roots=(self.cache.directory,)),
            files=self.files,
            cache=self.cache,
        )

    def load(self, *, again: bool = False) -> tuple[PackedLora, Tier]:
        loaded = self.loader.load(self.source, again=again)
        return loaded.adapter, loaded.tier

    @property
    def num_reads(self) -> int:
        return self.files.reads[self.source.revision.digest]

    def entry(self) -> Path:
        return self.cache.directory / self.source.revision.digest.removeprefix("sha256:")


@pytest.fixture
def setting(world: World, tmp_path: Path) -> Setting:
    return Setting(world, tmp_path)


def test_the_second_load_needs_no_source(setting: Setting):
    first, tier = setting.load()
    assert tier is Tier.SOURCE
    shutil.rmtree(setting.adapter)
    second, tier = setting.load()
    assert (tier, setting.num_reads) == (Tier.DISK, 1)
    assert torch.equal(first.modules[0].b, second.modules[0].b)


def test_a_restarted_worker_finds_what_it_had(setting: Setting, world: World):
    setting.load()
    setting.loader.close()
    shutil.rmtree(setting.adapter)
    again = replace(setting.loader, cache=DiskCache(setting.cache.directory, setting.cache.max_bytes))
    assert again.load(setting.source, again=False).tier is Tier.DISK


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_a_damaged_entry_is_dropped_and_read_from_the_source_again(setting: Setting, damage: bytes):
    setting.load()
    (setting.entry() / WEIGHTS).write_bytes(damage)
    _, tier = setting.load()
    assert (tier, setting.num_reads) == (Tier.SOURCE, 2)
    assert setting.load()[1] is Tier.DISK, "the entry was written anew"


def test_a_reload_reads_the_source_exactly_once_even_when_the_disk_has_it(setting: Setting):
    setting.load()
    _, tier = setting.load(again=True)
    assert (tier, setting.num_reads) == (Tier.SOURCE, 2)


def test_files_of_another_digest_are_never_kept(setting: Setting):
    revision = replace(setting.source.revision, digest="sha256:" + "0" * 64)
    with pytest.raises(AdapterRefused, match="digest"):
        setting.loader.load(AdapterSource(revision, setting.source.uri), again=False)
    assert len(setting.cache) == 0


def test_a_source_that_does_not_answer_is_asked_once(setting: Setting):
    shutil.rmtree(setting.adapter)
    with pytest.raises(AdapterUnreadable):
        setting.load()
    assert setting.num_reads == 1


def test_an_adapter_that_no_disk_could_take_is_served_all_the_same(world: World, tmp_path: Path):
    setting = Setting(world, tmp_path, max_bytes=100)
    assert setting.load()[1] is Tier.SOURCE
    assert (len(setting.cache), setting.cache.num_bytes) == (0, 0)


def test_what_the_reader_refuses_is_refused_although_its_other_files_are_sound(setting: Setting):
    (setting.adapter / EXTRA_VOCABULARY).write_bytes(b"rows")
    with pytest.raises(AdapterRefused, match=EXTRA_VOCABULARY):
        setting.load()
    assert len(setting.cache) == 0


def test_nothing_outside_the_roots_comes_in_by_way_of_the_cache(setting: Setting, world: World):
    outside = source_of(world.adapters["wide"])
    with pytest.raises(AdapterRefused, match="outside of adapter_roots"):
        setting.loader.load(outside, again=False)
    assert len(setting.cache) == 0
