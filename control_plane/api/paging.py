"""Paging of models: a token is the id of the last model of its page."""

import base64
from collections.abc import Iterable, Sequence

from control_plane.errors import InvalidArgument
from protos.inference.v1 import inference_pb2 as pb

MAX_PAGE = 1000


def begin(page_size: int, token: str) -> tuple[int, str]:
    """Return how many models the page has (0: the most there can be) and the id that it begins after."""
    size = page_size or MAX_PAGE
    if not 1 <= size <= MAX_PAGE:
        raise InvalidArgument("page_size", size, f"must be between 1 and {MAX_PAGE}")
    return size, _last_id(token) if token else ""


def end(models: Iterable[pb.Model], size: int) -> tuple[Sequence[pb.Model], str]:
    """Return the page of at least one model more than it has, if there are more, and the next token."""
    ordered = sorted(models, key=lambda model: model.id)
    return ordered[:size], _token(ordered[size - 1].id) if len(ordered) > size else ""


def _token(model_id: str) -> str:
    return base64.urlsafe_b64encode(model_id.encode()).decode()


def _last_id(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:  # no base64, no text, or not even ASCII
        raise InvalidArgument("page_token", token, "must be one that the listing returned") from None
