"""What a worker tells Prometheus. Nothing here runs on the step loop but the note of a load."""
