"""The quota API."""
