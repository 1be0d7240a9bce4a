"""ResolverSettings: where adapters may come from; a part of `ControlSettings`.

Bucket, hub and key settings have the names of the worker's, so that one environment serves both.
"""

from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from control_plane.resolvers.hub_location import REPOSITORIES, REPOSITORIES_RULE
from control_plane.resolvers.installed import installed_names
from control_plane.resolvers.s3_places import TEMPLATE, TEMPLATE_RULE

BUILT_IN = frozenset({"filesystem", "s3", "hub"})


class ResolverSettings(BaseSettings):
    """Which resolvers, in which order, and what each may read."""

    resolvers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("filesystem",),
        description="where adapters are looked for, in order, separated by commas: filesystem, s3, hub, "
        "or what an installed distribution offers under the entry points loraplane.resolvers",
    )
    resolver_timeout_s: float = Field(default=120.0, gt=0, description="time of one resolver for one adapter")
    resolver_negative_ttl_s: float = Field(
        default=5.0, ge=0, description="a name that nobody knows is asked for again after this"
    )
    resolver_options: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="options of third parties' resolvers, by resolver"
    )

    s3_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="buckets adapters may be read from, separated by commas"
    )
    s3_template: str = Field(
        default="", description="where a name is looked for: s3://bucket/{tenant}/{name}; default: nowhere"
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

    @field_validator("resolvers", "s3_buckets", "hub_repos", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_resolvers(self) -> Self:
        known = BUILT_IN | installed_names()
        for name in self.resolvers:
            if name not in known:
                raise ValueError(f"resolvers: {name!r} must be one of {', '.join(sorted(known))}")
        if "s3" in self.resolvers and not self.s3_buckets:
            raise ValueError("s3_buckets: () must name at least one bucket when resolvers has s3")
        if self.s3_template:
            found = TEMPLATE.fullmatch(self.s3_template)
            if found is None:
                raise ValueError(f"s3_template: {self.s3_template!r} {TEMPLATE_RULE}")
            if found["bucket"] not in self.s3_buckets:
                raise ValueError(f"s3_template: {self.s3_template!r} must be in one of s3_buckets")
        if bool(self.s3_access_key_id) != bool(self.s3_secret_access_key.get_secret_value()):
            raise ValueError("s3_access_key_id and s3_secret_access_key go together")
        if "hub" in self.resolvers and not self.hub_repos:
            raise ValueError("hub_repos: () must name at least one repository when resolvers has hub")
        for pattern in self.hub_repos:
            if not REPOSITORIES.fullmatch(pattern):
                raise ValueError(f"hub_repos: {pattern!r} {REPOSITORIES_RULE}")
        return self
