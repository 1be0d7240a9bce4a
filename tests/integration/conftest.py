"""A tiny model, eight adapters of it and their oracle, shared by the tests of this folder."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.stack import Stack
from tests.oracle import PeftOracle
from tests.tiny import make_adapter, make_model

NUM_ADAPTERS = 8
TARGETS = (
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("k_proj", "down_proj"),
)


@dataclass(frozen=True, slots=True)
class Tiny:
    """A directory with a model and, under `adapters`, two revisions of each of eight adapters."""

    model: Path
    adapters: Path
    oracle: PeftOracle

    def source(self, number: int, revision: int = 1) -> Path:
        """Directory of one revision of one adapter."""
        return self.adapters / f"a{number}-v{revision}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    directory = tmp_path_factory.mktemp("tiny")
    model = make_model(directory / "tiny-llama")
    made = Tiny(model, directory / "adapters", PeftOracle(model))
    for number in range(NUM_ADAPTERS):
        for revision in (1, 2):
            make_adapter(
                made.source(number, revision),
                model,
                seed=10 * number + revision,
                rank=(4, 8, 16)[number % 3],
                target_modules=TARGETS[number % len(TARGETS)],
            )
    return made


@pytest.fixture
def stack(tiny, tmp_path):
    """A running control plane and worker: fp32, two slots, room for four adapters in RAM."""
    with Stack(
        tmp_path,
        model=tiny.model,
        adapter_roots=[tiny.adapters, tmp_path / "uploads"],
        max_loras=2,
        max_cpu_loras=4,
        max_lora_rank=16,
        max_model_len=256,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        kv_cache_bytes=4 << 20,
        num_threads=1,
    ) as running:
        yield running
