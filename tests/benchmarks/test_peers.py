from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.benchmarks.peers import add_alike
from tests.tiny import make_adapter, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_adapters_added_alike_compute_what_load_adapter_gives(model: Path, tmp_path: Path):
    first, second = (make_adapter(tmp_path / str(seed), model, seed=seed) for seed in (1, 2))

    def load() -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        return PeftModel.from_pretrained(base, first, adapter_name="first").eval()

    def logits(peft: PeftModel) -> torch.Tensor:
        with torch.inference_mode():
            return peft(torch.tensor([[1, 2, 3]] * 3), adapter_names=["first", "second", "__base__"]).logits

    expected, alike = load(), load()
    expected.load_adapter(second, adapter_name="second")
    add_alike(alike, "first", {"second": second})
    assert torch.equal(logits(alike), logits(expected))
    assert not torch.allclose(logits(alike)[0], logits(alike)[1])
