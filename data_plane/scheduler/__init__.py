"""Which tokens of which requests a step computes. No torch."""
