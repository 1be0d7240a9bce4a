"""`python -m control_plane.cli`: the command, where the console script is not installed."""

from control_plane.cli.main import app

if __name__ == "__main__":
    app(prog_name="loraplane")
