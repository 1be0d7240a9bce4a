"""The fuzzer itself: it would see a defect, makes its cases again, and makes them smaller."""

import random

import grpc
import pytest
from google.protobuf.message import DecodeError

from protos.registry.v1 import registry_pb2 as registry
from tests.fuzz import wire
from tests.fuzz.calls import Outcome
from tests.fuzz.cases import HANG_S, Case
from tests.fuzz.credentials import Caller
from tests.fuzz.messages import mutated, random_message
from tests.fuzz.shrink import smaller
from tests.fuzz.surface import Rpc
from tests.fuzz.verdict import Judge

GET = Rpc(
    "control plane", registry.DESCRIPTOR.services_by_name["AdapterRegistry"].methods_by_name["GetAdapter"]
)
REGISTER = registry.RegisterAdapterRequest.DESCRIPTOR
JUDGE = Judge(("lp_secret",))
Code = grpc.StatusCode


def case(frame: bytes = b"", *, may: bool = True, timeout_s: float = HANG_S) -> Case:
    caller = Caller("somebody", (), may)
    return Case(name="1:1", rpc=GET, frames=(frame,), caller=caller, timeout_s=timeout_s, patience_s=HANG_S)


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (Code.INTERNAL, "internal error 1", "Internal"),
        (Code.UNKNOWN, "Unexpected <class 'KeyError'>", ""),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", ""),
        (Code.NOT_FOUND, "no adapter", ""),  # without ErrorInfo
        (Code.NOT_FOUND, 'File "store.py", line 3', "NotFound"),
        (Code.UNAUTHENTICATED, "lp_secret is not known", "Unauthenticated"),
        (Code.RESOURCE_EXHAUSTED, "received trailing metadata size exceeds hard limit", ""),
    ],
)
def test_a_defect_is_objected_to(code: grpc.StatusCode, text: str, reason: str) -> None:
    assert JUDGE.objection(case(), Outcome(code, text, reason)) is not None


@pytest.mark.parametrize("code", [Code.OK, Code.NOT_FOUND, Code.INVALID_ARGUMENT])
def test_any_answer_to_a_caller_who_may_not_is_objected_to(code: grpc.StatusCode) -> None:
    assert JUDGE.objection(case(may=False), Outcome(code, "", "Reason")) is not None
    assert JUDGE.objection(case(may=False), Outcome(Code.UNAUTHENTICATED, "", "Reason")) is None


def test_an_answer_or_a_reasoned_refusal_is_not_objected_to() -> None:
    assert JUDGE.objection(case(), Outcome(Code.OK)) is None
    assert JUDGE.objection(case(), Outcome(Code.NOT_FOUND, "no adapter 'x'", "NotFound")) is None
    assert JUDGE.objection(case(timeout_s=0.01), Outcome(Code.DEADLINE_EXCEEDED)) is None


def test_equal_randomness_makes_equal_messages() -> None:
    for seed in range(50):
        one, other = (random_message(REGISTER, random.Random(seed)) for _ in range(2))
        assert str(one) == str(other)
        assert str(mutated(one, random.Random(seed))) == str(mutated(other, random.Random(seed)))
        assert wire.broken(one, random.Random(seed)) == wire.broken(other, random.Random(seed))


def test_breaking_a_message_makes_some_that_cannot_be_read_and_some_that_can() -> None:
    whole = registry.RegisterAdapterRequest(tenant="acme", name="bot", labels={"a": "b"})
    readable = 0
    for seed in range(200):
        try:
            registry.RegisterAdapterRequest.FromString(wire.broken(whole, random.Random(seed)))
            readable += 1
        except DecodeError:
            continue
    assert 20 < readable < 180


def test_shrinking_ends_with_the_field_that_matters() -> None:
    found = case(registry.GetAdapterRequest(tenant="acme" * 50, name="b" * 64).SerializeToString())
    matters = b"bb"
    while less := next((one for one in smaller(found) if matters in one.frames[0]), None):
        found = less
    assert registry.GetAdapterRequest.FromString(found.frames[0]) == registry.GetAdapterRequest(name="bb")
