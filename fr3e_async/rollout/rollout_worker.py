"""Turn tasks into rollout batches on one engine, as generators and explorers do. Knows neither Ray nor vLLM.

A branch's context is a slice of ids: prompt + trunk[:position]. Nothing is decoded and encoded again; token texts serve
only to find where the answer ends and where lines break.
"""

import asyncio
import hashlib
import itertools
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.anchors import AnchorRule, anchor_positions, anchors_of_rows, eligible_positions
from fr3e_async.algorithm.answer_span import TAIL, THINK, Thoughts, answer_end, stop_end
from fr3e_async.data.tokenizer import special_ids
from fr3e_async.rollout.port import LINGER_S, Engine, SampleRequest
from fr3e_async.types import Anchor, Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId


class TokenTexts:
    """The text of every single id, decoded once and kept, and which ids are special. Part of a character reads as a placeholder."""

    def __init__(
        self, tokenizer: Any, *, ends: Sequence[int] = (), thoughts: Thoughts = THINK, stops: Sequence[str] = ()
    ) -> None:
        """``ends``: ids that end a response, special or not; ``stops``: texts that do."""
        self._tokenizer, self._thoughts, self._stops = tokenizer, thoughts, stops
        self._texts: dict[int, str] = {}
        self._special = np.asarray(sorted({*special_ids(tokenizer), *ends}), dtype=np.int64)

    def pieces(self, tokens: NDArray[np.int32]) -> list[str]:
        return [self._text(int(t)) for t in tokens]

    def special(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.isin(tokens, self._special)

    def answer_end(self, prompt: NDArray[np.int32], pieces: Sequence[str]) -> int | None:
        """Find the first token after the answer of a response; None if there is none. The prompt may have opened a thought."""
        return answer_end(pieces, self._thoughts.after("".join(self.pieces(prompt[-TAIL:]))))

    def ended(self, prefix: NDArray[np.int32], completion: Completion) -> Completion:
        """Cut the completion after the token that completes a stop text, also one that begins in the ``prefix`` of the response.

        The engine's own search sees none of the prefix, and may look at several tokens at once.
        """
        if not self._stops or completion.finish is Finish.ABORT:
            return completion
        before = prefix[-4 * max(map(len, self._stops)) :].tolist()  # a character has at most four bytes, a token at least one

        def stops(length: int) -> bool:
            ids = before + completion.tokens[:length].tolist()
            text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return stop_end(text, self._stops) is not None

        if not stops(len(completion)):
            return completion
        return completion.stopped_at(bisect_left(range(len(completion)), True, lo=1, key=stops))

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """The engine requests of one task: R requests that continue C contexts."""

    ids: Sequence[RolloutId]  # [R]
    contexts: Sequence[NDArray[np.int32]]  # [C]
    context_of: Sequence[int]  # [R] index into the contexts
    prompt_lens: Sequence[int]  # [C] tokens; what follows them is a prefix of the response
    requests: Sequence[SampleRequest]  # [R]


class RolloutWorker:
    """Samples and branches on one engine. The rollouts of a task run side by side and come back as they end."""

    def __init__(self, engine: Engine, texts: TokenTexts, rule: AnchorRule | None, *, seed: int, seeded: bool = False) -> None:
        """``rule``: how anchors are picked; None: never. ``seed``: the run's, the same in every engine, for the rule "random".

        ``seeded``: draw each rollout from its own seed, made of the run's seed and its id; needs ``EngineSpec.seeded``.
        """
        self._engine, self._texts, self._rule, self._seed, self._seeded = engine, texts, rule, seed, seeded
        self._requests = itertools.count()

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool = False
    ) -> AsyncIterator[RolloutBatch]:
        """Draw one rollout for each id from the prompt beside it; yield batches of those that have ended, each rollout once.

        With ``trunk`` a batch says where anchors may stand.
        """
        drawing = self._of_prompts(prompts, ids, draw)
        async for ended in self._as_they_end(drawing.requests):
            yield self._batch(drawing, ended, budget=draw.max_tokens if trunk else 0)

    async def sample_together(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw) -> RolloutBatch:
        """Sample all rollouts and return one batch in the order of the ids, as an evaluation and the check of new engines need it."""
        drawing = self._of_prompts(prompts, ids, draw)
        ended = [one async for some in self._as_they_end(drawing.requests) for one in some]
        return self._batch(drawing, sorted(ended, key=lambda one: one[0]))

    def anchors(self, batch: RolloutBatch) -> tuple[Anchor, ...]:
        """Pick the anchors of every row of a batch of trunks."""
        return () if self._rule is None else anchors_of_rows(self._rule, batch, range(len(batch)), seed=self._seed)

    async def branch(
        self, payload: RolloutBatch, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[RolloutBatch]:
        """Draw continuations of a trunk's anchors, each with what the trunk's budget leaves after its prefix; yield as ``sample`` does.

        Prefixes and anchors are read from the payload. Requests with the longest prefixes go first: the engine computes the
        trunk once and finds the shorter ones in its cache.
        """
        row = payload.row_of(trunk)
        prompt, spine = payload.context(row), payload.completion(row).tokens
        positions = anchor_positions(payload)
        order = sorted(ids, key=lambda id: (-positions[id.node], id))
        nodes = sorted({id.node for id in ids})
        contexts = [np.concatenate([prompt, spine[: positions[node]]]) for node in nodes]
        context_of = [nodes.index(id.node) for id in order]
        drawing = _Drawing(
            ids=order,
            contexts=contexts,
            context_of=context_of,
            prompt_lens=[len(prompt)] * len(nodes),
            requests=[
                self._request(id, contexts[c], draw, draw.max_tokens - positions[id.node])
                for id, c in zip(order, context_of, strict=True)
            ],
        )
        async for ended in self._as_they_end(drawing.requests):
            yield self._batch(drawing, ended)

    def _of_prompts(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw) -> _Drawing:
        distinct, context_of = _distinct(prompts)
        contexts = [prompt.token_ids for prompt in distinct]
        return _Drawing(
            ids=ids,
            contexts=contexts,
            context_of=context_of,
            prompt_lens=[len(context) for context in contexts],
            requests=[self._request(id, contexts[c], draw, draw.max_tokens) for id, c in zip(ids, context_of, strict=True)],
        )

    def _batch(self, drawing: _Drawing, ended: Sequence[tuple[int, Completion]], *, budget: int = 0) -> RolloutBatch:
        """Pack the rollouts that have ended. ``budget``: most tokens of a response if they are trunks; 0: they are none."""
        used = sorted({drawing.context_of[index] for index, _ in ended})
        contexts = [drawing.contexts[drawing.context_of[index]] for index, _ in ended]
        prompts = [drawing.prompt_lens[drawing.context_of[index]] for index, _ in ended]
        completions = [
            self._texts.ended(context[prompt:], completion)
            for context, prompt, (_, completion) in zip(contexts, prompts, ended, strict=True)
        ]
        return RolloutBatch.build(
            ids=[drawing.ids[index] for index, _ in ended],
            contexts=[drawing.contexts[c] for c in used],
            prompt_lens=[drawing.prompt_lens[c] for c in used],
            context_of=[used.index(drawing.context_of[index]) for index, _ in ended],
            completions=completions,
            eligible=[self._eligible(context, done.tokens, budget) for context, done in zip(contexts, completions, strict=True)]
            if budget
            else None,
        )

    async def _as_they_end(self, requests: Sequence[SampleRequest]) -> AsyncIterator[list[tuple[int, Completion]]]:
        """Yield lists of (index of the request, completion); what ends within ``LINGER_S`` of each other comes together.

        A request that fails ends the iteration with its error, after what had ended before. However it ends, no request is
        left in the engine.
        """
        running = {asyncio.ensure_future(self._engine.sample(request)): index for index, request in enumerate(requests)}
        try:
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if len(done) < len(running):
                    await asyncio.sleep(LINGER_S)
                ended = {task: index for task, index in running.items() if task.done()}
                failed = next((error for task in ended if (error := task.exception()) is not None), None)
                if good := [(index, task.result()) for task, index in ended.items() if task.exception() is None]:
                    yield good
                if failed is not None:
                    raise failed
                for task in ended:
                    del running[task]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _request(self, id: RolloutId, context: NDArray[np.int32], draw: Draw, max_tokens: int) -> SampleRequest:
        return SampleRequest(
            request_id=f"{id.group}/{id.node}/{id.branch}#{next(self._requests)}",
            context=context,
            max_tokens=max_tokens,
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
            seed=rollout_seed(self._seed, id) if self._seeded else None,
        )

    def _eligible(self, prompt: NDArray[np.int32], tokens: NDArray[np.int32], max_response: int) -> NDArray[np.bool_]:
        pieces = self._texts.pieces(tokens)
        positions = eligible_positions(
            len(tokens),
            max_response=max_response,
            special=self._texts.special(tokens),
            answer_end=self._texts.answer_end(prompt, pieces),
        )
        return positions if self._rule is None else positions & self._rule.allowed(pieces)


def rollout_seed(run_seed: int, id: RolloutId) -> int:
    """Make 63 bits from the run's seed and the rollout's id: the same in every process and at every attempt."""
    name = f"{run_seed}/{id.group}/{id.node}/{id.branch}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1


def _distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[int]]:
    """Return the distinct prompts in order of appearance, and each row's index into them."""
    order: dict[str, int] = {}
    contexts: list[Prompt] = []
    for prompt in prompts:
        if prompt.uid not in order:
            order[prompt.uid] = len(contexts)
            contexts.append(prompt)
    return contexts, [order[prompt.uid] for prompt in prompts]
