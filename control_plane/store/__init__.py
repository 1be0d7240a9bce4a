"""State in Redis: the client, the embedded server, scripts and the names of keys."""
