"""Tests of loraplane; mirrors the packages."""
