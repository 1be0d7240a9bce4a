"""Wire: a message as bytes, and the bytes broken in ways that no protobuf library would write."""

from collections.abc import Callable
from random import Random

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_LENGTH_DELIMITED = 2
_START_GROUP, _END_GROUP = 3, 4
_LAST_FIELD = 2**29 - 1
_NOT_UTF8 = (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"caf\xe9")
_BARE_TYPES = (0, 1, 2, 3, 4, 5, 6, 7)


def broken(message: Message, rng: Random) -> bytes:
    """The message's bytes with one thing done to them; some results are still valid."""
    return rng.choice(_BREAKS)(message, rng)


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def tag(number: int, wire_type: int) -> bytes:
    """What begins a field."""
    return varint(number << 3 | wire_type)


def _truncated(message: Message, rng: Random) -> bytes:
    data = message.SerializeToString()
    return data[: rng.randrange(len(data) + 1)]


def _flipped(message: Message, rng: Random) -> bytes:
    data = bytearray(message.SerializeToString())
    for _ in range(rng.choice((1, 3, 20)) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _garbage(message: Message, rng: Random) -> bytes:
    return rng.randbytes(rng.choice((1, 2, 10, 1000)))


def _with_unknown_field(message: Message, rng: Random) -> bytes:
    number = rng.choice((19_999, 100_000, _LAST_FIELD))
    unknown = tag(number, _LENGTH_DELIMITED) + varint(5) + b"\x00\xffabc"
    return message.SerializeToString() + unknown * rng.choice((1, 500))


def _with_text_that_is_none(message: Message, rng: Random) -> bytes:
    texts = [f for f in message.DESCRIPTOR.fields if f.type == FieldDescriptor.TYPE_STRING]
    if not texts:
        return _flipped(message, rng)
    text = rng.choice(_NOT_UTF8)
    field = tag(rng.choice(texts).number, _LENGTH_DELIMITED) + varint(len(text)) + text
    return message.SerializeToString() + field


def _with_wrong_type(message: Message, rng: Random) -> bytes:
    fields = message.DESCRIPTOR.fields
    number = rng.choice(fields).number if fields else 1
    return message.SerializeToString() + tag(number, rng.choice(_BARE_TYPES)) + rng.randbytes(9)


def _with_huge_length(message: Message, rng: Random) -> bytes:
    fields = message.DESCRIPTOR.fields
    number = rng.choice(fields).number if fields else 1
    return message.SerializeToString() + tag(number, _LENGTH_DELIMITED) + varint(2**31 - 1) + b"x"


def _nested(message: Message, rng: Random) -> bytes:
    depth = rng.choice((10, 99, 101, 20_000))
    return message.SerializeToString() + tag(1000, _START_GROUP) * depth + tag(1000, _END_GROUP) * depth


def _field_zero(message: Message, rng: Random) -> bytes:
    return b"\x00\x00" + message.SerializeToString()


def _twice(message: Message, rng: Random) -> bytes:
    return message.SerializeToString() * rng.choice((2, 50))


_BREAKS: tuple[Callable[[Message, Random], bytes], ...] = (
    _truncated, _flipped, _garbage, _with_unknown_field, _with_text_that_is_none, _with_wrong_type,
    _with_huge_length, _nested, _field_zero, _twice,
)  # fmt: skip
