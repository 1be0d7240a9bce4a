"""The worker's gRPC service: convert, call the engine, convert."""
