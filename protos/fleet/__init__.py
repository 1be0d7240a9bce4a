"""The fleet API."""
