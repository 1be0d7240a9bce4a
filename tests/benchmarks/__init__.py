"""Benchmarks: figures as ratios, each taken in one interleaved run."""

import data_plane.openmp  # noqa: F401 - before anything imports torch
