"""Tests of control_plane.placement."""
