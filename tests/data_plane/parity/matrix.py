"""The matrix as a table: what each cell came to."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.data_plane.parity.architectures import ARCHITECTURES
from tests.data_plane.parity.features import FEATURES

REFUSED = "refused"
FAILED = "FAILED"
NOT_RUN = "-"


@dataclass(frozen=True, slots=True)
class Matrix:
    """By model type and feature: the error relative to PEFT, or that it is refused by name."""

    cells: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every cell was tried."""
        return len(self.cells) >= len(ARCHITECTURES) * len(FEATURES)

    def lines(self) -> Iterator[str]:
        """A row a feature, a column an architecture."""
        types = [architecture.model_type for architecture in ARCHITECTURES]
        yield f"{'':16}" + "".join(f"{model_type:>12}" for model_type in types)
        for feature in FEATURES:
            row = (self.cells.get((model_type, feature.name), NOT_RUN) for model_type in types)
            yield f"{feature.name:16}" + "".join(f"{cell:>12}" for cell in row)
