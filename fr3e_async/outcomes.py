"""What became of rollouts and groups, as words: one source for the package, its files and the page, which has them from its data."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What became of a rollout: its verdict, or none. The page has these words from its data."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNKNOWN = "unknown"  # a verifier could not tell
    FAILED = "failed"  # lost flow.max_attempts times, so it has no verdict

    @classmethod
    def _missing_(cls, value: object) -> Outcome | None:
        """ "right" was the word of older versions."""
        return cls.CORRECT if value == "right" else None


class Rejection(StrEnum):
    """Why a group, or one of its states, gives no training signal."""

    ALL_CORRECT = "all_correct"  # every reward is the highest
    ALL_WRONG = "all_wrong"  # every reward is the lowest
    NO_SPREAD = "no_spread"  # all rewards alike between the two, or alike wherever they are compared
    TOO_FEW = "too_few"  # scored rollouts
    NOT_TRAINED = "not_trained"  # of a state: algorithm.train_bases=false leaves it out, though its rewards differ


class GroupOutcome(StrEnum):
    """What became of a prompt group: ``outcome`` in groups.jsonl, trees.jsonl and the ledger log. The page has these words from its data."""

    TRAINED = "trained"
    REJECTED_ALL_CORRECT = "rejected_all_correct"
    REJECTED_ALL_WRONG = "rejected_all_wrong"
    REJECTED_NO_SPREAD = "rejected_no_spread"
    REJECTED_TOO_FEW = "rejected_too_few"
    FAILED = "failed"  # all its rollouts did

    @property
    def word(self) -> str:
        """Without "rejected_": the name of its metric, ``groups/<word>``."""
        return self.value.removeprefix("rejected_")
