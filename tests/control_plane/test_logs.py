import subprocess
import sys

import pytest

CRASH = """
import sys
import structlog
from control_plane import logs

logs.configure(level="info", form=sys.argv[1])

def serve(metadata):
    raise RuntimeError("a bug")

try:
    serve({"authorization": "Bearer " + "hunter" + "2"})
except RuntimeError as error:
    structlog.get_logger().error("unforeseen error", exc_info=error, password="hunter" + "2")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_where_but_no_variable_and_no_secret(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, form], check=True, capture_output=True, text=True, timeout=60
    )
    assert "a bug" in done.stderr
    assert "serve" in done.stderr
    assert "hunter2" not in done.stderr
