"""This package's kernels are interpreted: no GPU and no compiler.

Decoration decides, so the kernels are decorated anew in case another test imported them first.
What must be compiled (budgets, dry run) is tested in processes of its own.
"""

import importlib
from pathlib import Path

import pytest

from tests.kernels.triton import interpreter

interpreter.install()

from kernels.lora.triton import expand, shrink  # noqa: E402 (after the interpreter is installed)
from kernels.lora.triton.ends import expand as end_expand  # noqa: E402
from kernels.lora.triton.ends import lookup, product  # noqa: E402
from kernels.lora.triton.ends import shrink as end_shrink  # noqa: E402

# The projections' first: the ends' take parts of theirs.
for module in (expand, shrink, lookup, end_shrink, end_expand, product):
    importlib.reload(module)


PROOF_S = 180  # of `make test`, on a machine that does nothing else


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the proof took beside what it may take: `make kernels` is where long checks belong."""
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    took = sum(
        report.duration
        for report in reports
        if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/kernels/triton/")
    )
    if took:
        terminalreporter.write_line(
            f"proof of the GPU kernels: {took:.0f} s; `make test` has {PROOF_S} s for it"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The proof of the GPU kernels takes a minute: `make check` leaves it out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.proof)
