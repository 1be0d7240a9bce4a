"""Whether an adapter was trained on the base model it is asked for, as far as names can tell."""

import re

from control_plane.errors import Refused

_COMMIT = re.compile(r"[0-9a-f]{40}")  # the last part of a Hugging Face cache path


def check_base_model(uri: str, hint: str, wanted: str) -> None:
    """Raise Refused when both names are known and differ.

    Compared are the last parts of the names, whatever their case: the same model is
    `HuggingFaceTB/SmolLM2-135M-Instruct` in a config and `/models/smollm2-135m-instruct` on a worker.
    """
    trained_on, asked_for = _last_part(hint), _last_part(wanted)
    if trained_on and asked_for and trained_on != asked_for:
        raise Refused(f"{uri} was trained on the base model {hint!r}, not on {wanted!r}")


def _last_part(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].casefold()
    return "" if _COMMIT.fullmatch(last) else last
