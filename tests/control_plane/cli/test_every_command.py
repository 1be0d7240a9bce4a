"""What holds for the whole command tree, so that a new command cannot forget it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.testing import CliRunner

from control_plane.cli import app
from tests.control_plane.cli.tree import COMMANDS, least_arguments

# They become the process that they start, whose settings are its own.
PROCESSES = {("control-plane",), ("worker", "run")}


def flags(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts}


def test_the_tree_has_every_area() -> None:
    assert {path[0] for path in COMMANDS} >= {
        "adapter", "audit", "certs", "control-plane", "down", "generate", "key", "models", "quota",
        "tokenize", "top", "traffic", "up", "worker",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(set(COMMANDS) - PROCESSES), ids=" ".join)
def test_every_command_prints_json_and_says_what_it_is_for(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert "--json" in flags(command)
    assert command.help
    assert all(getattr(parameter, "help", None) for parameter in command.params), "an option without help"


@pytest.mark.parametrize(
    "path",
    sorted(path for path, command in COMMANDS.items() if "--key" in flags(command)),
    ids=" ".join,
)
def test_without_a_control_plane_every_command_fails_with_one_line_that_says_what_to_do(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = least_arguments(path)
    environment = {"LORAPLANE_STATE_DIR": str(tmp_path), "COLUMNS": "300"}
    result = CliRunner(env=environment).invoke(app, [*path, *arguments, "--endpoint", "127.0.0.1:1"])
    assert result.exit_code == 1, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: UNAVAILABLE: ")
    assert line.endswith("is the control plane running? `loraplane up` starts one")
    assert not result.stdout


def test_certificates_as_json_name_their_files(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["certs", str(tmp_path), "--json"])
    said = json.loads(result.stdout)
    assert said["directory"] == str(tmp_path)
    assert set(said["files"]) == {str(file) for file in tmp_path.glob("*.pem")}


def test_nothing_to_stop_as_json_is_an_empty_list(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["down", "--state-dir", str(tmp_path), "--json"])
    assert json.loads(result.stdout) == {"stopped": []}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_completion_script(shell: str) -> None:
    script = completion(f"source_{shell}", "")
    assert "loraplane" in script
    assert "_LORAPLANE_COMPLETE" in script


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("loraplane ad", {"adapter"}), ("loraplane adapter re", {"register", "reload"}),
     ("loraplane quota get --ada", {"--adapter"})],
)  # fmt: skip
def test_commands_and_options_are_completed(typed: str, offered: set[str]) -> None:
    assert set(completion("complete_bash", typed).split()) == offered


def completion(instruction: str, typed: str) -> str:
    """What the shell gets from the command when it asks for completions."""
    environment = {
        **os.environ,
        "_LORAPLANE_COMPLETE": instruction,
        "COMP_WORDS": typed,
        "COMP_CWORD": str(max(0, len(typed.split()) - 1)),
    }
    command = [sys.executable, "-c", "from control_plane.cli import app; app(prog_name='loraplane')"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout
