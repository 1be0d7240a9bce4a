"""A configuration of the same architecture that is small enough to try in a fraction of a second.

What decides how numbers are computed stays: head size, query heads a KV head, every kind of layer, rope,
soft-caps. What only decides how many there are shrinks.
"""

import copy

from transformers import PreTrainedConfig

# Wide enough that a layer's width never equals a head's.
WIDTH = 96
MAX_LAYERS = 4
WINDOW = 5
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_WIDTHS = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "moe_intermediate_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with few layers, heads, experts and words."""
    tiny: PreTrainedConfig = copy.deepcopy(config)
    _shrink_heads(tiny)
    _shrink_layers(tiny)
    _set(tiny, {name: WIDTH for name in _WIDTHS if getattr(tiny, name, None)})
    chosen = getattr(tiny, "num_experts_per_tok", None) or 2
    _set(tiny, {name: 2 * chosen for name in _EXPERTS if getattr(tiny, name, None)})
    _set(tiny, {"vocab_size": 128, **_TOKENS})
    if getattr(tiny, "sliding_window", None):
        # Shorter than the sequences that are tried, or the window would not be.
        tiny.sliding_window = WINDOW
    return tiny


def _shrink_heads(config: PreTrainedConfig) -> None:
    """Two KV heads (one where there is one), as many queries for each as before, the same head size."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    kv_heads = next((getattr(config, name) for name in _KV_HEADS if getattr(config, name, None)), heads)
    fewer = min(kv_heads, 2)
    num_heads = heads // kv_heads * fewer
    _set(config, {name: fewer for name in _KV_HEADS if getattr(config, name, None)})
    config.num_attention_heads = num_heads
    config.hidden_size = hidden // heads * num_heads


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


def _set(config: PreTrainedConfig, values: dict[str, object]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
