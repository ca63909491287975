r"""A response as it was sampled, as text: exactly its tokens, special ones too, up to the end token or text that closed it.

What a decoder would leave out cannot be judged as if it were not there: ``\boxed{1<|pad|>2}`` is not 12, and an id that the
tokenizer does not know (the vocabulary of a model is often padded) makes a response unreadable. Knows tokenizers and rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.answer_span import TAIL, Thoughts, stop_end
from fr3e_async.data.tokenizer import special_ids
from fr3e_async.types import Finish, RolloutBatch
from fr3e_async.verify.answers import final_answer
from fr3e_async.verify.pool import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREADABLE = "an id beyond the tokenizer"
SPOILED = "a special token in the answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    r"""*Example*: ``Response(exact="<think>1+1</think>\\boxed{2}", shown="1+1\\boxed{2}", thoughts=THINK, special=("<think>",))``."""

    exact: str
    shown: str  # without special tokens, for people and for rewards that want no markup
    thoughts: Thoughts  # how the prompt left them
    special: tuple[str, ...] = ()  # special tokens that occur in it
    fault: str = ""  # why it cannot be read
    length: int = 0  # tokens, the end token included
    finish: str = "stop"  # or "length": it ran into its budget

    @property
    def answer(self) -> str | None:
        """None without one, and for one that nobody can read."""
        answer = None if self.fault else final_answer(self.exact, self.thoughts)
        return None if answer is None or self._spoils(answer) else answer

    def question(self, reference: str, prompt: str, margins: Sequence[Fraction], columns: Mapping[str, Any]) -> Question:
        """What the pool is asked. A user's reward is given special tokens as they are."""
        spoiled = not self.fault and self.special and self._spoils(final_answer(self.exact, self.thoughts) or "")
        return Question(
            self.exact, reference, prompt, self.shown, self.thoughts, self.fault, SPOILED if spoiled else "", margins,
            self.length, self.finish, columns,
        )  # fmt: skip

    def _spoils(self, answer: str) -> bool:
        return any(token in answer for token in self.special)


class Reader:
    """Decodes rows of rollout batches into ``Response``s: the exact text, and the text that the verifier reads."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], thoughts: Thoughts, stops: Sequence[str] = ()
    ) -> None:
        """``ends``: ids that end a response; ``stops``: texts that do. ``thoughts``: what marks them in this model's responses."""
        self._tokenizer, self._ends, self._stops, self._thoughts = tokenizer, frozenset(ends), stops, thoughts
        ids = list(tokenizer.get_vocab().values())
        self._known = np.zeros(max(ids) + 2, dtype=np.bool_)  # by id; the last stands for all beyond
        self._known[ids] = True
        self._special = np.asarray(sorted(special_ids(tokenizer)), dtype=np.int64)

    def read(self, batch: RolloutBatch, row: int) -> Response:
        ids = batch.response(row)
        ended: dict[str, Any] = {"length": len(ids), "finish": Finish(batch.finish[row]).name.lower()}
        if len(ids) and int(ids[-1]) in self._ends:
            ids = ids[:-1]
        thoughts = self._thoughts.after(self._text(batch.context(row)[: batch.prompt_len(row)][-TAIL:]))
        if not self._known[np.minimum(ids, len(self._known) - 1)].all():  # decoders leave such ids out, or fail
            return Response(exact="", shown="", thoughts=thoughts, fault=UNREADABLE, **ended)
        special, whole = np.unique(ids[np.isin(ids, self._special)]), self._text(ids)
        exact = whole[: stop_end(whole, self._stops)]  # the token that completes a stop text may say more
        shown = self._text(ids, plain=True).removesuffix(whole[len(exact) :]) if len(special) else exact
        return Response(
            exact=exact,
            shown=shown,
            thoughts=thoughts,
            special=tuple(text for i in range(len(special)) if (text := self._text(special[i : i + 1]))),
            **ended,
        )

    def _text(self, ids: NDArray[np.int32], *, plain: bool = False) -> str:
        """Decode token ids to text and leave the spaces as they are: tidying them up would change answers."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=plain, clean_up_tokenization_spaces=False))
