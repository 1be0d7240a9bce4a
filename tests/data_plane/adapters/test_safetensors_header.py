"""The header that we read says what the library says of the same bytes, and is refused where that refuses."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from data_plane.adapters.safetensors_header import DTYPES, header_of, stored_tensors

Header = dict[str, Any]
PLAIN: dict[str, torch.Tensor] = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
    "empty": torch.ones(0, 3, dtype=torch.float16),
    "one": torch.tensor(1.5, dtype=torch.float64),
}


def file_of(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def parts_of(data: bytes) -> tuple[Header, bytes]:
    header = header_of(data)
    return json.loads(header), data[8 + len(header) :]


def by_library(data: bytes) -> dict[str, torch.Tensor] | None:
    """None: refused."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def by_us(data: bytes) -> dict[str, torch.Tensor] | None:
    source = np.frombuffer(data, np.uint8)
    try:
        return {name: tensor.read([source]) for name, tensor in stored_tensors(data, 0).items()}
    except ValueError:
        return None


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        # Bytes, because numbers that are NaN are not equal.
        and tensor.view(-1).view(torch.uint8).equal(other[name].view(-1).view(torch.uint8))
        for name, tensor in one.items()
    )


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_the_library_s(name: str):
    tensor = torch.zeros(2, 3, dtype=DTYPES[name])
    data = safetensors.torch.save({"x": tensor}, metadata={"format": "pt"})
    assert parts_of(data)[0]["x"]["dtype"] == name
    assert same(by_us(data), {"x": tensor})


numbers = st.one_of(
    st.integers(-1, 40),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**30, 0.5, True, False, None, "4", [], float("nan")]),
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "BOOL", "f32", "X", "U64", None, 4, []]),
        "shape": st.one_of(st.lists(numbers, max_size=3), st.sampled_from([None, 4, "x", {}])),
        "data_offsets": st.one_of(st.lists(numbers, min_size=1, max_size=3), st.sampled_from([None, 4, "x"])),
    },
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(list(PLAIN)), change=entries, tail=st.integers(-2, 2))
@example("a", {"shape": [2**40, 2**40]}, 0)
@example("empty", {"shape": [0, 10**30]}, 0)
@example("b.weight", {"data_offsets": [True, 32]}, 0)
def test_what_the_library_refuses_is_refused_and_the_rest_is_the_same(
    name: str, change: Header, tail: int
) -> None:
    header, numbers = parts_of(safetensors.torch.save(PLAIN))
    header[name] = header[name] | change
    numbers = numbers[:tail] if tail < 0 else numbers + bytes(tail)
    data = file_of(json.dumps(header).encode(), numbers)
    ours, theirs = by_us(data), by_library(data)
    assert (ours is None) == (theirs is None)
    assert ours is None or same(ours, theirs)


def header_text(change: Callable[[str], str | bytes]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        text = change(header_of(data).decode())
        return file_of(text if isinstance(text, bytes) else text.encode(), parts_of(data)[1])

    return changed


def swapped(header: Header) -> Header:
    """The second tensor's numbers before the first's."""
    header["a"]["data_offsets"], header["b"]["data_offsets"] = [8, 16], [0, 8]
    return header


MALFORMED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "0 bytes do not hold a header"),
    "no header": (lambda data: data[:8], "8 bytes do not hold a header"),
    "cut": (lambda data: data[:-1], "its tensors end at 16 of 15 bytes"),
    "longer": (lambda data: data + b"x", "its tensors end at 16 of 17 bytes"),
    "a header of all the world": (lambda data: b"\xff" * 8 + data[8:], "do not hold a header"),
    "no text": (header_text(lambda text: b"\xff" + text.encode()), "codec can't decode"),
    "no json": (header_text(lambda text: text.rstrip()[:-2]), "delimiter"),
    "a byte order mark": (header_text(lambda text: "\ufeff" + text), "BOM"),
    "deep": (header_text(lambda text: "[" * 90_000), "nested too deeply"),
    "a list": (header_text(lambda text: "[]"), "not an object"),
    "a tensor twice": (
        header_text(lambda text: '{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]},' + text[1:]),
        "'a' is in its header twice",
    ),
    "half a character": (header_text(lambda text: text.replace('"a"', '"\\ud800"')), "surrogates"),
    "metadata of numbers": (
        header_text(lambda text: '{"__metadata__": {"x": 1},' + text[1:]),
        "__metadata__ is not a mapping of texts",
    ),
    "an overlap": (
        header_text(lambda text: text.replace("[8,16]", "[0,8]")),
        "tensor 'b' begins at 0, the one before it ends at 8",
    ),
    "too few bytes": (
        header_text(lambda text: text.replace('"shape":[2]', '"shape":[3]', 1)),
        r"tensor 'a': \[3\] of F32 are 12 bytes, not \[0, 8\]",
    ),
    "no dtype": (header_text(lambda text: text.replace("dtype", "kind", 1)), "tensor 'a' has no dtype"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_and_the_message_names_what_is_wrong(case: str):
    change, message = MALFORMED[case]
    data = change(safetensors.torch.save({"a": torch.ones(2), "b": torch.ones(2)}))
    with pytest.raises(ValueError, match=message):
        stored_tensors(data, 0)
    assert by_library(data) is None or case == "a tensor twice"


def test_tensors_may_be_listed_in_another_order_than_they_lie():
    header, numbers = parts_of(safetensors.torch.save({"a": torch.zeros(2), "b": torch.ones(2)}))
    data = file_of(json.dumps(swapped(header)).encode(), numbers)
    assert same(by_us(data), {"a": torch.ones(2), "b": torch.zeros(2)})
    assert same(by_us(data), by_library(data))
