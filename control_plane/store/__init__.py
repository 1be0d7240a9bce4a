"""Redis: the client, and a Valkey of our own."""
