"""A fleet of workers without models: the real protocol, real replicas, a real Valkey."""
