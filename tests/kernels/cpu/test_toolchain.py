from pathlib import Path

import pytest

from kernels.cpu.native import LEVELS, load_kernels
from kernels.cpu.toolchain import BuildFailed, built_library, default_cache, levels
from tests.kernels.cpu.implementations import kernels_at


def test_without_a_compiler_the_reason_is_said(tmp_path: Path):
    with pytest.raises(BuildFailed, match=r"no C\+\+ compiler \(no-such-compiler\) was found"):
        built_library(tmp_path, compiler="no-such-compiler")


def test_a_compiler_that_fails_leaves_nothing_in_the_cache(tmp_path: Path):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no room" >&2\nexit 1\n')
    compiler.chmod(0o755)
    with pytest.raises(BuildFailed, match="error: no room"):
        built_library(tmp_path / "cache", compiler=str(compiler))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_built_library_is_not_built_again():
    kernels_at("plain")
    lines: list[str] = []
    built_library(default_cache(), report=lines.append)
    assert lines == []


def test_an_unknown_level_is_refused_with_the_machines_own():
    kernels_at("plain")
    with pytest.raises(BuildFailed, match="level: avx1024 is above this machine's"):
        load_kernels(default_cache(), level="avx1024")


def test_every_level_that_is_built_can_be_named():
    assert tuple(levels()) == LEVELS[: len(levels())]
