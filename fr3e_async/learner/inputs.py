"""What the model is run on: a micro-batch's share of the forward pass, as tensors on a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fr3e_async.learner.layout import Kernel, Layout, kernel_for, make_layout, places_of
from fr3e_async.learner.packing import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Names as in ``packing.MicroBatch``."""

    tokens: Tensor  # [B, W]
    positions: Tensor | None  # [B, W]
    layout: Layout | None
    rows: Tensor  # [P]
    targets: Tensor  # [P]

    @classmethod
    def of(cls, batch: MicroBatch, device: torch.device, *, kernel: Kernel = "auto") -> Inputs:
        """``kernel``: learner.tree_attention."""
        tokens, positions, layout = batch.tokens, batch.positions, None
        if batch.forest is not None:
            kernel = kernel_for(device, kernel)
            places = places_of(batch.forest, kernel)
            assert positions is not None
            tokens, positions = (np.pad(array, ((0, 0), (0, places - array.shape[1]))) for array in (tokens, positions))
            layout = make_layout(batch.forest, places=places, device=device, kernel=kernel)
        return cls(
            tokens=torch.from_numpy(tokens).to(device),
            positions=None if positions is None else torch.from_numpy(positions).to(device),
            layout=layout,
            rows=torch.from_numpy(batch.rows).to(device),
            targets=torch.from_numpy(batch.targets).to(device),
        )
