"""Model definitions of transformers with our layers inside."""
