"""Values: what a field of each type may hold that its author may not have thought of."""

from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_INT32 = (0, 1, -1, 2, 7, 100, 1000, 1001, 2**31 - 1, -(2**31))
_UINT32 = (0, 1, 2, 7, 16, 17, 99, 100, 1000, 2**31, 2**32 - 1)
_INT64 = (*_INT32, 10**12, 10**12 + 1, 2**53 + 1, 2**63 - 1, -(2**63))
_UINT64 = (*_UINT32, 2**53 + 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, -1e30, float("inf"), float("-inf"), float("nan"))
_DOUBLES = (*_FLOATS, 5e-324, 1.7e308, 3600.0, 1e18)

TYPICAL = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
    FieldDescriptor.TYPE_FLOAT: _FLOATS,
    FieldDescriptor.TYPE_DOUBLE: _DOUBLES,
    FieldDescriptor.TYPE_BOOL: (False, True),
}
# Open enums take any number.
_STRANGE_ENUMS = (-1, 99, 2**31 - 1, -(2**31))
_TEXTS = (
    "", " ", "a", "acme", "globex", "acme/bot", "bot", "bot@1", "bot@0", "bot@18446744073709551616", "@",
    "/", "*", "-", "+", "(", "[", "0-0", "0", "-1", "1" * 5000, "99999999999999999999", "acme/", "/bot",
    "A" * 64, "..", "../../etc/passwd", "/etc/passwd", "file:///etc", "file://[", "s3://bucket/x",
    "hf://a/b@c", "x://", "%00", "%s%n", "{}", "{0.__class__}", "null", "NaN", "\0", "a\0b", "\n",
    "a\r\nb: c", "\x1b[31m", "'\"`\\", "\u202e", "\ufeff", "ﬁ", "İ", "ß", "٣", "é", "e\u0301", "日本語",
    "🙂" * 20, "\U0010ffff", "Bearer ", "sha256:" + "0" * 64, "sha256:", "<|im_end|>", "{% for x in y %}",
)  # fmt: skip
_LENGTHS = (200, 4_000, 20_000, 100_000)


def scalar(field: FieldDescriptor, rng: Random) -> Any:
    """A value of the field's type; texts are valid Unicode, for what is not see `wire`."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return text(rng)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 100, 10_000)))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice((*(value.number for value in field.enum_type.values), *_STRANGE_ENUMS))
    return rng.choice(TYPICAL[field.type])


def text(rng: Random) -> str:
    """A short strange text most of the time, else a long one."""
    if rng.random() < 0.9:
        return rng.choice(_TEXTS)
    return (rng.choice(_TEXTS) or "x") * 3 + rng.choice("aé\0🙂") * rng.choice(_LENGTHS)
