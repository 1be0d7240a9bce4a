"""Small PEFT adapter directories, written by the safetensors library itself."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(
    directory: Path,
    *,
    rank: int = 4,
    fill: float = 1.0,
    weights: str = "adapter_model.safetensors",
    **config: object,
) -> Path:
    """Write an adapter of one module; equal arguments give equal files."""
    directory.mkdir(parents=True, exist_ok=True)
    defaults: dict[str, object] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    (directory / "adapter_config.json").write_text(json.dumps(defaults | config))
    tensors = {
        f"{PREFIX}.lora_A.weight": np.full((rank, 16), fill, np.float32),
        f"{PREFIX}.lora_B.weight": np.full((16, rank), fill, np.float32),
    }
    save_file(tensors, directory / weights)
    return directory


def rewrite_header(file: Path, **change: object) -> None:
    """Change fields of the first tensor in a safetensors header, and nothing else."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    next(value for name, value in header.items() if name != "__metadata__").update(change)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])
