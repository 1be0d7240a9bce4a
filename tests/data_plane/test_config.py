"""Settings of a worker: three ways in, and a refusal that names field, value and rule."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from data_plane.config import EngineConfig, WorkerSettings
from data_plane.errors import InvalidRequest
from data_plane.lora_modules import LoraModule, parse_lora_modules

MODULES = (LoraModule("a", Path("/x/a")), LoraModule("b", Path("/x/b"), "base"))
POOLS = [{"name": "gold", "tenants": ["acme"], "reserved_share": 0.25}]


def _another(default: object) -> object:
    """A value of the same type that is not the default."""
    match default:
        case bool():
            return not default
        case int() | float():
            return default + 1
    return "x"


def _least(field: FieldInfo) -> int | None:
    """Lower bound of a number that has one."""
    bounds = [getattr(rule, side) for rule in field.metadata for side in ("ge", "gt") if hasattr(rule, side)]
    return int(bounds[0]) if bounds else None


def _flag(name: str, value: object) -> str:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def _toml(value: object) -> str:
    match value:
        case [dict() as pool]:
            return "[{" + ", ".join(f"{key} = {json.dumps(item)}" for key, item in pool.items()) + "}]"
    return json.dumps(value)


@pytest.fixture(autouse=True)
def _no_config_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAPLANE_MODEL", "base")


def from_flags(*flags: str) -> WorkerSettings:
    return WorkerSettings(_cli_parse_args=list(flags))


@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_the_same_names_work_as_flag_environment_variable_and_config_file(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    flags: list[str] = []
    if way == "flag":
        flags = ["--max-loras", "3", "--max-cpu-loras", "6", "--max-waiting-requests", "7", "--enforce-eager"]
        flags += [
            "--lora-modules",
            "a=/x/a",
            "--lora-modules",
            '{"name":"b","path":"/x/b","base_model_name":"base"}',
        ]
        flags += ["--cache-pools", json.dumps(POOLS), "--lora-dtype", "float16"]
    elif way == "environment":
        for name, value in {
            "MAX_LORAS": "3", "MAX_CPU_LORAS": "6", "MAX_WAITING_REQUESTS": "7", "ENFORCE_EAGER": "true",
            "LORA_MODULES": '["a=/x/a", {"name": "b", "path": "/x/b", "base_model_name": "base"}]',
            "CACHE_POOLS": json.dumps(POOLS), "LORA_DTYPE": "float16",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"LORAPLANE_{name}", value)
    else:
        (tmp_path / "loraplane.toml").write_text(
            "max_loras = 3\nmax_cpu_loras = 6\nmax_waiting_requests = 7\nenforce_eager = true\n"
            'lora_dtype = "float16"\n'
            'lora_modules = ["a=/x/a", {name = "b", path = "/x/b", base_model_name = "base"}]\n'
            '[[cache_pools]]\nname = "gold"\ntenants = ["acme"]\nreserved_share = 0.25\n'
        )
    settings = from_flags(*flags)
    assert (settings.max_loras, settings.cpu_loras, settings.max_waiting_requests) == (3, 6, 7)
    assert (settings.enforce_eager, settings.lora_dtype) == (True, "float16")
    assert settings.lora_modules == MODULES
    assert [(pool.name, pool.tenants, pool.reserved_share) for pool in settings.cache_pools] == [
        ("gold", ("acme",), 0.25)
    ]


# A value that differs from the default, where one more than it, the contrary or a text would not do.
OTHERS: dict[str, object] = {
    "device": "cpu", "dtype": "float32", "lora_dtype": "float16", "cpu_kernels": "torch",
    "log_level": "error",
    "max_lora_rank": 64, "gpu_memory_utilization": 0.5, "model": "other", "tensor_parallel_size": 1,
    "fully_sharded_loras": False, "worker_listen": "127.0.0.1:7", "control_plane": "localhost:7",
    "metrics_listen": "", "lora_modules": ["a=/x/a"], "adapter_roots": "/x:/y", "cache_pools": POOLS,
}  # fmt: skip
# A setting that may be given only with others.
COMPANIONS: dict[str, dict[str, object]] = {
    "max_num_seqs": {"max_num_batched_tokens": 1000},
    "disk_cache_bytes": {"disk_cache_dir": "/x"},
    "disk_cache_dir": {"disk_cache_bytes": 1},
    "s3_access_key_id": {"s3_secret_access_key": "x"},
    "s3_secret_access_key": {"s3_access_key_id": "x"},
    "tls_cert_file": {"tls_key_file": "/x"},
    "tls_key_file": {"tls_cert_file": "/x"},
    "tls_require_client_cert": {"tls_cert_file": "/x", "tls_key_file": "/x", "tls_ca_file": "/x"},
}
FIELDS = WorkerSettings.model_fields
BOUNDED = [name for name, field in FIELDS.items() if _least(field) is not None]


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_a_flag_an_environment_variable_and_a_key_of_the_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    given = {name: OTHERS.get(name, _another(FIELDS[name].default))}
    given |= COMPANIONS.get(name, {})
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    by_flag = from_flags(*(_flag(key, value) for key, value in given.items()))
    file = tmp_path / "loraplane.toml"
    file.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in given.items()))
    if name != "model":  # which the fixture gives by the environment
        assert from_flags() == by_flag
    file.unlink()
    for key, text in texts.items():
        monkeypatch.setenv(f"LORAPLANE_{key.upper()}", text)
    assert from_flags() == by_flag
    monkeypatch.undo()
    if name not in ("model", "tensor_parallel_size", "fully_sharded_loras"):
        assert getattr(by_flag, name) != FIELDS[name].default


@pytest.mark.parametrize("name", BOUNDED)
def test_a_number_below_its_least_is_refused_by_name_and_value(name: str):
    value = _least(FIELDS[name]) - 1
    with pytest.raises(
        ValidationError, match=rf"{name}\n.*greater than (or equal to )?\d.*input_value={value}"
    ):
        WorkerSettings(**{name: value})


def test_the_defaults_are_those_of_the_contract():
    config = EngineConfig()
    assert (config.max_loras, config.max_lora_rank, config.cpu_loras, config.lora_dtype) == (1, 16, 1, "auto")
    assert (config.tensor_parallel_size, config.fully_sharded_loras, config.enable_lora) == (1, False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loras": 0}, r"max_loras\n.*greater than or equal to 1.*input_value=0"),
        ({"max_lora_rank": 17}, r"max_lora_rank: 17 must be one of \(1, 2, 4, 8, 16,"),
        ({"max_loras": 4, "max_cpu_loras": 3}, r"max_cpu_loras: 3 must be at least max_loras \(4\)"),
        ({"lora_dtype": "int8"}, r"lora_dtype\n.*'auto', 'float16', 'bfloat16' or 'float32'.*'int8'"),
        ({"max_num_batched_tokens": 8}, r"max_num_batched_tokens: 8 must be at least max_num_seqs \(64\)"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization\n.*less than or equal to 1.*1\.5"),
        ({"tensor_parallel_size": 2}, r"tensor_parallel_size: 2 must be 1: tensor parallelism is not served"),
        ({"tensor_parallel_size": 0}, r"tensor_parallel_size\n.*greater than or equal to 1"),
        ({"fully_sharded_loras": True}, r"fully_sharded_loras: True must be false"),
        ({"max_waiting_requests": 0}, r"max_waiting_requests\n.*greater than or equal to 1"),
        ({"disk_cache_bytes": 1}, r"disk_cache_bytes: 1 and disk_cache_dir: None must be set together"),
        ({"lora_modules": '{"name":"a","path":"/a","base_model_name":"other"}'},
         r"lora_modules\[a\]\.base_model_name: 'other' must be the served model \('base'"),
        ({"lora_modules": "a=/a", "enable_lora": False}, r"lora_modules: must be empty when enable_lora"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_with_field_value_and_rule(options, message):
    with pytest.raises(ValidationError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize(
    "value", ["pirate", "=/a", "a=", "{broken", '{"name":"a"}', '{"name":"a","path":"/a","rank":8}', 7]
)
def test_an_adapter_in_another_form_is_refused(value):
    with pytest.raises(InvalidRequest, match=r"lora_modules: .* must be name=path"):
        parse_lora_modules(value)


def test_two_adapters_of_one_name_are_refused():
    with pytest.raises(InvalidRequest, match="different names"):
        parse_lora_modules(["a=/x", "a=/y"])
