"""Worker: what becomes of an adapter directory in a worker, and what PEFT makes of the same.

Owns one engine on a tiny model; an adapter is loaded, used and removed again.
"""

import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data_plane.adapters.reader import PeftReader
from data_plane.engine.local import Choice, LocalEngine
from data_plane.errors import AdapterRefused, AdapterUnreadable
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.world import World, tiny_config
from tests.fuzz.config_changes import CONFIG
from tests.fuzz.directory_changes import INDEX
from tests.fuzz.tensor_changes import WEIGHTS
from tests.oracle import PeftOracle

TOLERANCE = 1e-4  # relative to the largest logit of the row
PROMPT_IDS = [5, 6, 7, 8, 9]
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=20)
DRAWN = SamplingParams(temperature=1, top_p=0.9, min_p=0.01, max_tokens=3, seed=1, logprobs=1)
_INTERNALS = re.compile(r"Traceback|File \"|\.py\b|site-packages|<class '|object at 0x|root:x:")
BIN = "adapter_model.bin"
MAX_FACTOR = 1e18  # a product of two such numbers fits fp32


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a directory: how it ended, and what is wrong with that."""

    ending: str
    objection: str | None = None


class FuzzedWorker:
    """One engine, for many adapters one after another."""

    def __init__(self, world: World, root: Path, *, allow_bin: bool = False) -> None:
        self._model = world.base
        config = tiny_config(world.base, root, cpu_kernels="torch", max_loras=2, allow_bin=allow_bin)
        reader = replace(world.runtime.reader, roots=(root,), allow_bin=allow_bin)
        self.reader: PeftReader = reader
        self._engine = LocalEngine(config, runtime=replace(world.runtime, reader=reader))
        self._base = self._tokens(None)

    def close(self) -> None:
        self._engine.close()

    def judge(self, directory: Path) -> Verdict:
        """Load the directory and use it; a refusal is as good as what PEFT computes, nothing else is."""
        try:
            self._engine.add_adapter("fuzzed", directory)
        except (AdapterRefused, AdapterUnreadable) as error:
            return Verdict(type(error).__name__, _objection_to_text(str(error)))
        except Exception as error:
            return Verdict("raised", f"{type(error).__name__}: {error}"[:500])
        try:
            return Verdict("served", self._objection_to_use(directory))
        finally:
            self._engine.remove_adapter("fuzzed")

    def check_well(self) -> None:
        """Raise AssertionError unless the base model answers as ever and nothing is held."""
        assert self._tokens(None) == self._base
        assert not self._engine.status().adapters

    def _objection_to_use(self, directory: Path) -> str | None:
        ours = self._choice("fuzzed", GREEDY)
        self._choice("fuzzed", DRAWN)
        if self._tokens(None) != self._base:
            return "the base model answers differently beside it"
        if _overflows(directory):
            return None
        try:
            logits = _expected(self._model, directory, [*PROMPT_IDS, *ours.token_ids[:-1]])
        except Exception as error:
            return f"PEFT does not read it: {type(error).__name__}: {error}"[:500]
        return _difference(ours, logits[len(PROMPT_IDS) - 1 :])

    def _tokens(self, adapter: str | None) -> tuple[int, ...]:
        return self._choice(adapter, GREEDY).token_ids

    def _choice(self, adapter: str | None, sampling: SamplingParams) -> Choice:
        (answer,) = self._engine.generate([PROMPT_IDS], sampling, adapter=adapter)
        return answer.choices[0]


def _objection_to_text(text: str) -> str | None:
    leak = _INTERNALS.search(text)
    return f"tells internals ({leak[0]}): {text}"[:500] if leak else None


def _overflows(directory: Path) -> bool:
    """Whether the order of sums decides if fp32 holds them: then PEFT's numbers are its own."""
    whole = directory / WEIGHTS
    files = [whole] if whole.exists() else sorted(directory.glob("*.safetensors"))
    tensors = (tensor for file in files for tensor in load_file(file).values())
    return any(tensor.numel() and float(tensor.abs().max()) > MAX_FACTOR for tensor in tensors)


def _expected(model: Path, directory: Path, token_ids: list[int]) -> torch.Tensor:
    """PEFT's logits; from one safetensors file, because it reads no shards and the oracle no pickle."""
    whole = directory
    if (directory / BIN).exists() and not (directory / WEIGHTS).exists():
        whole = directory.with_name("converted")
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        shutil.copy(directory / CONFIG, whole)
        tensors = torch.load(directory / BIN, weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, whole / WEIGHTS)
    elif (directory / INDEX).exists() and not (directory / WEIGHTS).exists():
        whole = directory.with_name("whole")
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        shutil.copy(directory / CONFIG, whole)
        shards = (load_file(file) for file in sorted(directory.glob("*.safetensors")))
        save_file({name: tensor for shard in shards for name, tensor in shard.items()}, whole / WEIGHTS)
    # One oracle an adapter: PEFT cannot hold all kinds side by side.
    return PeftOracle(model).logits(token_ids, whole)


def _difference(ours: Choice, logits: torch.Tensor) -> str | None:
    """Why the log-probabilities are not PEFT's; a PEFT that is not finite has nothing to compare with."""
    if not torch.isfinite(logits).all():
        return None
    expected = torch.log_softmax(logits, dim=-1)
    for position, entry in enumerate(ours.logprobs):
        scale = float(logits[position].abs().max()) or 1.0
        for one in entry.top:
            error = abs(one.logprob - float(expected[position, one.token_id])) / scale
            if not math.isfinite(one.logprob) or error > TOLERANCE:
                known = float(expected[position, one.token_id])
                return f"token {position}: log-probability {one.logprob}, by PEFT {known}"
    return None
