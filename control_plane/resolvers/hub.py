"""HubResolver: PEFT adapters in allowed repositories of a Hugging Face hub.

A source is `hf://<owner>/<repo>[@<revision>][/<directory>]`; names alone are not looked for, and
nothing in the hub is kept for one tenant. The revision is resolved to a commit once; everything is
read at that commit. Invariant: no repository is asked for that the allow-list does not have.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase
from functools import partial

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from control_plane.errors import Refused
from control_plane.resolvers.adapter_files import CONFIG, WEIGHTS, read_adapter
from control_plane.resolvers.hub_files import HubAccess, HubFiles, translated
from control_plane.resolvers.hub_location import SCHEME, HubLocation, parse_location
from control_plane.resolvers.threads import Threads
from control_plane.resolvers.types import Resolved, ResolveRequest

METADATA_TIMEOUT_S = 10.0


class HubResolver:
    """Reads adapters from a hub, on threads."""

    name = "hub"

    def __init__(self, repos: Collection[str], *, endpoint: str = "", token: str = "") -> None:
        self._repos = repos  # owner/name or owner/*
        # Never the token that the machine's user is logged in with.
        self._access = HubAccess(endpoint=endpoint or None, token=token or False)
        self._threads = Threads(self.name)

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        """See Resolver."""
        if not request.source.startswith(SCHEME):
            return None
        location = parse_location(request.source)
        if not any(fnmatchcase(location.repo, pattern) for pattern in self._repos):
            raise Refused(f"{location.repo} is not among the allowed repositories of the hub")
        if request.confined:
            raise Refused(f"{location} is outside of what is kept for {request.tenant!r}")
        files = await self._threads.run(partial(self._files, location))
        if files is None or not (await files.has(CONFIG) or await files.has(WEIGHTS)):
            return None
        return await read_adapter(files)

    async def close(self) -> None:
        """See Resolver; huggingface_hub keeps its connections for the process."""
        self._threads.close()

    def _files(self, location: HubLocation) -> HubFiles | None:
        api = HfApi(endpoint=self._access.endpoint, token=self._access.token)
        with translated(str(location)):
            try:
                info = api.model_info(location.repo, revision=location.revision, timeout=METADATA_TIMEOUT_S)
            except GatedRepoError:
                raise
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        names = frozenset(sibling.rfilename for sibling in info.siblings or ())
        return HubFiles(self._access, location, str(info.sha), names, self._threads)
