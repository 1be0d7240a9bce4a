"""An S3 service of our own for tests: moto behind a proxy that can fail."""
