"""A configuration of the same architecture that is small enough to try in a fraction of a second.

What decides how numbers are computed stays: head size, grouped heads, every kind of layer, rope and its
scaling, soft-caps, sinks. What only decides how many there are shrinks. Windows that act within the
longest sequence shrink too, so that they act on the few tokens that are tried.
"""

import copy
from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

# Wide enough that a layer's width never equals a head's.
WIDTH = 96
MAX_LAYERS = 4
MAX_GROUP = 3  # query heads a KV head
ALIGNMENT = 16
WINDOW = 5
VOCAB_SIZE = 128
_WINDOWS = ("sliding_window", "attention_chunk_size")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_WIDTHS = ("ffn_hidden_size", "ffn_dim", "n_inner")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


def tiny_config(config: PreTrainedConfig, max_model_len: int) -> PreTrainedConfig:
    """A copy with few layers, heads, experts and words."""
    tiny = all_heads(config, max_model_len)
    _shrink_heads(tiny)
    return tiny


def all_heads(config: PreTrainedConfig, max_model_len: int) -> PreTrainedConfig:
    """A copy with few layers, experts and words, but with all heads, so as wide as it was."""
    fewer: PreTrainedConfig = copy.deepcopy(config)
    _shrink_layers(fewer)
    _set_known(fewer, _EXPERTS, 2 * (getattr(fewer, "num_experts_per_tok", None) or 2))
    _set_known(fewer, [name for name in vars(fewer) if name.startswith("vocab_size")], VOCAB_SIZE)
    inner = [name for name in vars(fewer) if name.endswith("intermediate_size")]
    _set_known(fewer, (*_WIDTHS, *inner), WIDTH)
    _set(fewer, _TOKENS)
    acting = [name for name in _WINDOWS if (getattr(fewer, name, None) or max_model_len) < max_model_len]
    _set(fewer, dict.fromkeys(acting, WINDOW))
    return fewer


def _shrink_heads(config: PreTrainedConfig) -> None:
    """Two KV heads (one where there is one), a few queries for each, the same head size."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return
    hidden = config.hidden_size
    kv_heads = next((getattr(config, name) for name in _KV_HEADS if getattr(config, name, None)), heads)
    fewer = min(kv_heads, 2)
    num_heads = min(heads // kv_heads, MAX_GROUP) * fewer
    _set_known(config, _KV_HEADS, fewer)
    config.num_attention_heads = num_heads
    width = hidden // heads * num_heads
    # Where the head size is given apart, the width is free: as products for experts want it.
    config.hidden_size = -(-width // ALIGNMENT) * ALIGNMENT if getattr(config, "head_dim", None) else width


def _shrink_layers(config: PreTrainedConfig) -> None:
    """One layer of every kind, at least two."""
    num_layers = config.num_hidden_layers
    lists = {k: v for k, v in vars(config).items() if isinstance(v, list) and len(v) == num_layers}
    kinds: dict[tuple[str, ...], int] = {}
    for layer in range(num_layers):
        kinds.setdefault(tuple(str(values[layer]) for values in lists.values()), layer)
    kept = sorted(kinds.values())[:MAX_LAYERS]
    if len(kept) == 1:
        kept = list(range(min(2, num_layers)))
    _set(config, {name: [values[layer] for layer in kept] for name, values in lists.items()})
    config.num_hidden_layers = len(kept)


def _set_known(config: PreTrainedConfig, names: Sequence[str], value: int) -> None:
    """Set those that the configuration has and that are not None or 0."""
    _set(config, {name: value for name in names if getattr(config, name, None)})


def _set(config: PreTrainedConfig, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
