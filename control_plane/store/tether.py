"""Tether: ask Linux to end this process with its parent, then become another program.

Run as a script: `python -I -S tether.py <parent pid> <program> <arguments…>`. A program of its own
and not a `preexec_fn`, because Python code between fork and exec may deadlock in a process that
has threads, and gRPC has. Elsewhere than on Linux it only becomes the program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and replace it by the program."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            raise SystemExit(f"the parent {parent} is gone")
    os.execv(program, sys.argv[2:])  # noqa: S606 - our own program, no shell


if __name__ == "__main__":
    main()
