"""Pure functions: adapters and workers to commands, a request to a worker."""
