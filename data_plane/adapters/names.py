"""Names: under which names of which tenants each held digest is known.

Knows nothing of tiers. Two names with one digest share one set of weights, so a digest may be
given up only when its last name is gone.
"""

from data_plane.adapters.revision import AdapterSource, Revision

Owner = tuple[str, str]  # tenant and name


def owner_of(revision: Revision) -> Owner:
    """Whose adapter a revision belongs to."""
    return revision.tenant, revision.name


class Names:
    """Sources by digest, then by owner."""

    def __init__(self) -> None:
        self._sources: dict[str, dict[Owner, AdapterSource]] = {}

    def add(self, source: AdapterSource) -> None:
        """The digest is known under this name too."""
        revision = source.revision
        self._sources.setdefault(revision.digest, {})[owner_of(revision)] = source

    def remove(self, digest: str, owner: Owner) -> None:
        """The digest is no longer known under this name, but under others."""
        self._sources.get(digest, {}).pop(owner, None)

    def forget(self, digest: str) -> None:
        """The digest is held no longer."""
        self._sources.pop(digest, None)

    def digests(self, owner: Owner) -> list[str]:
        """Every digest known under a name, oldest first."""
        return [digest for digest, sources in self._sources.items() if owner in sources]

    def source(self, digest: str) -> AdapterSource | None:
        """Where the digest can be read: the source named first."""
        return next(iter(self._sources.get(digest, {}).values()), None)

    def is_only(self, digest: str, owner: Owner) -> bool:
        """Whether no other name has the digest."""
        return self._sources.get(digest, {}).keys() <= {owner}
