"""Adapters as objects of Python: from tensors, from a checkpoint, for warm-up; looked into and cloned."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from data_plane.adapters.packer import LoraPacker
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.peft_json import peft_config
from data_plane.errors import AdapterRefused
from tests.data_plane.batch_driver import Sequence, logits
from tests.data_plane.world import World, sha256sum_digest, source_of

Q_PROJ, K_PROJ = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


@pytest.fixture
def packer(world: World) -> LoraPacker:
    return world.runtime.reader.packer


@pytest.fixture
def narrow(world: World) -> PackedLora:
    return world.runtime.reader.read(source_of(world.adapters["narrow"]))


def test_tensors_and_options_are_the_adapter_that_their_files_are(
    world: World, packer: LoraPacker, narrow: PackedLora
):
    directory = world.adapters["narrow"]
    options = json.loads((directory / "adapter_config.json").read_text())
    packed = packer.pack(load_file(directory / "adapter_model.safetensors"), peft_config(options))
    for one, other in zip(packed.modules, narrow.modules, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (torch.equal(one.a, other.a) and torch.equal(one.b, other.b))


def test_a_checkpoint_has_the_digest_of_its_files(world: World, narrow: PackedLora):
    directory = world.adapters["narrow"]
    digest, packed = world.runtime.reader.read_directory(str(directory))
    assert digest == sha256sum_digest(directory)
    assert packed.ranks == narrow.ranks


def test_a_checkpoint_outside_of_the_roots_is_not_read(world: World, tmp_path):
    reader = replace(world.runtime.reader, roots=(tmp_path,))
    with pytest.raises(AdapterRefused, match="outside of adapter_roots"):
        reader.read_directory(str(world.adapters["narrow"]))


def test_one_projections_matrices_are_peft_s_with_the_scaling_in_b(world: World, narrow: PackedLora):
    tensors = load_file(world.adapters["narrow"] / "adapter_model.safetensors")
    weights = narrow.weights_of(Q_PROJ, world.runtime.layout)
    assert torch.equal(weights.a, tensors[f"base_model.model.{Q_PROJ}.lora_A.weight"])
    assert torch.equal(weights.b, 2.0 * tensors[f"base_model.model.{Q_PROJ}.lora_B.weight"])
    assert narrow.weights_of(K_PROJ, world.runtime.layout) is None


def test_a_clone_shares_no_memory(world: World, narrow: PackedLora):
    clone = narrow.clone()
    before = narrow.weights_of(Q_PROJ, world.runtime.layout).a.clone()
    clone.weights_of(Q_PROJ, world.runtime.layout).a.zero_()
    assert torch.equal(narrow.weights_of(Q_PROJ, world.runtime.layout).a, before)
    assert (clone.rank, clone.num_bytes) == (narrow.rank, narrow.num_bytes)


def test_a_dummy_takes_part_in_every_module_and_changes_nothing(world: World, packer: LoraPacker):
    dummy = packer.dummy(9)
    assert (dummy.rank, dummy.num_pages) == (9, 2)
    assert all(rank == 9 for ranks in dummy.ranks for rank in ranks)
    pool, pages = world.runtime.rank_pool, (6, 3)
    pool.write(pages, dummy)
    pool.bind(2, pages, dummy)
    with_dummy, without = (
        logits(world.runtime, [Sequence(0, [5, 6, 7], slot, (0, 1))]) for slot in (2, None)
    )
    pool.unbind(2)
    assert torch.equal(with_dummy, without)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_dummy_of_a_rank_that_is_not_served_is_refused(packer: LoraPacker, rank: int):
    with pytest.raises(AdapterRefused, match=f"rank {rank} is not between 1 and max_lora_rank 16"):
        packer.dummy(rank)
