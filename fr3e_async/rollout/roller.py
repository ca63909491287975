"""From a task to a rollout batch: what a generator or explorer does with its engine. No Ray, no vLLM by name.

A branch's context is a slice of ids: prompt + trunk[:position]. Nothing is decoded and encoded again; token texts serve
only to see where the answer ends and where lines break.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.anchors import select_anchors
from fr3e_async.algorithm.answer_span import answer_end
from fr3e_async.config import AlgorithmConfig
from fr3e_async.rollout.port import Engine, SampleRequest
from fr3e_async.types import Anchor, Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId


class TokenTexts:
    """Texts of single ids, each decoded once, and which ids are special. A byte-split character reads as a placeholder."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self._special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)

    def pieces(self, tokens: NDArray[np.int32]) -> list[str]:
        return [self._text(int(t)) for t in tokens]

    def special(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.isin(tokens, self._special)

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


class Roller:
    """Samples and branches on one engine. Rollouts of a task run side by side; the batch is whole when the last has ended."""

    def __init__(self, engine: Engine, texts: TokenTexts, algorithm: AlgorithmConfig, *, seed: int) -> None:
        self._engine, self._texts, self._algorithm, self._seed = engine, texts, algorithm, seed
        self._requests = itertools.count()

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool = False
    ) -> RolloutBatch:
        """One rollout for each id from the prompt beside it. With ``trunk``, the batch carries the first row's anchors."""
        contexts, context_of = _distinct(prompts)
        tokens = [prompt.token_ids for prompt in contexts]
        completions = await self._engine.generate(
            [self._request(id, tokens[c], draw, draw.max_tokens) for id, c in zip(ids, context_of, strict=True)]
        )
        return RolloutBatch.build(
            ids=list(ids),
            contexts=tokens,
            prompt_lens=[len(t) for t in tokens],
            context_of=context_of,
            completions=completions,
            anchors=self._anchors(completions[0], draw.max_tokens, prompts[0]) if trunk else (),
        )

    async def branch(self, trunk: RolloutBatch, ids: Sequence[RolloutId], draw: Draw) -> RolloutBatch:
        """Continuations of the trunk's anchors; each may use what the trunk's budget leaves after its prefix."""
        prompt, spine = trunk.context(0), trunk.completion(0).tokens
        anchors = {anchor.node: anchor for anchor in trunk.anchors}
        nodes = sorted({id.node for id in ids})
        prefixes = [np.concatenate([prompt, spine[: anchors[node].position]]) for node in nodes]
        context_of = [nodes.index(id.node) for id in ids]
        completions = await self._engine.generate(
            [
                self._request(id, prefixes[c], draw, draw.max_tokens - anchors[id.node].position)
                for id, c in zip(ids, context_of, strict=True)
            ]
        )
        return RolloutBatch.build(
            ids=list(ids),
            contexts=prefixes,
            prompt_lens=[len(prompt)] * len(prefixes),
            context_of=context_of,
            completions=completions,
        )

    def _request(self, id: RolloutId, context: NDArray[np.int32], draw: Draw, max_tokens: int) -> SampleRequest:
        return SampleRequest(
            request_id=f"{id.group}/{id.node}/{id.branch}#{next(self._requests)}",
            context=context,
            max_tokens=max_tokens,
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
        )

    def _anchors(self, trunk: Completion, max_response: int, prompt: Prompt) -> tuple[Anchor, ...]:
        if trunk.finish is Finish.ABORT:
            return ()
        pieces = self._texts.pieces(trunk.tokens)
        return select_anchors(
            self._algorithm,
            entropies=trunk.entropies,
            logprobs=trunk.logprobs,
            special=self._texts.special(trunk.tokens),
            after_newline=np.asarray([False, *("\n" in piece for piece in pieces[:-1])][: len(pieces)], dtype=np.bool_),
            answer_end=answer_end(pieces),
            max_response=max_response,
            seed=(self._seed, *prompt.uid.encode()),
        )


def _distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[int]]:
    """Distinct prompts in order of appearance, and which one each row has."""
    order: dict[str, int] = {}
    contexts: list[Prompt] = []
    for prompt in prompts:
        if prompt.uid not in order:
            order[prompt.uid] = len(contexts)
            contexts.append(prompt)
    return contexts, [order[prompt.uid] for prompt in prompts]
