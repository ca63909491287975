"""A verifier as a Ray actor: decodes responses and forwards them to killable math-verify processes."""

from __future__ import annotations

from collections.abc import Sequence

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.observe.logs import redirect_output
from fr3e_async.types import RolloutBatch, Verdict


class VerifierActor:
    """Async actor: judging waits on worker processes, so many payloads are in hand at once."""

    def __init__(self, config: VerifierPoolConfig, model: str, revision: str, trust_remote_code: bool, log_path: str) -> None:
        redirect_output(log_path)
        self._config = config
        self._source = (model, revision or None, trust_remote_code)

    async def start(self) -> None:
        from transformers import AutoTokenizer

        from fr3e_async.verify import VerifierPool

        model, revision, trust = self._source
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust)
        self._pool = VerifierPool(self._config)
        if not self._config.exact_integers:
            self._pool.warm()  # every answer will need math-verify: load it while the engines start

    async def judge(self, batch: RolloutBatch, rows: Sequence[int], golds: Sequence[str]) -> list[Verdict]:
        """Decoding is for judging only: the text never goes back to an engine or the learner."""
        responses = [self._tokenizer.decode(batch.response(row), skip_special_tokens=True) for row in rows]
        return await self._pool.judge_many(list(zip(responses, golds, strict=True)))

    async def close(self) -> None:
        self._pool.close()
