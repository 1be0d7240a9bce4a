"""A recipe's plan packs any adapter of it as plain PyTorch would, and no adapter of another."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_plane.adapters.packer import LoraPacker
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.peft_config import PeftConfig
from data_plane.adapters.peft_json import peft_config
from data_plane.adapters.plan import PackPlan, Target, make_plan
from data_plane.adapters.plans import Plans
from data_plane.adapters.weight_files import WeightFiles
from data_plane.engine.cpu_kernels import choose_kernels
from data_plane.errors import AdapterRefused
from kernels.cpu.matrices import MatrixCopier, TorchCopier
from kernels.cpu.native_matrices import NativeCopier
from tests.data_plane.world import ALL, World

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """Which projections have which rank, and how the files keep them."""

    ranks: dict[str, int]  # by the last part of the name; the tiny model has two layers
    alpha: float = 6.0
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)  # of the tensors in turn
    num_files: int = 1
    begin: int = 0  # bytes that the header is longer, so that tensors begin anywhere
    reverse: bool = False

    @property
    def config(self) -> PeftConfig:
        return peft_config(
            {
                "peft_type": "LORA",
                "r": 1,
                "lora_alpha": self.alpha,
                "target_modules": list(self.ranks),
                "rank_pattern": self.ranks,
            }
        )

    def tensors(self, packer: LoraPacker, seed: int) -> Tensors:
        generator, found = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
        for name, target in packer.layout.targets.items():
            rank = self.ranks.get(name.rpartition(".")[2])
            if rank is not None:
                shapes = {"A": (rank, target.in_features), "B": (target.out_features, rank)}
                for kind, shape in shapes.items():
                    dtype = self.dtypes[len(found) % len(self.dtypes)]
                    values = torch.randn(shape, generator=generator).to(dtype)
                    found[f"base_model.model.{name}.lora_{kind}.weight"] = values
        return found

    def files(self, tensors: Tensors) -> WeightFiles:
        names = sorted(tensors, reverse=self.reverse)
        shards = [names[i :: self.num_files] for i in range(self.num_files)]
        return WeightFiles(
            {f"{i}.safetensors": self._file({n: tensors[n] for n in shard}) for i, shard in enumerate(shards)}
        )

    def _file(self, tensors: Tensors) -> bytes:
        # The library sorts tensors and aligns them.
        entries, numbers = {}, b""
        for name, tensor in tensors.items():
            begin = len(numbers)
            numbers += tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            span = [begin, len(numbers)]
            entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        header = json.dumps(entries).encode() + b" " * self.begin
        return len(header).to_bytes(8, "little") + header + numbers


def expected(recipe: Recipe, tensors: Tensors, packer: LoraPacker) -> list[torch.Tensor]:
    """A and B of every module that is changed, by PyTorch alone."""
    found = []
    for module in packer.layout.modules:
        ranks = [recipe.ranks.get(part.name.rpartition(".")[2], 0) for part in module.projections]
        if not any(ranks):
            continue
        a = torch.zeros(max(ranks), len(ranks), module.in_features)
        b = torch.zeros(max(ranks), module.out_features)
        for i, (part, rank, columns) in enumerate(
            zip(module.projections, ranks, module.columns, strict=True)
        ):
            if rank:
                key = f"base_model.model.{part.name}"
                a[:rank, i] = tensors[f"{key}.lora_A.weight"].float()
                b[:rank, columns] = (tensors[f"{key}.lora_B.weight"].float() * (recipe.alpha / rank)).t()
        found += [a.to(packer.dtype), b.to(packer.dtype)]
    return found


def assert_packed(packed: PackedLora, wanted: list[torch.Tensor]) -> None:
    found = [tensor for module in packed.modules if module for tensor in (module.a, module.b)]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(params=["torch", "c++"])
def packer(world: World, request: pytest.FixtureRequest) -> LoraPacker:
    copier: MatrixCopier = TorchCopier()
    if request.param == "c++":
        kernels = choose_kernels("auto").native
        if kernels is None:
            pytest.skip("no C++ kernels here")
        copier = NativeCopier(kernels)
    return replace(world.runtime.reader.packer, copier=copier)


recipes = st.builds(
    Recipe,
    ranks=st.dictionaries(st.sampled_from(ALL), st.integers(1, 16), min_size=1),
    alpha=st.sampled_from([1.0, 6.0, 0.3]),
    dtypes=st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=3).map(tuple),
    num_files=st.integers(1, 3),
    begin=st.integers(0, 9),
    reverse=st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_recipe_is_packed_to_the_bit_with_a_new_plan_and_with_a_known_one(
    packer: LoraPacker, recipe: Recipe, dtype: torch.dtype
):
    packer = replace(packer, dtype=dtype)
    for seed in (1, 2):
        tensors = recipe.tensors(packer, seed)
        packed = packer.pack_weights(recipe.files(tensors), recipe.config)
        assert_packed(packed, expected(recipe, tensors, packer))
        assert_packed(packer.pack(tensors, recipe.config), expected(recipe, tensors, packer))
    assert len(packer.plans) == 2, "one for the files, one for tensors of Python's"


def test_what_training_alone_knows_and_the_order_of_names_make_no_other_recipe(packer: LoraPacker):
    recipe = Recipe({"q_proj": 3, "up_proj": 3})
    raw = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    for options in (
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["up_proj", "q_proj"], "lora_dropout": 0.1, "base_model_name_or_path": "x"},
    ):
        tensors = recipe.tensors(packer, 1)
        packed = packer.pack_weights(recipe.files(tensors), peft_config(raw | options))
        assert_packed(packed, expected(recipe, tensors, packer))
    assert len(packer.plans) == 1


BASE = Recipe({"q_proj": 3, "v_proj": 3})


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, alpha=9.0),
        replace(BASE, dtypes=(torch.bfloat16,)),
        replace(BASE, dtypes=(torch.bfloat16, torch.float16)),  # lengths are the same
        replace(BASE, num_files=2),
        replace(BASE, reverse=True),
        replace(BASE, begin=1),
        replace(BASE, ranks={"k_proj": 3, "v_proj": 3}),
        replace(BASE, ranks={"v_proj": 3, "q_proj": 4}),
    ],
)
def test_another_recipe_has_another_plan(packer: LoraPacker, other: Recipe):
    for number, recipe in enumerate((BASE, other, BASE, other)):
        tensors = recipe.tensors(packer, number)
        packed = packer.pack_weights(recipe.files(tensors), recipe.config)
        assert_packed(packed, expected(recipe, tensors, packer))
    assert len(packer.plans) == 2


def test_another_packer_has_other_plans(packer: LoraPacker):
    tensors = BASE.tensors(packer, 1)
    packer.pack(tensors, BASE.config)
    other = replace(packer, dtype=torch.bfloat16)
    assert len(other.plans) == 0
    assert_packed(other.pack(tensors, BASE.config), expected(BASE, tensors, other))
    assert_packed(packer.pack(tensors, BASE.config), expected(BASE, tensors, packer))


def test_what_was_refused_is_refused_again_and_leaves_no_plan(packer: LoraPacker):
    tensors = BASE.tensors(packer, 1)
    tensors.popitem()
    for _ in range(2):
        with pytest.raises(AdapterRefused, match="is missing, its partner is there"):
            packer.pack_weights(BASE.files(tensors), BASE.config)
    assert len(packer.plans) == 0


@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_known_plan_refuses_numbers_that_are_not_finite_by_their_tensor(packer: LoraPacker, kind: str):
    tensors = BASE.tensors(packer, 1)
    packer.pack_weights(BASE.files(tensors), BASE.config)
    name = f"model.layers.1.self_attn.v_proj.lora_{kind}.weight"
    tensors[f"base_model.model.{name}"][-1, -1] = float("nan")
    with pytest.raises(AdapterRefused, match=f"tensor {name}: has values that are not finite"):
        packer.pack_weights(BASE.files(tensors), BASE.config)


def test_a_tensor_in_two_files_is_refused_by_name(packer: LoraPacker):
    tensors = BASE.tensors(packer, 1)
    files = BASE.files(tensors).files
    with pytest.raises(AdapterRefused, match=r"lora_A\.weight is in more than one file"):
        packer.pack_weights(WeightFiles({"1": files["0.safetensors"], **files}), BASE.config)


def test_plans_are_bounded_and_the_longest_unused_leaves_first(packer: LoraPacker):
    target = Target(packer.layout, packer.base, packer.dtype)
    stored = BASE.files(BASE.tensors(packer, 1)).stored()
    made = list[int]()

    def make(number: int) -> PackPlan:
        made.append(number)
        return make_plan(stored, BASE.config, target, packer.copier)

    plans = Plans(max_plans=3)
    for number in (0, 1, 2, 0, 3, 0, 1):
        plans.get(number, lambda number=number: make(number))
    assert made == [0, 1, 2, 3, 1], "0 was used again, so 1 left for 3"
    assert len(plans) == 3
