"""From a source or a name to an adapter's config, size and digest."""
