"""Adapters of the embedding and the output head on a GPU: their kernels, block sizes and addresses."""
