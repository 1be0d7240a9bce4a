"""Settings of a worker: the one place that reads its environment.

`EngineConfig` is what the engine needs, in process or in a worker; `WorkerSettings` adds what a
worker process needs. Every field is a flag (`--max-loras`), an environment variable
(`LORAPLANE_MAX_LORAS`) and a key of the config file (`max_loras`, in the TOML file that
`LORAPLANE_CONFIG` names, default `loraplane.toml`), in this order of precedence.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

SUPPORTED_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512)

DType = Literal["auto", "float16", "bfloat16", "float32"]


class EngineConfig(BaseSettings):
    """What the engine needs. Fixed at start; a bad value stops the start."""

    model_config = SettingsConfigDict(
        env_prefix="LORAPLANE_",
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_prog_name="loraplane worker",
    )

    model: Path = Field(description="directory of the base model (Hugging Face layout)")
    served_model_name: str = Field(default="", description="its public name; default: the directory's name")
    dtype: DType = Field(default="auto", description="of weights and activations; auto: the checkpoint's")
    max_model_len: int = Field(default=2048, ge=1, description="longest prompt plus output, in tokens")
    max_num_seqs: int = Field(default=64, ge=1, description="sequences in one step")
    max_num_batched_tokens: int = Field(default=512, ge=1, description="tokens computed in one step")
    block_size: int = Field(default=16, ge=1, description="tokens in a KV-cache block")
    kv_cache_bytes: int = Field(default=1 << 30, ge=1, description="bytes of the KV cache")
    num_threads: int = Field(default=0, ge=0, description="CPU threads of a step; 0: all cores")
    enable_prefix_caching: bool = Field(default=True, description="share KV blocks of equal prefixes")

    enable_lora: bool = Field(default=True, description="serve adapters")
    max_loras: int = Field(default=1, ge=1, description="distinct adapters in one step (slots)")
    max_lora_rank: int = Field(default=16, description="largest rank served")
    lora_dtype: DType = Field(default="auto", description="of adapter weights; auto: the base's")
    max_cpu_loras: int = Field(default=0, ge=0, description="adapters in the CPU cache; 0: as max_loras")
    cpu_cache_bytes: int = Field(default=1 << 30, ge=1, description="bytes of the CPU cache")
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="directories adapters may be read from, separated by colons"
    )
    allow_bin: bool = Field(default=False, description="also read adapter_model.bin (weights only)")
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_lora_rank not in SUPPORTED_RANKS:
            raise ValueError(f"max_lora_rank: {self.max_lora_rank} must be one of {SUPPORTED_RANKS}")
        if self.max_cpu_loras and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"max_cpu_loras: {self.max_cpu_loras} must be at least max_loras ({self.max_loras})"
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
    log_level: str = Field(default="info", description="debug, info, warning or error")
