import json

import torch

from data_plane.adapters.peft_json import parse_peft_config
from tests.benchmarks import llama_shapes
from tests.benchmarks.synthetic import ALL_LINEAR, peft_config


def test_the_shapes_hold_the_weights_of_the_models_layers():
    # 8.03e9 parameters, of which 1.05e9 are embedding and head and 0.27e6 norms.
    weights = sum(module.in_features * module.out_features for module in llama_shapes.layout().modules)
    assert weights == 8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096


def test_a_random_adapter_is_packed_whole():
    tensors = llama_shapes.tensors(rank=1)
    packed = llama_shapes.packer(rank=1).pack(
        tensors, parse_peft_config(json.dumps(peft_config(1, ALL_LINEAR)).encode())
    )
    assert packed.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    last = packed.weights_of("model.layers.31.mlp.down_proj", llama_shapes.layout())
    assert torch.equal(last.a, tensors["base_model.model.model.layers.31.mlp.down_proj.lora_A.weight"])
