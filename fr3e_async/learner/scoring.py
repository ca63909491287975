"""Exact entropies of given completions under the policy as it is: for engines that cannot give them.

Knows nothing of groups or anchors. Every rank runs the same number of forward passes, since under ZeRO-3 each is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fr3e_async.config import LearnerConfig
from fr3e_async.learner.inputs import Inputs
from fr3e_async.learner.packing import collate, dummy, plan
from fr3e_async.learner.update import Engine, all_reduced
from fr3e_async.types import TrainSample


@torch.no_grad()
def entropies(
    engine: Engine, samples: Sequence[TrainSample], *, learner: LearnerConfig, device: torch.device
) -> list[NDArray[np.float32]]:
    """For each sample of this rank the [completion] entropies, nats, at the sampling temperature, full vocabulary."""
    packing = learner.packing
    parts = plan(samples, packing=packing, budget=learner.micro_batch_tokens) if samples else []
    rounds = int(all_reduced(torch.tensor(len(parts), device=device), dist.ReduceOp.MAX))
    found: dict[int, NDArray[np.float32]] = {}
    for part in [*parts, *[[]] * (rounds - len(parts))]:
        batch = collate([samples[i] for i in part], packing=packing) if part else dummy(packing)
        flat = engine.forward(Inputs.of(batch, device, kernel=learner.tree_attention))[1].float().cpu().numpy()[batch.pick]
        ends = np.cumsum([len(samples[i].versions) for i in part])
        found |= dict(zip(part, np.split(flat, ends[:-1]), strict=True)) if part else {}
    return [found[i] for i in range(len(samples))]
