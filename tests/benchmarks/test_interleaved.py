from tests.benchmarks.interleaved import Rounds, interleave


def test_systems_take_turns_and_every_other_round_goes_backwards():
    calls: list[tuple[str, int]] = []

    def system(name: str):
        return lambda number: calls.append((name, number)) or 1.0

    interleave({"a": system("a"), "b": system("b")}, 2, num_warm_ups=1)
    assert calls == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_warm_up_rounds_are_not_kept():
    rounds = interleave({"a": float}, 3, num_warm_ups=2)
    assert rounds.values == {"a": [0.0, 1.0, 2.0]}


def test_a_ratio_is_the_median_of_the_rounds_ratios_whatever_the_machine_did_between_rounds():
    # The second round ran at a tenth of the speed; each pair still says 2.
    rounds = Rounds({"a": [2.0, 20.0, 4.0], "b": [1.0, 10.0, 2.0]})
    assert rounds.ratio("a", "b") == 2.0
    assert Rounds({"a": [1.0, 9.0, 4.0], "b": [1.0, 3.0, 2.0]}).ratio("a", "b") == 2.0
