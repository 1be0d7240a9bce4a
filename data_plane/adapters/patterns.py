"""Regular expressions that come with an adapter: run only when they end soon.

Python's matcher backtracks and holds the interpreter's lock, so one expression such as
`([a-z.]+)+X` would stop every stream of the worker. A repetition may hold single characters only,
and there may be few: matching a module name is then polynomial of a small degree.
"""

import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]  # the only parser of this dialect
from typing import Any

# A name of 47 characters takes 0.4 ms with 4 repetitions of `.*`, 30 ms with 8 optional parts as well.
MAX_REPEATS = 4
MAX_OPTIONALS = 8
MAX_LENGTH = 2000
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
_SINGLE = (
    _constants.LITERAL,
    _constants.NOT_LITERAL,
    _constants.ANY,
    _constants.IN,
)


def why_unsafe(pattern: str) -> str | None:
    """Why the expression must not be run; None when it may."""
    if len(pattern) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    try:
        repeats = list(_repeats(_parser.parse(pattern)))
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression: {error}"
    optional = sum(most <= 1 for most, _ in repeats)
    for what, count, most in (
        ("repetitions", len(repeats) - optional, MAX_REPEATS),
        ("optional parts", optional, MAX_OPTIONALS),
    ):
        if count > most:
            return f"has {count} {what}, more than {most}"
    if not all(_is_cheap(most, body) for most, body in repeats):
        return "repeats a group; only single characters may be repeated"
    return why_invalid(pattern)


def why_invalid(pattern: str) -> str | None:
    """Why the expression cannot be run at all: some of it shows only when it is compiled."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression: {error}"
    return None


def _is_cheap(most: int, body: Any) -> bool:
    """An optional group is tried at most twice; all else must repeat one character."""
    return most <= 1 or (len(body) == 1 and body[0][0] in _SINGLE)


def _repeats(node: Any) -> Iterator[tuple[int, Any]]:
    """Every repetition in a parsed expression, nested ones too: its upper bound and what it repeats."""
    if isinstance(node, tuple) and len(node) == 2 and node[0] in _REPEATS:
        yield int(node[1][1]), node[1][2]
    if isinstance(node, tuple | list | _parser.SubPattern):
        for part in node:
            yield from _repeats(part)
