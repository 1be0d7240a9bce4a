import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_plane.errors import ModelRefused
from data_plane.models.build import load_definition, load_tokenizer
from tests.data_plane.world import World


@pytest.fixture
def directory(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.base, tmp_path / "base"))


def test_the_checkpoints_dtype_is_kept_unless_another_is_asked_for(directory: Path):
    assert load_definition(directory, None).dtype == torch.float32
    assert load_definition(directory, torch.bfloat16).dtype == torch.bfloat16


def test_missing_weights_are_refused_and_not_made_up(directory: Path):
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        load_definition(directory, None)


def test_a_truncated_checkpoint_is_refused(directory: Path):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ModelRefused, match="base: "):
        load_definition(directory, None)


def test_an_unknown_architecture_is_refused(directory: Path):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "hal9000"}))
    with pytest.raises(ModelRefused, match="hal9000"):
        load_definition(directory, None)


def test_a_model_without_a_tokenizer_is_refused(directory: Path):
    for file in directory.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelRefused, match="its tokenizer cannot be read"):
        load_tokenizer(directory)
