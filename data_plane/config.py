"""Settings of a worker: the one place that reads its environment.

`EngineConfig` is what the engine needs, in process or in a worker; `WorkerSettings` adds what a
worker process needs. Every field is a flag (`--max-loras`), an environment variable
(`LORAPLANE_MAX_LORAS`) and a key of the config file (`max_loras`, in the TOML file that
`LORAPLANE_CONFIG` names, default `loraplane.toml`), in this order of precedence.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from data_plane.adapters.shares import CachePool, check_pools
from data_plane.lora_modules import LoraModule, parse_lora_modules
from data_plane.remote_config import RemoteConfig

SUPPORTED_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512)

DType = Literal["auto", "float16", "bfloat16", "float32"]
CpuKernels = Literal["auto", "torch"]
DeviceChoice = Literal["auto", "cpu", "cuda"]


class EngineConfig(RemoteConfig):
    """What the engine needs. Fixed at start; a bad value stops the start."""

    model_config = SettingsConfigDict(
        env_prefix="LORAPLANE_",
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="loraplane worker",
    )

    model: Path = Field(description="directory of the base model (Hugging Face layout)")
    served_model_name: str = Field(default="", description="its public name; default: the directory's name")
    device: DeviceChoice = Field(
        default="auto", description="where the model computes; auto: cuda where torch sees a GPU, else cpu"
    )
    dtype: DType = Field(default="auto", description="of weights and activations; auto: the checkpoint's")
    max_model_len: int = Field(default=2048, ge=1, description="longest prompt plus output, in tokens")
    max_num_seqs: int = Field(default=64, ge=1, description="sequences in one step")
    max_num_batched_tokens: int = Field(default=512, ge=1, description="tokens computed in one step")
    block_size: int = Field(
        default=0,
        ge=0,
        description="tokens in a KV-cache block; 0: the platform chooses, 16 on a CPU and on a GPU 256, of "
        "which the paged attention built into torch takes multiples",
    )
    kv_cache_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="bytes of the KV cache; on a GPU gpu_memory_utilization decides unless this is set",
    )
    max_waiting_requests: int = Field(
        default=4096, ge=1, description="requests that may wait; more are refused (each takes a few KB)"
    )
    gpu_memory_utilization: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="share of a GPU's memory to use: the KV cache takes what weights, rank pool and "
        "lora_side_bytes leave of it; unused on CPU",
    )
    enforce_eager: bool = Field(
        default=False, description="never capture CUDA graphs of decode steps; unused on CPU, which has none"
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="devices that share one model; only 1 is served yet"
    )
    num_threads: int = Field(default=0, ge=0, description="CPU threads of a step; 0: all cores")
    cpu_kernels: CpuKernels = Field(
        default="auto", description="auto: C++ where it can be built; torch: plain PyTorch"
    )
    enable_prefix_caching: bool = Field(default=True, description="share KV blocks of equal prefixes")

    enable_lora: bool = Field(default=True, description="serve adapters")
    max_loras: int = Field(default=1, ge=1, description="distinct adapters in one step (slots)")
    max_lora_rank: int = Field(default=16, description="largest rank served")
    lora_dtype: DType = Field(default="auto", description="of adapter weights; auto: the base's")
    max_cpu_loras: int = Field(default=0, ge=0, description="adapters in the CPU cache; 0: as max_loras")
    cpu_cache_bytes: int = Field(default=1 << 30, ge=1, description="bytes of the CPU cache")
    rank_pool_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of the rank pool; 0: every slot at max_lora_rank, and one more for reloads. With "
        "fewer, many slots of small ranks share the room of a few large ones",
    )
    lora_side_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="bytes of all slots beside the rank pool: embeddings, output heads, DoRA scales, biases",
    )
    fully_sharded_loras: bool = Field(
        default=False, description="shard A too under tensor parallelism, which is not served yet"
    )
    lora_modules: Annotated[tuple[LoraModule, ...], NoDecode] = Field(
        default=(),
        description="adapters loaded at start: name=path, or JSON {name, path, base_model_name}; repeatable, "
        "or a JSON list of them",
    )
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="directories adapters may be read from, separated by colons"
    )
    allow_bin: bool = Field(default=False, description="also read adapter_model.bin (weights only)")
    cache_pools: tuple[CachePool, ...] = Field(
        default=(),
        description="groups of tenants with a share of CPU cache and rank pool: a list of "
        "{name, tenants, reserved_share, max_share}; tenants that are not named share the rest",
    )
    disk_cache_bytes: int = Field(default=0, ge=0, description="bytes of the disk cache; 0: none")
    disk_cache_dir: Path | None = Field(
        default=None, description="directory of the disk cache, of this worker alone; kept over restarts"
    )
    load_threads: int = Field(default=1, ge=1, description="threads that read and pack adapters")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the config file."""
        path = os.environ.get("LORAPLANE_CONFIG", "loraplane.toml")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    @field_validator("adapter_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("lora_modules", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        return parse_lora_modules(value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_lora_rank not in SUPPORTED_RANKS:
            raise ValueError(f"max_lora_rank: {self.max_lora_rank} must be one of {SUPPORTED_RANKS}")
        if self.max_cpu_loras and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"max_cpu_loras: {self.max_cpu_loras} must be at least max_loras ({self.max_loras})"
            )
        for field, value, ok, rule in (
            ("tensor_parallel_size", self.tensor_parallel_size, self.tensor_parallel_size == 1, "must be 1"),
            ("fully_sharded_loras", True, not self.fully_sharded_loras, "must be false"),
        ):
            if not ok:
                raise ValueError(f"{field}: {value} {rule}: tensor parallelism is not served yet")
        for module in self.lora_modules:
            if module.base_model_name not in ("", self.model_name):
                raise ValueError(
                    f"lora_modules[{module.name}].base_model_name: {module.base_model_name!r} must be the "
                    f"served model ({self.model_name!r}; set served_model_name to rename it)"
                )
        if self.lora_modules and not self.enable_lora:
            raise ValueError("lora_modules: must be empty when enable_lora is false")
        check_pools(self.cache_pools)
        if bool(self.disk_cache_bytes) != (self.disk_cache_dir is not None):
            raise ValueError(
                f"disk_cache_bytes: {self.disk_cache_bytes} and disk_cache_dir: {self.disk_cache_dir} "
                "must be set together"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens: {self.max_num_batched_tokens} must be at least "
                f"max_num_seqs ({self.max_num_seqs})"
            )
        return self

    @property
    def cpu_loras(self) -> int:
        """Adapters that the CPU cache may hold."""
        return self.max_cpu_loras or self.max_loras

    @property
    def readable_roots(self) -> tuple[Path, ...]:
        """Directories that adapters may be read from: the roots, and what is loaded at start."""
        return (*self.adapter_roots, *(module.path for module in self.lora_modules))

    @property
    def model_name(self) -> str:
        """The base model's public name."""
        return self.served_model_name or self.model.resolve().name


class WorkerSettings(EngineConfig):
    """What a worker process needs beside the engine's."""

    worker_id: str = Field(default="worker-0", min_length=1, description="stable over restarts")
    worker_listen: str = Field(
        default="127.0.0.1:0", description="host:port of the worker's Inference service"
    )
    worker_advertise: str = Field(
        default="", description="address given to the control plane; default: listen"
    )
    control_plane: str = Field(default="127.0.0.1:8470", description="host:port of the control plane")
    worker_key_file: Path | None = Field(default=None, description="file with the worker's API key")
    tls_cert_file: Path | None = Field(default=None, description="PEM certificate chain of this process")
    tls_key_file: Path | None = Field(default=None, description="PEM private key of this process")
    tls_ca_file: Path | None = Field(
        default=None,
        description="PEM certificates of who is trusted; with it the control plane is reached by TLS",
    )
    tls_require_client_cert: bool = Field(
        default=False, description="refuse whoever shows no certificate of tls_ca_file (mutual TLS)"
    )
    allow_insecure: bool = Field(default=False, description="talk beyond this machine without TLS")
    metrics_listen: str = Field(
        default="127.0.0.1:0",
        description="host:port of /metrics for Prometheus, 0: any free port (it is logged); empty: none",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError(
                f"tls_cert_file: {self.tls_cert_file} and tls_key_file: {self.tls_key_file} go together"
            )
        if self.tls_require_client_cert and not (self.tls_cert_file and self.tls_ca_file):
            raise ValueError(
                "tls_require_client_cert: True needs tls_cert_file, tls_key_file and tls_ca_file"
            )
        for field, address, needed in (
            ("worker_listen", self.worker_listen, self.tls_cert_file),
            ("control_plane", self.control_plane, self.tls_ca_file),
            ("metrics_listen", self.metrics_listen, self.tls_cert_file),
        ):
            if address and not (needed or self.allow_insecure or is_loopback(address)):
                raise ValueError(
                    f"{field}: {address!r} is beyond this machine: give tls_cert_file, tls_key_file and "
                    "tls_ca_file, or set allow_insecure"
                )
        return self


def is_loopback(address: str) -> bool:
    """Whether an address of the form host:port or unix:path stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def explained(error: ValidationError) -> str:
    """Return what is wrong, a line each; without the other settings, some of which are secrets."""
    return "\n".join(map(_line, error.errors(include_url=False)))


def _line(one: ErrorDetails) -> str:
    rule = one["msg"].removeprefix("Value error, ")
    if not one["loc"]:
        return rule  # of several fields: it names them itself
    return f"{'.'.join(map(str, one['loc']))}: {one['input']!r}: {rule}"
