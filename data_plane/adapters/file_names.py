"""The names of the files that an adapter may have beside its configuration; reaches no torch."""

WEIGHTS = "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"  # names the shards
BIN = "adapter_model.bin"
EXTRA_VOCABULARY = "new_embeddings.safetensors"  # rows of tokens that the base model does not have
