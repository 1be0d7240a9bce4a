import re
import time

import pytest

from data_plane.adapters.patterns import why_unsafe

NAME = "model.language_model.layers.31.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r".*\.(q|v)_proj",
        r"^(?!.*vision).*\.layers\.(0|1|2)\..*(?:gate_proj|up_proj)$",
        r"model\.layers\.\d+\.self_attn\.[qkv]_proj",
        r"(language_)?model.*q_proj",
    ],
)
def test_ordinary_patterns_may_run(pattern: str):
    assert why_unsafe(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        r"([a-z._0-9]+)+X",
        r"(a|a)*b",
        r"(.*)*x",
        r"((.*)+)?x",
        r"(a{1,9}){1,9}",
        r"(?>.+)+",
    ],
)
def test_a_repeated_group_is_refused(pattern: str):
    assert "repeats a group" in (why_unsafe(pattern) or "")


def test_too_many_repetitions_are_refused():
    assert why_unsafe(".*" * 5) == "has 5 repetitions, more than 4"
    assert why_unsafe("a?" * 9) == "has 9 optional parts, more than 8"


def test_the_slowest_pattern_that_may_run_ends_soon():
    pattern = ".*" * 4 + "a?" * 8 + "X"
    assert why_unsafe(pattern) is None
    begin = time.process_time()
    assert re.fullmatch(pattern, NAME) is None
    assert time.process_time() - begin < 1


def test_what_is_no_expression_is_refused():
    assert (why_unsafe("(q_proj") or "").startswith("is not a regular expression: missing )")
    assert why_unsafe("(" * 5000 + ")" * 5000) == "is longer than 2000 characters"
