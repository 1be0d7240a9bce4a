from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_plane.engine.detokenizer import Detokenizer
from tests.data_plane.fakes import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def pieces(text: str, stop: tuple[str, ...] = (), min_tokens: int = 0) -> tuple[list[str], str | None]:
    """What goes out, token by token, and the stop string that matched."""
    detokenizer = Detokenizer(TOKENIZER, (), stop)
    said = []
    for number, token in enumerate(TOKENIZER.encode(text).ids, 1):
        piece = detokenizer.push(token, may_stop=number > min_tokens)
        said.append(piece.text)
        if piece.matched_stop is not None:
            return said, piece.matched_stop
    return [*said, detokenizer.flush()], None


@given(st.text(max_size=40))
def test_the_pieces_add_up_to_the_text_and_none_is_cut_inside_a_character(text):
    said, _ = pieces(text)
    assert "".join(said) == text
    assert all("\ufffd" not in piece for piece in said if "\ufffd" not in text)


def test_a_character_of_four_tokens_comes_out_whole():
    assert pieces("a👋b") == (["a", "", "", "", "👋", "b", ""], None)


@pytest.mark.parametrize(
    ("text", "stop", "said", "matched"),
    [
        ("one END two", ("END",), "one ", "END"),
        ("one EN two", ("END",), "one EN two", None),
        ("one ENEND", ("END",), "one EN", "END"),
        ("aab", ("aaa", "ab"), "a", "ab"),
        ("grüße", ("üß",), "gr", "üß"),
        ("ends in EN", ("END",), "ends in EN", None),
    ],
)
def test_stop_strings_are_found_across_tokens_and_left_out(text, stop, said, matched):
    out, found = pieces(text, stop)
    assert ("".join(out), found) == (said, matched)


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3))
def test_no_stop_string_or_part_of_one_ever_goes_out(text, stop):
    out, matched = pieces(text, tuple(stop))
    ends = [text.find(word) + len(word) for word in stop if word in text]
    assert (matched is None) == (not ends)
    if matched is not None:
        said = "".join(out)
        assert text.startswith(said + matched)
        assert len(said + matched) == min(ends)
        assert not any(word in said for word in stop)


def test_nothing_stops_before_min_tokens():
    out, matched = pieces("END and END", ("END",), min_tokens=3)
    assert ("".join(out), matched) == ("END and ", "END")


def test_special_tokens_are_no_text_and_a_broken_character_is_flushed_as_such():
    detokenizer = Detokenizer(TOKENIZER, (), ())
    assert detokenizer.push(EOS).text == ""
    assert detokenizer.push(TOKENIZER.encode("é").ids[0]).text == ""
    assert detokenizer.flush() == "\ufffd"


MODEL = Path("build/models/smollm2-135m-instruct/tokenizer.json")


@pytest.mark.model
def test_a_real_tokenizers_text_comes_back_behind_any_prompt():
    tokenizer = Tokenizer.from_file(str(MODEL))
    text = "Hello wörld, 你好 👋🏽 — code:\n\tx = 1"
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("Say").ids, ())
    said = [detokenizer.push(token).text for token in tokenizer.encode(text).ids]
    assert "".join(said) + detokenizer.flush() == text
