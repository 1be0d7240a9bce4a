"""The sync API."""
