"""Protocol definitions and their generated modules."""
