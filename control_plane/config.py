"""Settings of a control plane: the one place that reads its environment.

Every field is a flag (`--redis-url`), an environment variable (`LORAPLANE_REDIS_URL`) and a key of
the config file (`redis_url`, in the TOML file that `LORAPLANE_CONFIG` names, default
`loraplane.toml`), in this order of precedence.
"""

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

from control_plane.addresses import is_loopback
from control_plane.lora_modules import LoraModule, parse_lora_modules
from control_plane.quotas.types import Limits
from control_plane.resolvers.settings import ResolverSettings
from control_plane.store.link import leaves_in_plain_text, masked


class ControlSettings(ResolverSettings):
    """What a control plane needs. Fixed at start; a bad value stops the start."""

    model_config = SettingsConfigDict(
        env_prefix="LORAPLANE_",
        frozen=True,
        extra="ignore",
        cli_kebab_case=True,
        cli_prog_name="loraplane control-plane",
    )

    listen: str = Field(default="127.0.0.1:8470", description="host:port of the gRPC server")
    state_dir: Path = Field(default=Path(".loraplane"), description="where keys and the embedded Valkey are")
    redis_url: str = Field(
        default="",
        repr=False,
        description="rediss:// (TLS), unix://, or redis:// on this machine; default: a Valkey of ours",
    )
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="directories adapters may be read from, separated by colons"
    )

    allow_adapter_changes: bool = Field(
        default=False,
        description="callers with an admin or tenant-admin key may register, publish, load, evict, … "
        "adapters while this runs; off: only lora_modules and resolve_on_request add any",
    )
    resolve_on_request: bool = Field(
        default=False,
        description="a request for an unknown adapter of its own tenant has the resolvers look for it",
    )
    lora_modules: Annotated[tuple[LoraModule, ...], NoDecode] = Field(
        default=(),
        description="adapters registered at start: [tenant/]name=source, or JSON {name, path, "
        "base_model_name}; repeatable, or a JSON list of them",
    )

    num_holders: int = Field(default=1, ge=0, description="workers that are offered each adapter")
    worker_lease_ttl_s: float = Field(default=3.0, gt=0, description="a silent worker is lost after this")
    leader_lease_ttl_s: float = Field(
        default=3.0, gt=0, description="a silent leader, or reader of a source, is replaced after this"
    )
    command_timeout_s: float = Field(default=60.0, gt=0, description="a worker's time to answer a command")
    grant_ttl_s: float = Field(default=30.0, gt=0, description="a worker must begin a request within this")
    grant_key_life_s: float = Field(
        default=86_400.0, gt=0, description="a key signs grants for so long, then the next one does"
    )
    reservation_ttl_s: float = Field(default=60.0, gt=0, description="quota of a crashed request comes back")
    shutdown_grace_s: float = Field(default=10.0, ge=0, description="running requests may end within this")

    # Of tenants without limits of their own; absent is unlimited.
    default_requests_per_minute: int | None = Field(default=None, ge=0)
    default_tokens_per_minute: int | None = Field(default=None, ge=0)
    default_concurrent_requests: int | None = Field(default=None, ge=0)
    default_registered_adapters: int | None = Field(default=None, ge=0)
    default_adapter_bytes: int | None = Field(default=None, ge=0)
    default_resident_slots: int | None = Field(default=None, ge=0)
    default_cold_loads_per_minute: int | None = Field(default=None, ge=0)
    store_loss_requests_per_minute: int = Field(
        default=0,
        ge=0,
        description="requests of each tenant that each replica lets through while Redis is away; 0: none",
    )
    store_loss_max_s: float = Field(
        default=300.0, gt=0, description="and for so long, by what was read of keys and adapters before"
    )

    admin_key_file: Path | None = Field(default=None, description="default: admin.key in the state dir")
    worker_key_file: Path | None = Field(default=None, description="default: worker.key in the state dir")
    tls_cert_file: Path | None = Field(default=None, description="PEM certificate chain of this process")
    tls_key_file: Path | None = Field(default=None, description="PEM private key of this process")
    tls_ca_file: Path | None = Field(
        default=None, description="PEM certificates of who is trusted; with it workers are reached by TLS"
    )
    tls_require_client_cert: bool = Field(
        default=False, description="refuse whoever shows no certificate of tls_ca_file (mutual TLS)"
    )
    tls_worker_name: str = Field(
        default="", description="name in the workers' certificates; default: the host of their address"
    )
    allow_insecure: bool = Field(
        default=False, description="listen and reach Redis beyond this machine without TLS"
    )
    metrics_listen: str = Field(
        default="127.0.0.1:0",
        description="host:port of /metrics for Prometheus, 0: any free port (it is logged); empty: none",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info")
    log_format: Literal["console", "json"] = Field(default="console")

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
    def _split_paths(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("lora_modules", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        return parse_lora_modules(value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grant_key_life_s < 2 * self.worker_lease_ttl_s:
            raise ValueError(
                f"grant_key_life_s: {self.grant_key_life_s:g} must be at least twice worker_lease_ttl_s "
                f"({self.worker_lease_ttl_s:g}): workers learn of a key before it signs"
            )
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError(
                f"tls_cert_file: {self.tls_cert_file} and tls_key_file: {self.tls_key_file} go together"
            )
        if self.tls_require_client_cert and not (self.tls_cert_file and self.tls_ca_file):
            raise ValueError(
                "tls_require_client_cert: True needs tls_cert_file, tls_key_file and tls_ca_file"
            )
        for field, address in (("listen", self.listen), ("metrics_listen", self.metrics_listen)):
            if not address or self.tls_cert_file or self.allow_insecure or is_loopback(address):
                continue
            raise ValueError(
                f"{field}: {address!r} is reachable from other machines: give tls_cert_file and "
                "tls_key_file, or set allow_insecure"
            )
        self._check_redis()
        return self

    def _check_redis(self) -> None:
        if not self.redis_url:
            return
        try:
            exposed = leaves_in_plain_text(self.redis_url) and not self.allow_insecure
        except ValueError:
            # The parser's own text may quote a part of the password.
            raise ValueError(
                f"redis_url: {masked(self.redis_url)!r} must be a redis://, rediss:// or unix:// URL"
            ) from None
        if exposed:
            raise ValueError(
                f"redis_url: {masked(self.redis_url)!r} is beyond this machine and not encrypted: "
                "give a rediss:// URL, or set allow_insecure"
            )

    @property
    def admin_key_path(self) -> Path:
        """Where the administrator's key is written at the first start."""
        return self.admin_key_file or self.state_dir / "admin.key"

    @property
    def worker_key_path(self) -> Path:
        """Where the workers' key is written at the first start."""
        return self.worker_key_file or self.state_dir / "worker.key"

    @property
    def outage_s(self) -> float:
        """How long what was read before may be used while Redis is away; 0: not at all."""
        return self.store_loss_max_s if self.store_loss_requests_per_minute else 0.0

    @property
    def default_limits(self) -> Limits:
        """Limits of tenants without their own."""
        return Limits(
            requests_per_minute=self.default_requests_per_minute,
            tokens_per_minute=self.default_tokens_per_minute,
            concurrent_requests=self.default_concurrent_requests,
            registered_adapters=self.default_registered_adapters,
            adapter_bytes=self.default_adapter_bytes,
            resident_slots=self.default_resident_slots,
            cold_loads_per_minute=self.default_cold_loads_per_minute,
        )


def explained(error: ValidationError) -> str:
    """Return what is wrong, a line each; without the other settings, some of which are secrets."""
    return "\n".join(map(_line, error.errors(include_url=False)))


def _line(one: ErrorDetails) -> str:
    rule = one["msg"].removeprefix("Value error, ")
    if not one["loc"]:
        return rule  # of several fields: it names them itself
    return f"{'.'.join(map(str, one['loc']))}: {one['input']!r}: {rule}"
