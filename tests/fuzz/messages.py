"""Messages: random ones of any type, and copies of valid ones with a few things changed.

Driven by descriptors alone; a message is made anew from the same state of the random generator.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.fuzz import values

_COUNTS = (0, 1, 1, 2, 3, 17, 400)
_MESSAGE = FieldDescriptor.TYPE_MESSAGE
Place = tuple[Message, FieldDescriptor]


def random_message(descriptor: Descriptor, rng: Random) -> Message:
    """A message with each field set or not, at random; of a oneof, any member or none."""
    message = GetMessageClass(descriptor)()
    share = rng.choice((0.2, 0.6, 1.0))
    for field in descriptor.fields:
        if rng.random() < share:
            fill(message, field, rng)
    return message


def mutated(message: Message, rng: Random) -> Message:
    """A copy with one to three fields, at any depth, set, cleared or repeated."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(copy))
        if not places:
            return copy
        parent, field = rng.choice(places)
        if rng.random() < 0.2:
            parent.ClearField(field.name)
        else:
            fill(parent, field, rng)
    return copy


def fill(message: Message, field: FieldDescriptor, rng: Random) -> None:
    """Give one field a random value, or add some to what is repeated."""
    value = getattr(message, field.name)
    if _is_map(field):
        _fill_map(value, field.message_type, rng)
    elif field.is_repeated and field.type == _MESSAGE:
        value.extend(random_message(field.message_type, rng) for _ in range(_count(rng, field)))
    elif field.is_repeated:
        value.extend(values.scalar(field, rng) for _ in range(_count(rng, field)))
    elif field.type == _MESSAGE:
        value.CopyFrom(random_message(field.message_type, rng))
    else:
        setattr(message, field.name, values.scalar(field, rng))


def _count(rng: Random, field: FieldDescriptor) -> int:
    # Long lists of messages that have lists themselves would be gigabytes.
    return min(rng.choice(_COUNTS), 400 if field.type != _MESSAGE else 17)


def _fill_map(value: Any, entry: Descriptor, rng: Random) -> None:
    key, item = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(rng.choice(_COUNTS)):
        value[values.scalar(key, rng)] = values.scalar(item, rng)


def _is_map(field: FieldDescriptor) -> bool:
    return field.type == _MESSAGE and field.message_type.GetOptions().map_entry


def _places(message: Message) -> Iterator[Place]:
    """Every field of the message and of the messages in it, set or not."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.type != _MESSAGE or _is_map(field):
            continue
        if field.is_repeated:
            for item in getattr(message, field.name):
                yield from _places(item)
        elif message.HasField(field.name):
            yield from _places(getattr(message, field.name))
