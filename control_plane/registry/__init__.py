"""Which adapters and revisions exist."""
