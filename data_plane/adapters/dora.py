"""DoRA: the scale of every output column, computed once when an adapter is read.

    y = s · (W x + scaling · B A x) + bias,   s_o = m_o / ‖W_o + scaling · B_o A‖

The norm needs no changed matrix: ‖W_o + D_o‖² = ‖W_o‖² + 2 W_o·D_o + ‖D_o‖², and with D_o = B_o A the
products are (A Wᵀ) and (A Aᵀ), rank by rank. (DoRA, https://arxiv.org/abs/2402.09353.)
"""

import torch
from torch import Tensor

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.matched import LoraPair
from data_plane.errors import AdapterRefused


def column_scale(pair: LoraPair, magnitude: Tensor, base: BaseWeights) -> Tensor:
    """Return s, [out_features] fp32."""
    a, b = pair.a.float(), pair.b.float() * pair.scaling
    cross = (b * base.product(pair.name, a).t()).sum(1)
    own = ((b @ (a @ a.t())) * b).sum(1)
    norms = (base.norms_squared(pair.name) + 2 * cross + own).clamp(min=0).sqrt()
    scale = magnitude.float() / norms
    if not torch.isfinite(scale).all():
        raise AdapterRefused(
            f"tensor {pair.name}.lora_magnitude_vector: its quotient by the norm of the weight is not finite"
        )
    return scale
