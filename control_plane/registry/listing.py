"""Listing: which adapters a page has, and where the next one starts.

A page token is the id (`tenant/name`) of the page's last adapter, so that a listing goes on
correctly whatever is registered or deleted meanwhile.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from control_plane.errors import InvalidArgument
from control_plane.registry import names
from control_plane.registry.types import Adapter, AdapterKey, Page

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
READS_PER_PAGE = 5000
_AFTER_ALL = "\x7f"  # sorts after every character of a name


def bounds(tenant: str | None, name_prefix: str, page_token: str) -> tuple[str, str]:
    """Return the range of ids to read, as ZRANGE BYLEX has it."""
    low, high = ("-", "+")
    if tenant:
        names.check_name("tenant", tenant)
        low, high = f"[{tenant}/{name_prefix}", f"({tenant}/{name_prefix}{_AFTER_ALL}"
    if page_token:
        last_tenant, _, last_name = page_token.partition("/")
        try:
            low = f"({names.check_key(AdapterKey(last_tenant, last_name))}"
        except InvalidArgument:
            raise InvalidArgument("page_token", page_token, "is not one of this listing") from None
    return low, high


def own_bounds(tenant: str, after: str) -> tuple[str, str]:
    """Return the range of ids of a tenant's own adapters whose names come after any text."""
    low = f"({tenant}/{after}" if after else f"[{tenant}/"
    return low, f"({tenant}/{_AFTER_ALL}"


def size_of(page_size: int) -> int:
    """Return how many adapters a page has: 0 is the default size, above 1000 is 1000."""
    if page_size < 0:
        raise InvalidArgument("page_size", page_size, "must be at least 0")
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


async def merged(
    one: AsyncIterator[Adapter], other: AsyncIterator[Adapter], *, key: Callable[[Adapter], str]
) -> AsyncGenerator[Adapter, None]:
    """Yield both, each in order, in one order."""
    first, second = await anext(one, None), await anext(other, None)
    while first is not None or second is not None:
        if second is None or (first is not None and key(first) < key(second)):
            assert first is not None
            yield first
            first = await anext(one, None)
        else:
            yield second
            second = await anext(other, None)


async def page(
    adapters: AsyncIterator[Adapter], name_prefix: str, labels: Mapping[str, str], page_size: int
) -> Page:
    """Collect a page of the adapters that match.

    A page ends when it is full or when READS_PER_PAGE adapters were looked at, so that a filter that
    few pass costs many short pages instead of one that reads everything.
    """
    size = size_of(page_size)
    matching: list[Adapter] = []
    num_read, last = 0, ""
    async for adapter in adapters:
        if num_read == READS_PER_PAGE:
            return Page(tuple(matching), last)
        num_read, last = num_read + 1, str(adapter.key)
        if not adapter.key.name.startswith(name_prefix) or not labels.items() <= adapter.labels.items():
            continue
        if len(matching) == size:  # one more than fits: there is a next page
            return Page(tuple(matching), str(matching[-1].key))
        matching.append(adapter)
    return Page(tuple(matching), "")
