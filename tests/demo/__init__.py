"""The demo: its model, its adapters and its script."""
