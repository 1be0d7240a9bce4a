"""The data plane: workers that hold the base model and serve any mix of adapters in one batch."""
