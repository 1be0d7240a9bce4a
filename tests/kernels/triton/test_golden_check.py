from pathlib import Path

import pytest

from tests.kernels.triton import budgets
from tests.kernels.triton.golden_check import differences, golden_file
from tests.kernels.triton.targets import Resources

USED = {
    "registers": 64,
    "shared_bytes": 16384,
    "tensor_core": 8,
    "wide_loads": 8,
    "async_copies": 8,
    "dependent": "WRW",
}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("registers", 73),
        ("shared_bytes", 16385),
        ("tensor_core", 7),
        ("async_copies", 9),
        ("dependent", "RW"),
    ],
)
def test_what_is_worse_than_the_golden_file_is_named(kind: str, value: object, tmp_path: Path):
    file = tmp_path / "3.9.0.json"
    file.write_text(budgets.json.dumps({"shrink@sm_90": USED}))
    assert differences({"shrink@sm_90": USED | {"registers": 72}}, file) == []
    (fault,) = differences({"shrink@sm_90": USED | {kind: value}}, file)
    assert fault.startswith("shrink@sm_90")
    assert differences({"other@sm_90": USED}, file) == ["other@sm_90: is not in 3.9.0.json"]


def test_the_full_run_fails_and_says_so_loudly_with_a_triton_that_has_no_golden_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fits = Resources(64, 0, 16384, 8, 8, 8, 0, 4, 4, 0, "WRW", [])
    made = [(launch, fits, True) for launch in budgets.launches("sm_90")]
    monkeypatch.setattr(budgets, "measurements", lambda target, everything, pool: made)
    monkeypatch.setattr(budgets, "golden_file", lambda: golden_file("99.0"))
    arguments = ["--targets", "sm_90"]
    assert budgets.main(arguments) == 0
    assert budgets.main([*arguments, "--compare"]) == 1
    assert "NOT PROVED: no golden file 99.0.json: nothing was compared" in capsys.readouterr().out
