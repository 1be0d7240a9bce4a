"""The base model as the runner sees it: flattened tokens in, logits of chosen rows out.

Knows nothing of requests or sampling. One forward pass computes every chunk of a step as a single
row of tokens with restarted positions; the KV cache and the segments keep them apart.
"""

from torch import Tensor
from transformers import PreTrainedModel

from data_plane.models.step import StepState
from kernels.cpu.paging import PagedBatch
from kernels.lora.segments import Segments


class BaseModel:
    """A definition of transformers with our layers in it."""

    def __init__(self, definition: PreTrainedModel, state: StepState) -> None:
        self._definition, self._state = definition, state

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        logit_rows: Tensor,
        batch: PagedBatch,
        segments: Segments | None,
    ) -> Tensor:
        """Compute one step.

        token_ids, positions [num_tokens] int64; logit_rows [num_logits] int64, the rows of the batch
        that need logits → [num_logits, vocab_size] in the model's dtype.
        """
        self._state.set(batch, segments, logit_rows)
        output = self._definition(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=logit_rows,
        )
        logits: Tensor = output.logits
        return logits[0]
