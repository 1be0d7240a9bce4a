"""The access API."""
