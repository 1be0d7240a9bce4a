"""Adapters and their revisions: what exists, who owns it, what each name means."""
