"""Adapters on a worker: files, CPU cache, slots and the rank pool."""
