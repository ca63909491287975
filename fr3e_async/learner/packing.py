"""From ragged samples to micro-batches that fit a token budget. Pure numpy.

Three layouts of the same samples, chosen by ``learner.packing``:

- tree: samples merged over their shared prefixes, each token once; needs ``attention``'s mask of ancestors;
- flat: samples one after another in one row, told apart by positions that begin again;
- padded: one row a sample, padded on the right; under causal attention no token sees the padding, so any model will do.

What a model's config alone tells of its layouts is asked here too, before anything is started (``check_config``). Loads no weights,
knows nothing of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.trees import Forest, build_forest, split_rows
from fr3e_async.errors import ModelError
from fr3e_async.types import TrainSample

Packing = Literal["tree", "flat", "padded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B rows of W slots that go through the model together, and the N trained tokens of S samples among them.

    Log-probs are wanted for P pairs of a slot and the token after it. Samples that share a prefix may both train a
    token of it: such a pair is computed once, and ``pick`` leads each trained token to its pair.

    Example (padded): contexts [7 8] and [9], completions [5] and [6 4] give ``tokens=[[7, 8, 5], [9, 6, 4]]``,
    ``rows=[1, 3, 4]`` (the slots that predict them), ``targets=[5, 6, 4]`` and ``pick=[0, 1, 2]``.
    """

    tokens: NDArray[np.int64]  # [B, W]
    positions: NDArray[np.int64] | None  # [B, W]; None: 0, 1, 2 … in every row
    forest: Forest | None  # of the one row, if the layout is a tree
    rows: NDArray[np.int64]  # [P] index into the B·W slots: the one before the token
    targets: NDArray[np.int64]  # [P]
    pick: NDArray[np.int64]  # [N] index into the pairs
    behaviour_logprobs: NDArray[np.float32]  # [N] nats
    advantages: NDArray[np.float32]  # [N]
    versions: NDArray[np.int64]  # [N] weight version that sampled each token
    sequences: NDArray[np.int64]  # [N] number of the sample, from 0, that each token belongs to
    mask: NDArray[np.bool_]  # [N] False only in a dummy
    computed: int  # slots that hold a token
    samples: tuple[TrainSample, ...]  # in the order of the trained tokens

    @property
    def trainable(self) -> int:
        """Number of tokens that the loss is over."""
        return int(self.mask.sum())


def unscored(context: NDArray[np.int32], tokens: NDArray[np.int32]) -> TrainSample:
    """Make a sample with nothing to learn: context and completion, and zeros in the other columns."""
    return TrainSample(
        tokens=np.concatenate([context, tokens]),
        context_len=len(context),
        behaviour_logprobs=np.zeros(len(tokens), dtype=np.float32),
        versions=np.zeros(len(tokens), dtype=np.int32),
        advantages=np.zeros(len(tokens), dtype=np.float32),
        minibatch=0,
    )


def dummy(packing: Packing) -> MicroBatch:
    """Make the smallest micro-batch of a layout, with an empty mask.

    It runs the model and trains nothing: it keeps the collectives of a rank that has less work in step with the others.
    """
    token = np.zeros(1, dtype=np.int32)
    return collate([unscored(token, token)], packing=packing, trained=False)


def first_fit(lengths: Sequence[int], *, padded: bool, budget: int) -> list[list[int]]:
    """Indices of the rows of each micro-batch: longest first, each into the first one that has room for it.

    A micro-batch takes Σ lengths slots, or, ``padded``, longest · count. Raises ``ValueError`` for a row above the budget alone.
    Example: lengths 3, 7, 5, 2, 5 and a budget of 10 give [[1, 0], [2, 4], [3]] flat, and padded [[1], [2, 4], [0, 3]].
    """
    parts: list[list[int]] = []
    slots: list[int] = []  # of each part
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = lengths[index]
        if row > budget:
            raise ValueError(f"a sample of {row} tokens is above learner.micro_batch_tokens ({budget})")
        grown = (used + (lengths[part[0]] if padded else row) for part, used in zip(parts, slots, strict=True))
        found = next(((i, size) for i, size in enumerate(grown) if size <= budget), None)
        if found is None:
            parts.append([index])
            slots.append(row)
        else:
            parts[found[0]].append(index)
            slots[found[0]] = found[1]
    return parts


def plan(samples: Sequence[TrainSample], *, packing: Packing, budget: int) -> list[list[int]]:
    """Cut samples into micro-batches of at most ``budget`` slots: the indices of each. ``ValueError`` for a sample above it."""
    if packing == "tree":
        return split_rows([sample.tokens for sample in samples], budget=budget)
    return first_fit([len(sample.tokens) for sample in samples], padded=packing == "padded", budget=budget)


def collate(samples: Sequence[TrainSample], *, packing: Packing, trained: bool = True, share: bool = True) -> MicroBatch:
    """Lay out samples as one micro-batch, every array a fresh copy.

    ``trained`` off: its mask is empty. ``share`` off: trees of one sample each, for comparison.
    """
    tokens, positions, forest, paths = _layout([sample.tokens for sample in samples], packing, share=share)
    wanted = np.concatenate([path[sample.context_len :] for path, sample in zip(paths, samples, strict=True)])
    before = np.concatenate([path[sample.context_len - 1 : -1] for path, sample in zip(paths, samples, strict=True)])
    # A slot is one prefix, so the slot of a token names the pair: the same slot, the same predecessor.
    slots, first, pick = np.unique(wanted, return_index=True, return_inverse=True)
    lengths = [len(sample.versions) for sample in samples]
    return MicroBatch(
        tokens=tokens,
        positions=positions,
        forest=forest,
        rows=before[first],
        targets=tokens.reshape(-1)[slots],
        pick=pick,
        behaviour_logprobs=np.concatenate([sample.behaviour_logprobs for sample in samples]).astype(np.float32),
        advantages=np.concatenate([sample.advantages for sample in samples]),
        versions=np.concatenate([sample.versions for sample in samples]).astype(np.int64),
        sequences=np.repeat(np.arange(len(samples)), lengths),
        mask=np.full(len(wanted), trained),
        computed=len(forest) if forest is not None else sum(len(sample.tokens) for sample in samples),
        samples=tuple(samples),
    )


def _layout(
    rows: Sequence[NDArray[np.int32]], packing: Packing, *, share: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, Forest | None, Sequence[NDArray[np.int64]]]:
    """Tokens [B, W], positions, forest, and the slots of each row's tokens."""
    if packing == "tree":
        forest = build_forest(rows, share=share)
        return forest.tokens[None], forest.depth[None], forest, forest.paths
    if packing == "flat":
        starts = np.cumsum([0, *(len(row) for row in rows)])
        flat = np.concatenate(rows).astype(np.int64)
        positions = np.concatenate([np.arange(len(row)) for row in rows])
        return flat[None], positions[None], None, [start + np.arange(len(row)) for start, row in zip(starts, rows, strict=False)]
    matrix = padded(rows)
    return matrix, None, None, [i * matrix.shape[1] + np.arange(len(row)) for i, row in enumerate(rows)]


def padded(rows: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Stack rows as [rows, longest] int64, with zeros at the end of shorter ones."""
    matrix = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for out, row in zip(matrix, rows, strict=True):
        out[: len(row)] = row
    return matrix


def pack(samples: Sequence[TrainSample], *, packing: Packing, budget: int) -> list[MicroBatch]:
    """Pack samples into micro-batches of at most ``budget`` slots, each sample once; none for no samples. Raises as ``plan``."""
    if not samples:
        return []
    return [collate([samples[i] for i in part], packing=packing) for part in plan(samples, packing=packing, budget=budget)]


LAYERS = {"full_attention", "sliding_attention"}  # what may be in a model that is trained as trees or flat
REFUSALS = {
    "tree": "learner.packing=tree does not work with this model (set flat or padded)",
    "flat": "learner.packing=flat does not work with this model (set padded)",
}


def check_config(config: Any, *, packing: Packing, attention: str, longest: int | None) -> None:
    """Refuse a model whose config shows that a layout would compute other numbers than single rows.

    ``config``: of transformers. ``attention``: learner.attention. ``longest``: tokens of a row, where that is known.

    Raises:
        ModelError: log-probs, and so gradients, would not be those of rows one at a time.
    """
    text = config.get_text_config()
    _check_rotary(text, longest)
    _check_softcap(text, packing, attention)
    _check_layers(text, packing)


def _check_rotary(config: Any, longest: int | None) -> None:
    """Angles that depend on the longest position in a batch give a row other numbers in every batch.

    Those of LongRoPE do once a row is longer than the original context; an engine goes by the longest that it may get.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, dict)}
    original = getattr(config, "original_max_position_embeddings", None) or parameters.get("original_max_position_embeddings")
    if "longrope" in kinds and original and longest is not None and longest <= original:
        kinds.remove("longrope")
    for kind in kinds & {"dynamic", "longrope"}:
        short = f" above {original} tokens (original_max_position_embeddings)" if kind == "longrope" and original else ""
        raise ModelError(f"model.path: rope_type={kind} depends on the longest row of a batch{short}, which is not supported")


def _check_softcap(config: Any, packing: Packing, attention: str) -> None:
    """Raise for ``sdpa`` and a cap of attention scores, which transformers ignores there; trees have attention of their own."""
    if getattr(config, "attn_logit_softcapping", None) and attention == "sdpa" and packing != "tree":
        raise ModelError("learner.attention=sdpa ignores this model's attn_logit_softcapping; set learner.attention=eager")


def _check_layers(config: Any, packing: Packing) -> None:
    """Raise for layers that short rows cannot prove (chunked attention, say)."""
    kinds = set(getattr(config, "layer_types", None) or ())
    for kind in sorted(kinds - LAYERS) if packing in REFUSALS else ():
        raise ModelError(f"{REFUSALS[packing]}: it has layers of type {kind}")
