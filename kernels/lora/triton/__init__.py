"""LoRA over the rank pool on a GPU: Triton kernels, their block sizes and launch metadata."""
