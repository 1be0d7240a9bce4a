"""Pages of the rank pool: which are free. A page is 8 rank rows over every module.

Knows nothing of slots, adapters or tensors. A page belongs to one owner or to nobody.
"""

from itertools import groupby


class PageAllocator:
    """Pages 0 … num_pages - 1."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = set(range(num_pages))
        self._longest_run: int | None = num_pages  # None: not known since the last change

    @property
    def num_free(self) -> int:
        """Pages that belong to nobody."""
        return len(self._free)

    @property
    def fragmentation(self) -> float:
        """Share of the free pages that are outside of their longest run; 0 when none is free."""
        if not self._free:
            return 0.0
        # Asked for at every change of a lease, which pages mostly do not change with.
        if self._longest_run is None:
            self._longest_run = max(map(len, self._runs()))
        return 1 - self._longest_run / len(self._free)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """Take pages, in one run where a run is long enough; None when too few are free."""
        if count > len(self._free):
            return None
        # Rows of one run are read in one stretch. The shortest run that fits keeps long ones whole;
        # without one, the longest runs make the fewest stretches.
        runs = self._runs()
        fitting = [run for run in runs if len(run) >= count]
        order = [min(fitting, key=len)] if fitting else sorted(runs, key=len, reverse=True)
        pages = tuple(page for run in order for page in run)[:count]
        self._free.difference_update(pages)
        self._longest_run = None
        return pages

    def release(self, pages: tuple[int, ...]) -> None:
        """Give pages back."""
        if self._free.intersection(pages):
            raise ValueError(f"pages {pages}: some are free already")
        self._free.update(pages)
        self._longest_run = None

    def check(self, owned: list[tuple[int, ...]]) -> None:
        """Raise AssertionError unless the free pages and the owned ones are all pages, each once."""
        pages = [*self._free, *(page for pages in owned for page in pages)]
        assert sorted(pages) == list(range(self.num_pages)), f"pages are lost or shared: {sorted(pages)}"

    def _runs(self) -> list[list[int]]:
        numbered = enumerate(sorted(self._free))
        return [[page for _, page in run] for _, run in groupby(numbered, key=lambda item: item[1] - item[0])]
