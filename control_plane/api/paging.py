"""Paging of lists that are made in memory: a token is the id of the last model of its page."""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Sequence

from control_plane.errors import InvalidArgument
from protos.inference.v1 import inference_pb2 as pb

MAX_PAGE = 1000


def after(models: Sequence[pb.Model], token: str, size: int) -> tuple[Sequence[pb.Model], str]:
    """Return the page of models (sorted by id) after a token, and the next token."""
    if not 1 <= size <= MAX_PAGE:
        raise InvalidArgument("page_size", size, f"must be between 1 and {MAX_PAGE}")
    begin = bisect_right(models, _last_id(token), key=lambda model: model.id) if token else 0
    page = models[begin : begin + size]
    return page, _token(page[-1].id) if begin + size < len(models) else ""


def _token(model_id: str) -> str:
    return base64.urlsafe_b64encode(model_id.encode()).decode()


def _last_id(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgument("page_token", token, "must be one that the listing returned") from None
