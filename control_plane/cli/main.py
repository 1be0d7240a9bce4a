"""The command tree."""

import typer

from control_plane.cli import adapters, keys, processes, quotas, traffic, watch, workers
from control_plane.cli.audit import audit
from control_plane.cli.certificates import certs
from control_plane.cli.command import command
from control_plane.cli.generate import generate
from control_plane.cli.models import models, tokenize
from control_plane.cli.top import top

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold keys
    help="Serve thousands of LoRA adapters of one base model to many tenants.",
)
app.add_typer(adapters.app, name="adapter")
app.add_typer(quotas.app, name="quota")
app.add_typer(workers.app, name="worker")
app.add_typer(keys.app, name="key")
app.command("up")(processes.up)
app.command("down")(processes.down)
app.command("control-plane", context_settings=processes.PASS_THROUGH)(processes.control_plane)
workers.app.command("run", context_settings=processes.PASS_THROUGH)(processes.worker)
command(app, "generate")(generate)
command(adapters.app, "watch")(watch.watch_adapters)
command(workers.app, "watch")(watch.watch_workers)
command(app, "models")(models)
command(app, "tokenize")(tokenize)
command(app, "audit")(audit)
command(app, "top")(top)
app.add_typer(traffic.app, name="traffic")
app.command("certs")(certs)


@workers.app.callback(invoke_without_command=True)
def _worker(context: typer.Context) -> None:
    """Workers: without a command, run one with the settings of environment and config file."""
    if context.invoked_subcommand is None:
        processes.worker(context)
