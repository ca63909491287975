"""A verifier as a Ray actor: decodes responses and forwards them to killable processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from fractions import Fraction

from fr3e_async.actors.watch import Watched
from fr3e_async.algorithm.answer_span import THINK, thoughts_by
from fr3e_async.config import VerifierPoolConfig
from fr3e_async.observe.logs import redirect_output
from fr3e_async.scratch import actor_scratch
from fr3e_async.types import RolloutBatch, Verdict


class VerifierActor(Watched):
    """Async actor: judging waits on worker processes, so many payloads are in hand at once."""

    def __init__(
        self,
        config: VerifierPoolConfig,
        model: str,
        revision: str,
        trust_remote_code: bool,
        log_path: str,
        reward: str = "math",
        ends: Sequence[int] = (),
        thoughts: Sequence[str] = THINK[:2],
    ) -> None:
        """``ends``: ids that end a response. ``thoughts``: ``data.thoughts``."""
        redirect_output(log_path)
        actor_scratch()
        self._config, self._reward = config, reward
        self._ends, self._thoughts = ends, thoughts_by(thoughts)
        self._judged = 0  # answers
        self._source = (model, revision or None, trust_remote_code)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        from transformers import AutoTokenizer

        from fr3e_async.verify import VerifierPool
        from fr3e_async.verify.responses import Reader

        model, revision, trust = self._source
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust)
        self._reader = Reader(tokenizer, ends=self._ends, thoughts=self._thoughts)
        self._pool = VerifierPool(self._config, self._reward)
        if self._reward != "math" or not self._config.exact_integers:
            self._pool.warm()  # every response will need a process: load what it needs while the engines start

    async def judge(
        self,
        batch: RolloutBatch,
        rows: Sequence[int],
        golds: Sequence[str],
        prompts: Sequence[str] = (),
        margins: Sequence[Sequence[Fraction]] = (),
    ) -> list[Verdict]:
        """Verdicts in the order of ``rows``. ``prompts``: the problems' texts, one a row, for a user's reward; none: all empty.
        ``margins``: how far answers may be off, one list a row; a user's reward knows no margins.

        Decoding is for judging only: the text never goes back to an engine or the learner.
        """
        from fr3e_async.verify.margins import with_margins

        read = [self._reader.read(batch, row) for row in rows]
        texts = zip(read, golds, prompts or [""] * len(rows), strict=True)
        verdicts = await self._pool.judge_many([one.question(gold, prompt, self._reward) for one, gold, prompt in texts])
        self._judged += len(verdicts)
        if not margins or self._reward != "math":
            return verdicts
        beside = zip(verdicts, read, golds, margins, strict=True)
        return [with_margins(verdict, one.answer, gold, its, self._config) for verdict, one, gold, its in beside]

    async def answers(self, batch: RolloutBatch, rows: Sequence[int]) -> list[str | None]:
        """The final answer of each response in its normal form, for counting votes; None without one."""
        from fr3e_async.verify.classes import answer_class

        found = [self._reader.read(batch, row).answer for row in rows]
        return [None if answer is None else answer_class(answer) for answer in found]

    def pulse(self) -> int:
        """Answers judged."""
        return self._judged

    async def close(self) -> None:
        self._pool.close()
