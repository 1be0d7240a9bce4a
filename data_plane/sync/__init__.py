"""The worker's stream to the control plane."""
