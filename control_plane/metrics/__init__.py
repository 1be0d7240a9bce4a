"""What a replica tells Prometheus."""
