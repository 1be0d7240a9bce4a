"""Shrink: smaller cases of the same kind, the most promising first."""

from collections.abc import Iterator
from dataclasses import replace

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz.cases import Case


def smaller(case: Case) -> Iterator[Case]:
    """Cases with one frame, field or half less."""
    for i, frame in enumerate(case.frames):
        if len(case.frames) > 1:
            yield replace(case, frames=case.frames[:i] + case.frames[i + 1 :])
        for less in _smaller_frames(case, frame):
            yield replace(case, frames=(*case.frames[:i], less, *case.frames[i + 1 :]))


def _smaller_frames(case: Case, frame: bytes) -> Iterator[bytes]:
    try:
        message = case.rpc.request.FromString(frame)
    except DecodeError:
        yield from (half for half in (frame[: len(frame) // 2], frame[len(frame) // 2 :]) if half != frame)
        return
    if frame:
        yield from (less.SerializeToString() for less in _smaller_messages(message))


def _smaller_messages(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        less = _copy(message)
        less.ClearField(field.name)
        yield less
        if field.is_repeated:
            yield from _shorter(message, field)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in _smaller_messages(value):
                less = _copy(message)
                getattr(less, field.name).CopyFrom(inner)
                yield less
        elif isinstance(value, str | bytes) and len(value) > 1:
            for half in (value[: len(value) // 2], value[len(value) // 2 :]):
                less = _copy(message)
                setattr(less, field.name, half)
                yield less


def _shorter(message: Message, field: FieldDescriptor) -> Iterator[Message]:
    items = getattr(message, field.name)
    if not hasattr(items, "extend"):
        return  # a map: taken away whole, or not at all
    for part in (slice(0, len(items) // 2), slice(len(items) // 2, None)):
        if len(items) > 1:
            less = _copy(message)
            del getattr(less, field.name)[part]
            yield less


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
