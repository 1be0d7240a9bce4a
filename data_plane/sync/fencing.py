"""Fencing: a command of an older leader, or about an older state of an adapter, is refused.

The token is the leader's, the generation the adapter's; both only grow. Equal ones pass, since
doing a command twice is the same as doing it once.
"""

from data_plane.errors import StaleCommand


class Fence:
    """The highest token, and the highest generation of each adapter, seen so far."""

    def __init__(self) -> None:
        self._token = 0
        self._generations: dict[tuple[str, str], int] = {}

    @property
    def generation(self) -> int:
        """The highest generation of any command that passed."""
        return max(self._generations.values(), default=0)

    def raise_token(self, token: int) -> None:
        """A lease of this token arrived; raise StaleCommand when a newer leader was seen."""
        if token < self._token:
            raise StaleCommand(f"fencing token {token} is older than {self._token}")
        self._token = token

    def pass_command(self, adapter: tuple[str, str], *, token: int, generation: int) -> None:
        """Let a command through, or raise StaleCommand."""
        self.raise_token(token)
        newest = self._generations.get(adapter, 0)
        if generation < newest:
            raise StaleCommand(f"generation {generation} of {'/'.join(adapter)} is older than {newest}")
        self._generations[adapter] = generation
