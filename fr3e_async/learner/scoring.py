"""What the policy as it is says of given tokens: entropies, for engines that cannot give them; whole distributions, for the
comparison of engines with the learner.

Knows nothing of groups or anchors. Every rank runs the same number of forward passes, since under ZeRO-3 each is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fr3e_async.config import LearnerConfig
from fr3e_async.learner.layout import Inputs
from fr3e_async.learner.packing import collate, dummy, plan, unscored
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.learner.update import UpdateEngine, all_reduced
from fr3e_async.types import TrainSample


@torch.no_grad()
def entropies(
    engine: UpdateEngine, samples: Sequence[TrainSample], *, learner: LearnerConfig, device: torch.device
) -> list[NDArray[np.float32]]:
    """Compute the exact entropies [L], nats, at the sampling temperature, of each sample of this rank. All ranks.

    A rank with fewer micro-batches runs dummies beside the others.
    """
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


@torch.no_grad()
def distributions(
    engine: UpdateEngine, model: PolicyModel, rows: Sequence[NDArray[np.int32]], *, learner: LearnerConfig, device: torch.device
) -> NDArray[np.float32]:
    """Compute [rows, V] float32 log-probs, nats, of the token after each row, at the sampling temperature, in the layout that trains.

    One forward pass, the same on every rank.
    """
    anything = np.zeros(1, dtype=np.int32)
    batch = collate([unscored(row, anything) for row in rows], packing=learner.packing)
    with model.whole_distributions():
        found = engine.forward(Inputs.of(batch, device, kernel=learner.tree_attention))[0]
    return found[torch.from_numpy(batch.pick).to(device)].cpu().numpy()
