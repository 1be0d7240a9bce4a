"""Tests of control_plane.workers."""
