"""Directory changes: links, pipes and directories in place of files, shards, pickles, strange neighbours."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file

from tests.fuzz.config_changes import CONFIG
from tests.fuzz.tensor_changes import WEIGHTS

INDEX = f"{WEIGHTS}.index.json"
SHARD = "adapter_model-00001-of-00001.safetensors"


def _linked(directory: Path, rng: Random) -> str:
    name = rng.choice((CONFIG, WEIGHTS))
    target = rng.choice(
        (
            Path("/etc/passwd"),
            Path("/dev/zero"),
            Path("/proc/self/environ"),
            directory / "no",
            directory / name,
        )
    )
    (directory / name).unlink()
    (directory / name).symlink_to(target)
    return f"{name} to {target}"


def _directory_in_place(directory: Path, rng: Random) -> str:
    name = rng.choice((CONFIG, WEIGHTS))
    (directory / name).unlink()
    (directory / name).mkdir()
    return name


def _pipe_in_place(directory: Path, rng: Random) -> str:
    name = rng.choice((CONFIG, WEIGHTS))
    (directory / name).unlink()
    os.mkfifo(directory / name)
    return name


def _gone(directory: Path, rng: Random) -> str:
    name = rng.choice((CONFIG, WEIGHTS))
    (directory / name).unlink()
    return name


def _sharded(directory: Path, rng: Random) -> str:
    names = sorted(load_file(directory / WEIGHTS))
    (directory / WEIGHTS).rename(directory / SHARD)
    whole = {"weight_map": dict.fromkeys(names, SHARD)}
    index: Any = rng.choice(
        (
            whole,
            whole,
            {"weight_map": dict.fromkeys(names, f"../{directory.name}/{SHARD}")},
            {"weight_map": {}},
            {"weight_map": dict.fromkeys(names, "/etc/passwd.safetensors")},
            {"weight_map": {"a": [SHARD]}},
            {"weight_map": dict.fromkeys(names, "no.safetensors")},
            {"weight_map": [SHARD]},
            [],
            None,
            7,
            {},
            {"weight_map": {"a": SHARD, "b": 7}},
            {"weight_map": {"a": None}},
            {"weight_map": {"a": "\ud800.safetensors"}},
            {"weight_map": {"a": "\0.safetensors"}},
            {"weight_map": {"a": ".safetensors"}},
            {"weight_map": {"a": "x" * 5000 + ".safetensors"}},
            {"weight_map": {f"{i}": f"{i}.safetensors" for i in range(999)}},
            {"weight_map": {"another": SHARD}},
        )
    )
    (directory / INDEX).write_text(json.dumps(index))
    if rng.random() < 0.1:
        shutil.copy(directory / SHARD, directory / "other.safetensors")
        both = dict.fromkeys(names, SHARD) | {names[0]: "other.safetensors"}
        (directory / INDEX).write_text(json.dumps({"weight_map": both}))
    return json.dumps(index)[:60]


def _pickled(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    one = next(iter(tensors.values()))
    content = rng.choice((tensors, [1], {"a": 1}, {1: one}, {"a": one.to_sparse()}, Path("/x")))
    torch.save(content, directory / "adapter_model.bin")
    return type(content).__name__


def _strange_files(directory: Path, rng: Random) -> str:
    name = rng.choice(("new_embeddings.safetensors", "日本語", "a\nb", "é" * 80, "added_tokens.json"))
    (directory / name).write_bytes(b"x")
    return repr(name)


OF_DIRECTORY: tuple[Callable[[Path, Random], str], ...] = (
    _linked, _directory_in_place, _pipe_in_place, _gone, _sharded, _sharded, _pickled, _strange_files,
)  # fmt: skip
