"""A verifier as a Ray actor: decodes responses and forwards them to killable processes."""

import asyncio
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from fr3e_async.actors.watch import Watched
from fr3e_async.algorithm.answer_span import THINK, thoughts_by
from fr3e_async.config import RewardConfig, VerifierPoolConfig
from fr3e_async.files.process_logs import redirect_output
from fr3e_async.files.scratch import actor_scratch
from fr3e_async.types import Answer, RolloutBatch, Verdict

MAX_TEXT_CHARS = 20_000  # kept of a response; the middle of a longer one is left out


class Problem(NamedTuple):
    """What a verifier needs to score a response: the reference answer, the prompt's text, the user's columns."""

    reference: str
    prompt: str = ""
    margins: Sequence[Fraction] = ()  # how far an answer may be off
    columns: Mapping[str, Any] = {}  # of the row, for a user's reward


class VerifierActor(Watched):
    """Async actor: judging waits on worker processes, so many payloads are in hand at once."""

    def __init__(
        self,
        config: VerifierPoolConfig,
        model: str,
        revision: str,
        trust_remote_code: bool,
        log_path: str,
        reward: Sequence[RewardConfig] = (RewardConfig(function="math"),),
        ends: Sequence[int] = (),
        thoughts: Sequence[str] = THINK[:2],
        stops: Sequence[str] = (),
    ) -> None:
        """``reward``: the functions whose weighted sum it is. ``ends``, ``stops``: ids and texts that end a response. ``thoughts``: ``data.thoughts``."""
        redirect_output(log_path)
        actor_scratch()
        self.config, self._reward = config, reward
        self._ends, self._stops, self._thoughts = ends, stops, thoughts_by(thoughts)
        self.scored = 0  # answers
        self._source = (model, revision or None, trust_remote_code)

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        from transformers import AutoTokenizer

        from fr3e_async.verify import VerifierPool
        from fr3e_async.verify.responses import Reader

        model, revision, trust = self._source
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust)
        self.reader = Reader(tokenizer, ends=self._ends, thoughts=self._thoughts, stops=self._stops)
        self.pool = VerifierPool(self.config, self._reward)
        self.pool.warm()  # what every response will need is loaded while the engines start

    async def judge(self, batch: RolloutBatch, rows: Sequence[int], problems: Sequence[Problem]) -> list[Verdict]:
        """Verdicts in the order of ``rows``, each about the problem beside it.

        Decoding is for judging only: the text never goes back to an engine or the learner.
        """
        read = [self.reader.read(batch, row) for row in rows]
        verdicts = await self.pool.judge_many([one.question(*its) for one, its in zip(read, problems, strict=True)])
        self.scored += len(verdicts)
        return verdicts

    async def answers(self, batch: RolloutBatch, rows: Sequence[int], kept: Sequence[int] = ()) -> list[Answer]:
        """The final answer of each response in its normal form, for counting votes, and the text of the rows that are ``kept``."""
        from fr3e_async.verify.answers import answer_class

        read = {row: self.reader.read(batch, row) for row in rows}
        return [
            Answer(None if one.answer is None else answer_class(one.answer), _shortened(one.exact) if row in kept else None)
            for row, one in read.items()
        ]

    def pulse(self) -> int:
        """Return the number of answers scored so far, which the watchdog reads as progress."""
        return self.scored

    async def close(self) -> None:
        self.pool.close()


def _shortened(text: str) -> str:
    left_out, half = len(text) - MAX_TEXT_CHARS, MAX_TEXT_CHARS // 2
    return text if left_out <= 0 else f"{text[:half]}\n[… {left_out} characters …]\n{text[-half:]}"
