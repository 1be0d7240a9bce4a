"""The directory of an adapter: what in it is no file is refused, and nothing stays open."""

import os
from pathlib import Path

import pytest

from data_plane.adapters.files import AdapterDirectory
from data_plane.errors import AdapterRefused


def test_a_directory_in_place_of_a_file_is_refused_and_not_left_open(tmp_path: Path):
    (tmp_path / "adapter_config.json").mkdir()
    directory = AdapterDirectory(str(tmp_path), [tmp_path])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(AdapterRefused, match=r"adapter_config\.json is not a regular file"):
            directory.read("adapter_config.json", max_bytes=100)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("uri", ["file://[", "//[x/adapter", "file:///a%00b"])
def test_a_uri_that_is_none_is_refused(tmp_path: Path, uri: str):
    with pytest.raises(AdapterRefused):
        AdapterDirectory(uri, [tmp_path])
