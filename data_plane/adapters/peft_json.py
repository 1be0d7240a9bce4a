"""adapter_config.json as PEFT writes it: what is understood, and a refusal for all the rest.

Every key is either used, known to matter only in training, or refused by name: an option that is
silently ignored would compute other numbers than the adapter was trained for.
"""

import json
from dataclasses import dataclass

from data_plane.adapters.patterns import why_invalid, why_unsafe
from data_plane.adapters.peft_config import PeftConfig, layer_expression, suffix_expression
from data_plane.errors import AdapterRefused

FILE_NAME = "adapter_config.json"
MAX_ALPHA = 1e9

# They change how weights are found in training, not what the saved weights compute.
TRAINING_ONLY = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "eva_config",
        "qalora_group_size",
        "fan_in_fan_out",
    }
)
TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# Initialisations that leave the base weights alone; PiSSA, OLoRA and their kin replace them.
INNOCENT_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# Options that change the computation and are not served: absent, or one of ABSENT, only.
NOT_SERVED = frozenset(
    {
        "megatron_config",
        "trainable_token_indices",
        "loftq_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",
        "alora_invocation_tokens",
        "use_qalora",
        "monteclora_config",
        "layer_replication",
        "target_parameters",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
    }
)
ABSENT: tuple[object, ...] = (None, False, "", [], {})
USED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "bias",
        "init_lora_weights",
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "ensure_weight_tying",
    }
)


def parse_peft_config(data: bytes) -> PeftConfig:
    """Parse the bytes of an adapter_config.json; refuse what is unknown, unsupported or ill-typed."""
    try:
        raw = json.loads(data.decode())  # UTF-8 alone, as PEFT reads it: json would guess
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"{FILE_NAME} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise AdapterRefused(f"{FILE_NAME} is not a JSON object")
    return peft_config(raw)


def peft_config(raw: dict[str, object]) -> PeftConfig:
    """The options as PEFT's `LoraConfig.to_dict` gives them; refuse the same."""
    _refuse_options(raw)
    fields = _Fields(raw)
    config = PeftConfig(
        r=fields.rank("r", raw.get("r")),
        lora_alpha=fields.number("lora_alpha", raw.get("lora_alpha")),
        use_rslora=fields.flag("use_rslora"),
        rank_pattern={k: fields.rank(f"rank_pattern.{k}", v) for k, v in fields.mapping("rank_pattern")},
        alpha_pattern={k: fields.number(f"alpha_pattern.{k}", v) for k, v in fields.mapping("alpha_pattern")},
        target_modules=fields.names("target_modules"),
        exclude_modules=fields.names("exclude_modules"),
        layers_to_transform=fields.layers("layers_to_transform"),
        layers_pattern=fields.list("layers_pattern"),
        use_dora=fields.flag("use_dora"),
        lora_bias=fields.flag("lora_bias"),
        modules_to_save=fields.list("modules_to_save"),
        ensure_weight_tying=fields.flag("ensure_weight_tying"),
    )
    if not config.target_modules:
        raise AdapterRefused(f"{FILE_NAME}: target_modules names no module")
    if config.use_dora and config.lora_bias:
        raise AdapterRefused(f"{FILE_NAME}: lora_bias=True is not supported together with use_dora=True")
    if config.layers_pattern and not config.layers_to_transform:  # as PEFT refuses it
        raise AdapterRefused(
            f"{FILE_NAME}: layers_pattern {list(config.layers_pattern)} needs layers_to_transform"
        )
    if "" in config.modules_to_save:
        raise AdapterRefused(f"{FILE_NAME}: modules_to_save has an empty name")
    _refuse_bad_patterns(config)
    return config


def _refuse_options(raw: dict[str, object]) -> None:
    if raw.get("peft_type") != "LORA":
        raise AdapterRefused(f"{FILE_NAME}: peft_type {raw.get('peft_type')!r} is not LORA")
    for name, value in raw.items():
        # Not by being false: to PEFT 0 is a token's index.
        if name in NOT_SERVED and not any(value == one and type(value) is type(one) for one in ABSENT):
            raise AdapterRefused(f"{FILE_NAME}: {name}={value!r} is not supported")
        if name not in NOT_SERVED | TRAINING_ONLY | USED:
            raise AdapterRefused(f"{FILE_NAME}: option {name!r} is unknown")
    _refuse_unreadable(raw)
    if raw.get("bias", "none") != "none":
        raise AdapterRefused(f"{FILE_NAME}: bias={raw['bias']!r} is not supported, only 'none'")
    if raw.get("init_lora_weights") not in INNOCENT_INITS:
        raise AdapterRefused(
            f"{FILE_NAME}: init_lora_weights={raw['init_lora_weights']!r} changes the base weights; "
            "convert the adapter to plain LoRA"
        )


def _refuse_unreadable(raw: dict[str, object]) -> None:
    """What matters in training only, but what PEFT itself would not read."""
    task, dropout = raw.get("task_type"), raw.get("lora_dropout", 0.0)
    if task is not None and task not in TASK_TYPES:
        raise _wrong("task_type", task, f"must be null or one of {', '.join(TASK_TYPES)}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise _wrong("lora_dropout", dropout, "must be a number from 0 to 1")


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to the raw object; every refusal names field, value and rule."""

    raw: dict[str, object]

    def rank(self, name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(name, value, "must be a whole number of at least 1")
        return value

    def number(self, name: str, value: object) -> float:
        # Compared, not converted: a whole number of JSON may be too large for a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
            raise _wrong(name, value, f"must be a number of at most {MAX_ALPHA:g} in size")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, bool):
            raise _wrong(name, value, "must be true or false")
        return bool(value)

    def mapping(self, name: str) -> list[tuple[str, object]]:
        value = self.raw.get(name, {})
        if not isinstance(value, dict):
            raise _wrong(name, value, "must be an object")
        return list(value.items())

    def names(self, name: str) -> str | tuple[str, ...]:
        value = self.raw.get(name) or ()
        return value if isinstance(value, str) else self.list(name)

    def list(self, name: str) -> tuple[str, ...]:
        value = self.raw.get(name) or ()
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise _wrong(name, value, "must be a string or a list of strings")
        return tuple(items)

    def layers(self, name: str) -> tuple[int, ...]:
        value = self.raw.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise _wrong(name, value, "must be a whole number or a list of them")
        return tuple(items)


def _wrong(name: str, value: object, rule: str) -> AdapterRefused:
    return AdapterRefused(f"{FILE_NAME}: {name} {value!r} {rule}")


def _refuse_bad_patterns(config: PeftConfig) -> None:
    suffixes = [*config.rank_pattern, *config.alpha_pattern]
    whole = [names for names in (config.target_modules, config.exclude_modules) if isinstance(names, str)]
    for pattern in (*suffixes, *config.layers_pattern, *whole):
        _refuse(pattern, why_unsafe(pattern))
    # These are run as parts of longer ones, where flags or a group of the same name may not be.
    for pattern in suffixes:
        _refuse(pattern, why_invalid("(?:)" + suffix_expression(pattern)))
    for pattern in config.layers_pattern:
        _refuse(pattern, why_invalid("(?:)" + layer_expression(pattern)))


def _refuse(pattern: str, reason: str | None) -> None:
    if reason:
        raise AdapterRefused(f"{FILE_NAME}: {pattern!r} {reason}")
