"""Loading through the disk cache: one read of the source, a checked digest, and no trust in the disk."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from data_plane.adapters.disk_cache import DiskCache
from data_plane.adapters.files import AdapterDirectory
from data_plane.adapters.loader import DiskLoader
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.reader import EXTRA_VOCABULARY
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.errors import AdapterRefused, AdapterUnreadable
from tests.data_plane.world import World, source_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class CountedPlace:
    """A remote place, counted://PATH, of local directories: says which files were read."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.reads: list[str] = []

    def open(self, uri: str) -> "CountedFiles":
        return CountedFiles(AdapterDirectory(uri.removeprefix("counted://"), (self._root,)), self.reads)


@dataclass
class CountedFiles:
    directory: AdapterDirectory
    reads: list[str]

    def names(self) -> list[str]:
        return self.directory.names()

    def read(self, name: str, *, max_bytes: int) -> bytes:
        self.reads.append(name)
        return self.directory.read(name, max_bytes=max_bytes)


class Setting:
    def __init__(self, world: World, directory: Path, max_bytes: int = 10 << 20) -> None:
        self.adapter = Path(shutil.copytree(world.adapters["narrow"], directory / "source" / "narrow"))
        self.source = source_of(self.adapter, uri=f"counted://{self.adapter}")
        self.place = CountedPlace(directory / "source")
        self.cache = DiskCache(directory / "cache", max_bytes)
        reader = replace(world.runtime.reader, roots=(), remotes={"counted": self.place.open})
        self.loader = DiskLoader(
            reader=reader,
            landed=replace(reader, roots=(self.cache.directory,), remotes={}),
            cache=self.cache,
        )

    def load(self, *, again: bool = False) -> tuple[PackedLora, Tier]:
        loaded = self.loader.load(self.source, again=again)
        return loaded.adapter, loaded.tier

    @property
    def num_reads(self) -> int:
        assert self.place.reads == [CONFIG, WEIGHTS] * (len(self.place.reads) // 2)
        return len(self.place.reads) // 2

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
    assert setting.place.reads == []


def test_an_adapter_that_no_disk_could_take_is_served_all_the_same_and_read_once(
    world: World, tmp_path: Path
):
    setting = Setting(world, tmp_path, max_bytes=100)
    assert setting.load()[1] is Tier.SOURCE
    assert (len(setting.cache), setting.cache.num_bytes) == (0, 0)
    assert setting.num_reads == 1


def test_an_adapter_that_is_refused_is_read_once_and_not_kept(setting: Setting, world: World):
    packer = replace(setting.loader.reader.packer, max_rank=1)
    loader = replace(setting.loader, reader=replace(setting.loader.reader, packer=packer))
    with pytest.raises(AdapterRefused, match="rank"):
        loader.load(setting.source, again=False)
    assert (setting.num_reads, len(setting.cache)) == (1, 0)


def test_the_bytes_on_disk_are_known_by_digest(setting: Setting):
    setting.load()
    digest = setting.source.revision.digest
    found = sum(file.stat().st_size for file in setting.entry().iterdir())
    assert setting.loader.disk_bytes_of(digest) == found > 0
    assert setting.loader.take_disk_changes() == {digest}


def test_what_the_reader_refuses_is_refused_although_its_other_files_are_sound(setting: Setting):
    (setting.adapter / EXTRA_VOCABULARY).write_bytes(b"rows")
    with pytest.raises(AdapterRefused, match=EXTRA_VOCABULARY):
        setting.load()
    assert len(setting.cache) == 0


def test_nothing_outside_the_roots_comes_in_by_way_of_the_cache(setting: Setting, world: World):
    outside = source_of(world.adapters["wide"], uri=f"counted://{world.adapters['wide']}")
    with pytest.raises(AdapterRefused, match="outside of adapter_roots"):
        setting.loader.load(outside, again=False)
    assert len(setting.cache) == 0
