import subprocess
from pathlib import Path

import pytest

from data_plane.errors import ModelRefused
from data_plane.models.digest import model_digest
from tests.data_plane.world import World


def test_base_digest_is_that_of_sha256sum(world: World):
    command = "sha256sum config.json model.safetensors | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=world.base, capture_output=True, text=True, check=True)
    assert world.runtime.base_digest == f"sha256:{printed.stdout.split()[0]}"


def test_a_directory_without_a_config_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r"config\.json: No such file"):
        model_digest(tmp_path)
