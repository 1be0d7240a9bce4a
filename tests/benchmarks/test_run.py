import pytest

from tests.benchmarks.run import Run

# Two streams of 10 prompt tokens; the second begins at 3 s, the first ends at 5 s.
RUN = Run(
    began_s=1.0,
    arrivals=[[(2.0, 1), (3.0, 1), (4.0, 1), (5.0, 1)], [(3.0, 1), (4.0, 2), (5.0, 1), (6.0, 1)]],
    num_prompt_tokens=20,
)


def test_the_total_rate_counts_prompt_and_new_tokens_until_the_last_came():
    assert RUN.total_rate == (20 + 9) / 5


def test_the_prompt_rate_ends_when_every_stream_has_its_first_token():
    assert RUN.prompt_rate == 20 / 2


def test_the_decode_rate_counts_only_the_time_when_every_stream_decodes():
    # 3 to 5 s: two tokens of the first stream, three of the second.
    assert RUN.decode_rate == 5 / 2


def test_streams_that_never_decode_together_have_no_decode_rate():
    apart = Run(0.0, [[(1.0, 1), (2.0, 1)], [(3.0, 1), (4.0, 1)]], 2)
    with pytest.raises(ValueError, match="arrivals"):
        _ = apart.decode_rate
