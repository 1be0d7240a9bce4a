"""The command tree, walked: every command by its path, and the least that it wants to be told."""

from collections.abc import Iterator, Sequence

import click
import typer

from control_plane.cli import app

Path = tuple[str, ...]


def leaves(command: click.Command, path: Path = ()) -> Iterator[tuple[Path, click.Command]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


def least_arguments(path: Path) -> Sequence[str]:
    """Arguments without which a command is wrong usage."""
    arguments = {
        "canary": ["bot", "--percent", "5"],
        "share": ["bot", "--with", "globex"],
        "unshare": ["bot", "--with", "globex"],
    }.get(path[-1])
    if arguments is not None:
        return arguments
    required = [parameter for parameter in COMMANDS[path].params if parameter.required]
    return ["x" for parameter in required if parameter.param_type_name == "argument"]
