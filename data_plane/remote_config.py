"""RemoteConfig: where beside its own disk a worker may read adapters from; a part of `EngineConfig`.

The names are those of the control plane's settings, so that one environment serves both.
"""

from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode


class RemoteConfig(BaseSettings):
    """Allowed buckets and repositories, and how they are reached."""

    s3_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="buckets adapters may be read from, separated by commas"
    )
    s3_endpoint_url: str = Field(default="", description="of a service other than AWS")
    s3_region: str = Field(default="", description="default: as the AWS tools find it")
    s3_access_key_id: str = Field(default="", description="default: as the AWS tools find it (role, profile)")
    s3_secret_access_key: SecretStr = Field(default=SecretStr(""), description="goes with s3_access_key_id")
    s3_timeout_s: float = Field(default=10.0, gt=0, description="to connect, and between pieces of an answer")
    hub_repos: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Hugging Face repositories adapters may be read from: owner/name or owner/*"
    )
    hub_endpoint: str = Field(default="", description="of a hub other than huggingface.co")
    hub_token: SecretStr = Field(default=SecretStr(""), description="for private repositories")

    @field_validator("s3_buckets", "hub_repos", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if bool(self.s3_access_key_id) != bool(self.s3_secret_access_key.get_secret_value()):
            raise ValueError("s3_access_key_id and s3_secret_access_key go together")
        return self
