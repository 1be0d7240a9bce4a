import pytest

from tests.data_plane.parity.matrix import Matrix
from tests.data_plane.parity.served import Served

MATRIX = pytest.StashKey[Matrix]()


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """An engine on the architecture that the test is parametrised with."""
    return Served(request.param, tmp_path_factory.mktemp("served"))


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Matrix:
    return request.config.stash.setdefault(MATRIX, Matrix())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    matrix = config.stash.get(MATRIX, Matrix())
    if matrix.is_whole:
        terminalreporter.section("parity with PEFT: largest error of a logit, relative")
        for line in matrix.lines():
            terminalreporter.write_line(line)
