"""Sessions with workers: leases, commands, observed state."""
