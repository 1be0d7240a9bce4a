"""`python -m tests.kernels.gpu`: see `run`. Without torch or Triton one line says so; it ends with 2."""

import sys
from importlib.util import find_spec


def main(arguments: list[str]) -> int:
    """What `run` returns."""
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    if missing:
        print(
            f"no GPU run: {sys.executable} lacks {', '.join(missing)}; set GPU_PYTHON to a python that has it"
        )
        return 2
    # Here, because without torch nothing of the kernels can be imported.
    from tests.kernels.gpu import run

    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
