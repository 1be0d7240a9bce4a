import json

from tests.benchmarks.goals import GOALS, at_least, at_most, keep


def test_a_figure_on_its_goal_reaches_it_and_one_beyond_does_not():
    assert at_least(0.9, "").reached(0.9)
    assert not at_least(0.9, "").reached(0.899)
    assert at_most(1.2, "").reached(1.2)
    assert not at_most(1.2, "").reached(1.201)


def test_a_figure_that_is_no_number_reaches_no_goal():
    assert not any(goal.reached(float("nan")) for goal in GOALS.values() if goal.bound)


def test_a_miss_that_noise_explains_does_not_break_the_build_and_a_larger_one_does():
    assert not at_least(1.0, "").broken(0.7)
    assert at_least(1.0, "").broken(0.4)
    assert not at_most(1.0, "").broken(1.5)
    assert at_most(1.0, "").broken(2.1)


def test_figures_of_another_benchmark_stay(tmp_path):
    path = tmp_path / "bench.json"
    keep({"first": 1.0, "both": 1.0}, path)
    keep({"second": 2.0, "both": 2.0}, path)
    assert json.loads(path.read_text()) == {"first": 1.0, "second": 2.0, "both": 2.0}
