"""The control plane: which adapters exist, who owns them, where they live. No torch."""
