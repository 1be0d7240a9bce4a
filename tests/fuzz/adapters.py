"""Adapters: a valid PEFT directory with a few things done to it that nobody should do.

Each mutation changes a copy in place and is driven by a random generator alone. Some results are still
valid adapters; what they compute is for PEFT to say.
"""

from pathlib import Path
from random import Random

from tests.fuzz.config_changes import OF_FILE, OF_OPTIONS
from tests.fuzz.directory_changes import OF_DIRECTORY
from tests.fuzz.tensor_changes import OF_TENSORS
from tests.fuzz.weight_file_changes import OF_WEIGHT_FILE

_ONCE = (*OF_TENSORS, *OF_FILE, *OF_WEIGHT_FILE, *OF_DIRECTORY)


def mutate(directory: Path, rng: Random) -> str:
    """Do one to three things to the directory; return what was done, for whoever reads of it."""
    # What makes the files unreadable comes last, and once.
    changes = [rng.choice(OF_OPTIONS) for _ in range(rng.choice((0, 0, 1, 2)))]
    if not changes or rng.random() < 0.3:
        changes.append(rng.choice(_ONCE))
    return ", ".join(f"{change.__name__.strip('_')} {change(directory, rng)}" for change in changes)
