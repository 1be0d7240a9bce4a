"""How many compiled matrix products oneDNN keeps; imported before torch, which reads this once.

oneDNN compiles a product for each number of tokens and shape of matrix: 1 ms, and 0.6 MB in two caches
(its own and that of torch's binding), each of 1,024 products unless told otherwise. Every new number of
tokens in a step so made a worker grow, up to 0.6 GB beside a model of 0.27 GB. 320 products are 64 token
counts of a model with five shapes: every decode batch of the default `max_num_seqs`. Measured with 120
matrices of SmolLM2-135M, against 1,024 products: steps of 1 to 512 tokens drawn at random take 4 %
longer, and 223 MB instead of 379 after 120 of them.
What the environment says already stays.
"""

import os

NUM_PRODUCTS = 320

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(NUM_PRODUCTS))
os.environ.setdefault("LRU_CACHE_CAPACITY", str(NUM_PRODUCTS))
