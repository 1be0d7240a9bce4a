"""Roots: files that change while they are read are not trusted."""

from pathlib import Path

import pytest

from control_plane.errors import SourceUnavailable
from control_plane.resolvers.roots import Roots


def test_a_file_that_changes_while_it_is_read_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    reading = Roots([tmp_path]).open(path)
    assert reading.__enter__().read() == b"old"
    path.write_bytes(b"newer")
    with pytest.raises(SourceUnavailable, match="weights changed while it was read"):
        reading.__exit__(None, None, None)


def test_a_root_that_is_a_symlink_is_the_directory_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert Roots([tmp_path / "root"]).canonical(tmp_path / "root" / "x") == tmp_path / "real" / "x"
