"""`python -m tests.kernels.gpu`: see `run`."""

import sys

from tests.kernels.gpu.run import main

sys.exit(main(sys.argv[1:]))
