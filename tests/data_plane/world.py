"""A tiny base model, three PEFT adapters of different shapes, and a runtime that may read them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.adapters.revision import AdapterSource, Revision
from data_plane.config import EngineConfig
from data_plane.engine.runtime import Runtime, build_runtime
from tests.tiny import make_adapter, make_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class World:
    root: Path
    base: Path
    adapters: dict[str, Path]
    runtime: Runtime

    def load(self, name: str, *, slot: int, pages: tuple[int, ...]) -> None:
        """Read an adapter and bind it, as the life cycle would."""
        packed = self.runtime.reader.read(source_of(self.adapters[name]))
        self.runtime.rank_pool.write(pages[: packed.num_pages], packed)
        self.runtime.rank_pool.bind(slot, pages[: packed.num_pages], packed)


def make_world(root: Path) -> World:
    """All projections; two of them at an odd rank; ranks and alphas by pattern with rsLoRA."""
    base = make_model(root / "base")
    adapters = {
        "wide": make_adapter(root / "wide", base, seed=1, target_modules=ALL),
        "narrow": make_adapter(root / "narrow", base, seed=2, rank=3),
        "patterned": make_adapter(
            root / "patterned",
            base,
            seed=3,
            rank=12,
            target_modules=ALL,
            rank_pattern={"k_proj": 5, "layers.1.mlp.up_proj": 16},
            alpha_pattern={"o_proj": 3},
            use_rslora=True,
        ),
    }
    return World(root, base, adapters, build_runtime(tiny_config(base, root)))


def tiny_config(base: Path, root: Path, **overrides: Any) -> EngineConfig:
    """Settings that fit the tiny model."""
    fields: dict[str, Any] = {
        "model": base,
        "dtype": "float32",
        "block_size": 4,
        "kv_cache_bytes": 1 << 20,
        "max_loras": 3,
        "max_lora_rank": 16,
        "adapter_roots": (root,),
        "num_threads": 1,
    }
    return EngineConfig(**(fields | overrides))


def source_of(directory: Path, *, uri: str | None = None) -> AdapterSource:
    """The directory as a revision, with the digest of the files it has now."""
    return AdapterSource(
        Revision("acme", directory.name, 1, sha256sum_digest(directory)), uri or str(directory)
    )


def sha256sum_digest(directory: Path) -> str:
    """The digest of registry.proto, written down a second time."""
    names = sorted(
        file.name
        for file in directory.iterdir()
        if file.name == "adapter_config.json" or file.name.startswith("adapter_model")
    )
    lines = [f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
