"""The registry API."""
