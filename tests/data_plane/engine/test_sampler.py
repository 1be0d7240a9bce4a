import pytest
import torch

from data_plane.engine.sampler import Sampler, uniform
from data_plane.scheduler.plan import Draw
from data_plane.scheduler.sampling import SamplingParams

EOS = 3
LOGITS = torch.tensor([0.5, 2.0, -1.0, 3.0, 1.0, 1.0, -4.0, 0.0])
sampler = Sampler([EOS])


def draw(index: int = 0, *, seed: int = 7, allow_eos: bool = True, prompt=(), output=(), **sampling) -> Draw:
    return Draw(SamplingParams(**sampling), seed, index, allow_eos, prompt, output)


def tokens_of(logits: torch.Tensor, num_draws: int = 4000, **sampling) -> torch.Tensor:
    """Frequencies of the tokens over many output indices."""
    draws = [draw(i, **sampling) for i in range(num_draws)]
    chosen = sampler.sample(logits.expand(num_draws, -1), draws)
    return torch.bincount(torch.tensor([c.token_id for c in chosen]), minlength=logits.shape[0]) / num_draws


def test_temperature_zero_takes_the_likeliest():
    assert sampler.sample(LOGITS[None], [draw(temperature=0)])[0].token_id == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_softmax(temperature: float):
    found = tokens_of(LOGITS, temperature=temperature)
    assert (found - torch.softmax(LOGITS / temperature, 0)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 3}, [3, 1, 4]),  # 4 and 5 tie: the lower id stays
        ({"top_k": 1}, [3]),
        ({"top_p": 0.7}, [3, 1]),
        ({"top_p": 0.01}, [3]),
        ({"min_p": 0.3}, [3, 1]),
        ({"top_k": 4, "top_p": 0.999, "min_p": 0.1}, [3, 1, 4, 5]),
    ],
)
def test_filters_keep_the_likeliest_and_renormalise(sampling: dict, kept: list[int]):
    expected = torch.zeros_like(LOGITS)
    expected[kept] = torch.softmax(LOGITS[kept], 0)
    found = tokens_of(LOGITS, **sampling)
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 0.03


def test_a_nucleus_wider_than_the_first_sort_is_exact():
    logits = torch.zeros(2000)
    found = tokens_of(logits, num_draws=3000, top_p=0.9)
    assert found[1800:].sum() == 0
    assert found[1500:1800].sum() > 0.1


def test_a_draw_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3000, generator=generator)
    draws = [
        draw(5, seed=11, top_p=0.9),
        draw(2, seed=12, top_k=1500),
        draw(3, seed=13),
        draw(0, temperature=0),
        draw(9, seed=-4, min_p=0.01, temperature=3.0),
        draw(1, seed=2**70, top_p=0.2, top_k=2),
    ]
    together = [choice.token_id for choice in sampler.sample(logits, draws)]
    apart = [sampler.sample(logits[i : i + 1], draws[i : i + 1])[0].token_id for i in range(6)]
    assert together == apart


def test_uniform_numbers_are_reproducible_and_spread_over_seeds_and_indices():
    assert uniform(1, 2) == uniform(1, 2)
    numbers = torch.tensor([uniform(seed, index) for seed in range(50) for index in range(50)])
    assert abs(float(numbers.mean()) - 0.5) < 0.02
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.unique().shape == numbers.shape


def test_eos_and_stop_tokens_are_not_drawn_before_min_tokens():
    choice = sampler.sample(LOGITS[None], [draw(temperature=0, allow_eos=False, stop_token_ids=(1,))])[0]
    assert choice.token_id == 4


def test_penalties_change_the_logits_as_documented():
    logits = torch.tensor([[2.0, -2.0, 1.9, 0.0]])
    # Repetition divides what is positive and multiplies what is negative.
    assert sampler.sample(logits, [draw(temperature=0, repetition_penalty=1.1, prompt=(0,))])[0].token_id == 2
    # Presence and frequency count the output only, not the prompt.
    once = draw(temperature=0, presence_penalty=0.05, prompt=(0, 0), output=(0,))
    assert sampler.sample(logits, [once])[0].token_id == 0
    thrice = draw(temperature=0, frequency_penalty=0.05, prompt=(), output=(0, 0, 0))
    assert sampler.sample(logits, [thrice])[0].token_id == 2


def test_one_requests_penalties_do_not_touch_its_neighbour():
    logits = LOGITS.expand(2, -1)
    chosen = sampler.sample(
        logits, [draw(temperature=0, presence_penalty=2, output=(3,)), draw(temperature=0)]
    )
    assert [choice.token_id for choice in chosen] == [1, 3]


def test_logprobs_are_of_the_models_own_distribution():
    choice = sampler.sample(LOGITS[None], [draw(temperature=0, presence_penalty=2, output=(3,), logprobs=2)])[
        0
    ]
    expected = torch.log_softmax(LOGITS, 0)
    assert choice.logprob is not None
    assert choice.logprob.token_id == 1
    assert choice.logprob.logprob == pytest.approx(float(expected[1]))
    assert [entry.token_id for entry in choice.top] == [3, 1]
    assert [entry.logprob for entry in choice.top] == pytest.approx([float(expected[3]), float(expected[1])])


def test_logits_that_are_not_numbers_still_give_a_token_of_the_vocabulary():
    logits = torch.full((2, 8), float("nan"))
    chosen = sampler.sample(logits, [draw(top_p=0.5), draw()])
    assert all(0 <= choice.token_id < 8 for choice in chosen)
