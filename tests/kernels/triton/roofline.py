"""The least time a launch can take: its bytes and FLOPs against a GPU's limits. A prediction.

    python -m tests.kernels.triton.roofline          prints the tables of docs/kernels.md

Nothing here was measured. Time of a launch = max(bytes / bandwidth, FLOPs / throughput); of a
step = the sum over its launches, each with a fixed cost where no graph hides it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ELEMENT_BYTES = 2  # bf16
PARTIAL_BYTES = 4  # fp32


@dataclass(frozen=True, slots=True)
class Gpu:
    """Limits from a data sheet."""

    name: str
    bytes_per_s: float
    flops_per_s: float  # bf16 with fp32 accumulation, dense
    launch_s: float  # of a launch in a captured graph, back to back


H100 = Gpu("H100 SXM", 3.35e12, 989e12, 1e-6)


@dataclass(frozen=True, slots=True)
class Projection:
    """One fused projection of a layer, as one GPU holds it."""

    name: str
    in_features: int
    widths: tuple[int, ...]

    @property
    def out_features(self) -> int:
        """Columns of all slices."""
        return sum(self.widths)


@dataclass(frozen=True, slots=True)
class Model:
    """What a decode step multiplies with."""

    name: str
    num_layers: int
    projections: tuple[Projection, ...]
    head: Projection  # the vocabulary, as one GPU holds it


LLAMA_8B = Model(
    "Llama-3-8B",
    32,
    (
        Projection("qkv", 4096, (4096, 1024, 1024)),
        Projection("o", 4096, (4096,)),
        Projection("gate_up", 4096, (14336, 14336)),
        Projection("down", 14336, (4096,)),
    ),
    Projection("head", 4096, (128256,)),
)
LLAMA_70B_TP8 = Model(
    "Llama-3-70B, 1 of 8",
    80,
    (
        Projection("qkv", 8192, (1024, 128, 128)),
        Projection("o", 1024, (8192,)),
        Projection("gate_up", 8192, (3584, 3584)),
        Projection("down", 3584, (8192,)),
    ),
    Projection("head", 8192, (16032,)),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What launches move and compute."""

    num_bytes: float
    flops: float
    launches: int

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.num_bytes + other.num_bytes, self.flops + other.flops, self.launches + other.launches
        )

    def seconds(self, gpu: Gpu, launch_s: float = 0.0) -> float:
        """The least time, with a fixed cost a launch."""
        return max(self.num_bytes / gpu.bytes_per_s, self.flops / gpu.flops_per_s) + self.launches * launch_s


@dataclass(frozen=True, slots=True)
class Traffic:
    """A decode step: requests, and how they share adapters."""

    num_tokens: int
    num_adapters: int
    rank: int


def base(projection: Projection, traffic: Traffic) -> Work:
    """The base product: weights once, activations in and out."""
    n, k, m = projection.out_features, projection.in_features, traffic.num_tokens
    return Work(ELEMENT_BYTES * (n * k + m * (n + k)), 2 * m * n * k, 1)


def shrink(projection: Projection, traffic: Traffic, split_k: int = 8) -> Work:
    """Inputs once, the A rows of each adapter once, partial sums out."""
    columns = traffic.rank * len(projection.widths)
    m, k = traffic.num_tokens, projection.in_features
    moved = (
        ELEMENT_BYTES * (m * k + traffic.num_adapters * columns * k) + PARTIAL_BYTES * split_k * m * columns
    )
    return Work(moved, 2 * m * columns * k, 1)


def expand(projection: Projection, traffic: Traffic, split_k: int = 8) -> Work:
    """Partial sums in, the B rows of each adapter once, outputs in and out."""
    m, n = traffic.num_tokens, projection.out_features
    columns = traffic.rank * len(projection.widths)
    moved = PARTIAL_BYTES * split_k * m * columns + ELEMENT_BYTES * (
        traffic.num_adapters * traffic.rank * n + 2 * m * n
    )
    return Work(moved, 2 * m * traffic.rank * n, 1)


def ours(projection: Projection, traffic: Traffic) -> Work:
    """Two launches at true rank."""
    return shrink(projection, traffic) + expand(projection, traffic)


def lookup(width: int, traffic: Traffic) -> Work:
    """A row of Aᵀ a token, B of each adapter once, embeddings in and out."""
    m, rank = traffic.num_tokens, traffic.rank
    elements = m * rank + traffic.num_adapters * rank * width + 2 * m * width
    return Work(ELEMENT_BYTES * elements, 2 * m * rank * width, 1)


def own_head(projection: Projection, traffic: Traffic) -> Work:
    """A matrix of each adapter once instead of the base's, inputs in, outputs out."""
    n, k, m = projection.out_features, projection.in_features, traffic.num_tokens
    return Work(ELEMENT_BYTES * (traffic.num_adapters * n * k + m * (n + k)), 2 * m * n * k, 1)


def padded(projection: Projection, traffic: Traffic, max_rank: int = 64) -> Work:
    """Three launches at the pool's largest rank: zero a buffer, shrink, expand, all slices in each."""
    wide = Traffic(traffic.num_tokens, traffic.num_adapters, max_rank)
    columns = max_rank * len(projection.widths)
    zeroed = Work(PARTIAL_BYTES * traffic.num_tokens * columns, 0, 1)
    return zeroed + shrink(projection, wide, split_k=1) + expand(projection, wide, split_k=1)


def step_seconds(works: Sequence[Work], num_layers: int, gpu: Gpu, launch_s: float = 0.0) -> float:
    """All layers of one step, without attention and the head."""
    return num_layers * sum(work.seconds(gpu, launch_s) for work in works)


def ratio(
    model: Model, traffic: Traffic, gpu: Gpu = H100, *, pad_to: int | None = None, launch_s: float = 0.0
) -> float:
    """(base + LoRA) / base of one step; `pad_to` is the padded design's rank."""
    plain = [base(projection, traffic) for projection in model.projections]
    if pad_to is None:
        lora = [part for p in model.projections for part in (shrink(p, traffic), expand(p, traffic))]
    else:
        lora = [padded(p, traffic, pad_to) for p in model.projections]
    without = step_seconds(plain, model.num_layers, gpu, launch_s)
    return 1 + step_seconds(lora, model.num_layers, gpu, launch_s) / without


TRAFFICS = (
    Traffic(1, 1, 16),
    Traffic(8, 8, 16),
    Traffic(64, 1, 16),
    Traffic(64, 16, 16),
    Traffic(64, 64, 16),
    Traffic(64, 64, 64),
)


def launch_table(model: Model, traffic: Traffic) -> str:
    """Bytes and FLOPs of every launch of a layer."""
    shape = f"{traffic.num_tokens} tokens, {traffic.num_adapters} adapters, rank {traffic.rank}"
    lines = [
        f"| {model.name}, {shape} | bytes | FLOPs | least time on {H100.name} |",
        "| --- | --- | --- | --- |",
    ]
    for projection in model.projections:
        for name, work in (
            ("base", base(projection, traffic)),
            ("shrink", shrink(projection, traffic)),
            ("expand", expand(projection, traffic)),
        ):
            lines.append(
                f"| {projection.name} {name} | {work.num_bytes / 2**20:.2f} MiB "
                f"| {work.flops / 1e6:.1f} M | {work.seconds(H100) * 1e6:.2f} µs |"
            )
    return "\n".join(lines)


def end_table(model: Model, traffic: Traffic) -> str:
    """Bytes and FLOPs of the ends' launches, one of each a step."""
    head = model.head
    shape = f"{traffic.num_tokens} tokens, {traffic.num_adapters} adapters, rank {traffic.rank}"
    lines = [
        f"| ends of {model.name}, {shape} | bytes | FLOPs | least time on {H100.name} |",
        "| --- | --- | --- | --- |",
    ]
    for name, work in (
        ("embedding lookup", lookup(head.in_features, traffic)),
        ("head base", base(head, traffic)),
        ("head shrink", shrink(head, traffic)),
        ("head expand", expand(head, traffic)),
        ("heads of their own", own_head(head, traffic)),
    ):
        lines.append(
            f"| {name} | {work.num_bytes / 2**20:.2f} MiB | {work.flops / 1e6:.1f} M "
            f"| {work.seconds(H100) * 1e6:.2f} µs |"
        )
    return "\n".join(lines)


def ratio_table() -> str:
    """Limit ratios of both designs."""
    lines = [
        "| model | tokens × adapters × rank | limit | two launches, true rank | three, padded to 64 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model in (LLAMA_8B, LLAMA_70B_TP8):
        for traffic in TRAFFICS:
            lines.append(
                f"| {model.name} | {traffic.num_tokens} × {traffic.num_adapters} × {traffic.rank} "
                f"| {ratio(model, traffic):.2f} | {ratio(model, traffic, launch_s=H100.launch_s):.2f} "
                f"| {ratio(model, traffic, pad_to=64, launch_s=H100.launch_s):.2f} |"
            )
    return "\n".join(lines)


def design_table() -> str:
    """Launches and bytes a step of both designs."""
    lines = [
        "| model | tokens × adapters × rank | launches: ours | padded | LoRA bytes: ours | padded |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in (LLAMA_8B, LLAMA_70B_TP8):
        for traffic in TRAFFICS:
            mine = [ours(p, traffic) for p in model.projections]
            theirs = [padded(p, traffic) for p in model.projections]
            counts = [model.num_layers * sum(work.launches for work in works) for works in (mine, theirs)]
            sizes = [
                model.num_layers * sum(work.num_bytes for work in works) / 2**20 for works in (mine, theirs)
            ]
            lines.append(
                f"| {model.name} | {traffic.num_tokens} × {traffic.num_adapters} × {traffic.rank} "
                f"| {counts[0]} | {counts[1]} | {sizes[0]:.0f} MiB | {sizes[1]:.0f} MiB |"
            )
    return "\n".join(lines)


def tables() -> list[str]:
    """What docs/kernels.md shows."""
    traffic = Traffic(64, 16, 16)
    return [
        ratio_table(),
        design_table(),
        launch_table(LLAMA_8B, traffic),
        launch_table(LLAMA_70B_TP8, traffic),
        end_table(LLAMA_8B, traffic),
    ]


if __name__ == "__main__":
    print("\n\n".join(tables()))
