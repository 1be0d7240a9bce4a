"""LoRA over the rank pool: shrink, expand and their host metadata."""
