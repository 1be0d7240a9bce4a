"""Names: under which names of which tenants each held digest is known.

Knows nothing of tiers. Two names with one digest share one set of weights, so a digest may be
given up only when its last name is gone.
"""

from data_plane.adapters.revision import Revision

Owner = tuple[str, str]  # tenant and name


def owner_of(revision: Revision) -> Owner:
    """Whose adapter a revision belongs to."""
    return revision.tenant, revision.name


class Names:
    """Revisions by digest, then by owner."""

    def __init__(self) -> None:
        self._revisions: dict[str, dict[Owner, Revision]] = {}

    def add(self, revision: Revision) -> None:
        """The digest is known under this name too."""
        self._revisions.setdefault(revision.digest, {})[owner_of(revision)] = revision

    def remove(self, digest: str, owner: Owner) -> bool:
        """Take a name from a digest; whether it was the last."""
        revisions = self._revisions.get(digest, {})
        revisions.pop(owner, None)
        if not revisions:
            self._revisions.pop(digest, None)
        return not revisions

    def forget(self, digest: str) -> None:
        """The digest is held no longer."""
        self._revisions.pop(digest, None)

    def digests(self, owner: Owner) -> list[str]:
        """Every digest known under a name, oldest first."""
        return [digest for digest, revisions in self._revisions.items() if owner in revisions]

    def revision(self, digest: str) -> Revision | None:
        """One revision that has the digest: the one named first."""
        return next(iter(self._revisions.get(digest, {}).values()), None)

    def is_only(self, digest: str, owner: Owner) -> bool:
        """Whether no other name has the digest."""
        return self._revisions.get(digest, {}).keys() <= {owner}
