"""Config changes: what is done to an adapter's config, as JSON values and as a file."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

CONFIG = "adapter_config.json"

# What JSON can hold, and what Python's reader takes beside it.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 8, 10**6, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", " ", "LORA", "all-linear", "q_proj", "none", "gaussian", "../..", "\0", "\ud800",
    "é" * 300, "x" * 10_000, [], ["q_proj"], ["q_proj", 1], [None], [[]], [""], {}, {"q_proj": 4},
    {"q_proj": "4"}, {"": 1}, {"q_proj": True}, {"q_proj": 10**30}, {"q_proj": -1}, {"layers.0.*": 2}, [0],
    [1], [99], [-1], [True],
)  # fmt: skip
# Regular expressions where names are wanted.
_PATTERNS = (
    "(?i)q_proj", "(?P<layer>q)_proj", "q_proj)|(v_proj", "(", "[", "*", "\\1", "(?=q)q_proj", "(a+)+b",
    ".*" * 9, "(?#", "q_proj$", "^q_proj", "(?s:.)*", "\\d+", "(?(1)a|b)", "(?P=layer)", "(?<!x)q_proj",
    "a{1,99999999999}", ".*\\.(q|v)_proj", "(?x)q _ proj", "q_proj|", "\\Z", "[[:alpha:]]", "\\N{BULLET}q",
    "|" * 500,
)  # fmt: skip
_KEYS = (
    "r", "lora_alpha", "peft_type", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "use_dora", "lora_bias", "bias", "modules_to_save", "layers_to_transform",
    "layers_pattern", "init_lora_weights", "fan_in_fan_out", "base_model_name_or_path", "task_type",
    "peft_version", "layer_replication", "lora_dropout", "target_parameters", "trainable_token_indices",
    "megatron_config", "ensure_weight_tying", "no_such_option",
)  # fmt: skip


def _option(directory: Path, rng: Random) -> str:
    key = rng.choice(_KEYS)
    value = rng.choice(_VALUES if rng.random() < 0.7 else _PATTERNS)
    _write_config(directory, _config(directory) | {key: value})
    return f"{key}={value!r:.60}"


def _pattern(directory: Path, rng: Random) -> str:
    key, pattern = rng.choice(("rank_pattern", "alpha_pattern", "layers_pattern")), rng.choice(_PATTERNS)
    value = [pattern] if key == "layers_pattern" else {pattern: rng.choice((1, 4, 8))}
    _write_config(directory, _config(directory) | {key: value, "layers_to_transform": [0, 1]})
    return f"{key}={value!r:.60}"


def _option_taken_away(directory: Path, rng: Random) -> str:
    config = _config(directory)
    key = rng.choice(sorted(config))
    del config[key]
    _write_config(directory, config)
    return key


def _config_as_bytes(directory: Path, rng: Random) -> str:
    content = (directory / CONFIG).read_bytes()
    broken = rng.choice(
        (
            b"",
            b"[]",
            b"null",
            b'"x"',
            b"7",
            b"{",
            b"[" * 100_000,
            b'{"r":' * 50_000,
            content[:-3],
            content * 2,
            b"\xff\xfe" + content,
            b"\xef\xbb\xbf" + content,
            content.decode().encode("utf-16"),
            content.replace(b'"r"', b'"r": 1' + b"0" * 5000 + b', "x"', 1),
            content.replace(b"{", b'{"r": 2, "r": 4, ', 1),
            rng.randbytes(200),
            b" " * (5 << 20) + content,
        )
    )
    (directory / CONFIG).write_bytes(broken)
    return repr(broken[:20])


OF_OPTIONS: tuple[Callable[[Path, Random], str], ...] = (_option, _option, _pattern, _option_taken_away)
OF_FILE: tuple[Callable[[Path, Random], str], ...] = (_config_as_bytes,)


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / CONFIG).read_bytes())
    except (ValueError, RecursionError):
        return {"peft_type": "LORA"}
    return config if isinstance(config, dict) else {"peft_type": "LORA"}


def _write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / CONFIG).write_text(json.dumps(config))
