"""Fewer threads than were asked for, as a limit of the machine gives: the same tokens."""

import json
import os
import subprocess
import sys

import pytest

from tests.data_plane.world import World

ANSWER = """
import json, sys
from pathlib import Path
from data_plane.config import EngineConfig
from data_plane.engine.local import LocalEngine
from data_plane.scheduler.sampling import SamplingParams

base, adapters = Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]
config = EngineConfig(model=base, adapter_roots=(base.parent,), max_loras=len(adapters), num_threads=3)
with LocalEngine(config) as engine:
    for path in adapters:
        engine.add_adapter(path.name, path)
    names = [*(path.name for path in adapters), None]
    prompts = [[3 + number, 5, 8, 13] for number in range(len(names))]
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    answers = engine.generate(prompts, sampling, adapter=names)
print(json.dumps([answer.choices[0].token_ids for answer in answers]))
"""


def tokens(world: World, **environment: str) -> list[list[int]]:
    paths = [str(world.base), *map(str, world.adapters.values())]
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, *paths],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    answer: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.processes
def test_a_limit_of_one_thread_gives_the_tokens_of_many(world: World):
    assert tokens(world, OMP_THREAD_LIMIT="1") == tokens(world)
