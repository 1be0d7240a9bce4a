"""Who calls, and signed grants."""
