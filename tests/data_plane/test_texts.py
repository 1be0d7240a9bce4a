import pytest

from data_plane.api.interceptors import status_of
from data_plane.errors import AdapterRefused, InvalidRequest
from data_plane.texts import MAX_BYTES, clipped


def test_a_short_text_is_kept_whole():
    assert clipped("rank 32 of 'acmé'") == "rank 32 of 'acmé'"


def test_a_long_text_is_cut_between_two_characters_and_says_so():
    text = clipped("x" + "é" * MAX_BYTES)
    assert text.endswith(f"é… ({2 * MAX_BYTES + 1} bytes)")
    assert len(text.encode()) < MAX_BYTES + 30


@pytest.mark.parametrize(
    "error", [AdapterRefused("\ud800" * 9999), InvalidRequest("prompt", "🙂" * 9999, "x")]
)
def test_the_status_of_any_error_fits_into_the_trailers_of_a_call(error: Exception):
    status = status_of(error)
    # Percent-encoded, and in base64 with its details: gRPC refuses 8 KiB.
    assert 3 * len(status.message.encode()) + len(status.SerializeToString()) * 4 / 3 < 8000
