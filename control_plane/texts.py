"""Texts: what an error says, as far as the trailers of a call have room for it.

Invariant: what is returned can be sent. gRPC refuses trailers above 8 KiB, and the client then sees
neither code nor text; ours have the message percent-encoded and, in base64, again with its details.
"""

MAX_BYTES = 800


def clipped(text: str, max_bytes: int = MAX_BYTES) -> str:
    """Return the text, or its beginning, as valid Unicode of at most about so many bytes."""
    # Names in an adapter's JSON may hold half a character, which no message can.
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return f"{encoded[:max_bytes].decode('utf-8', 'ignore')}… ({len(encoded)} bytes)"
