"""Who calls: API keys, and the grants that workers check."""
