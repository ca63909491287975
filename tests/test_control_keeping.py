"""When a checkpoint that was asked for is begun: at once, or with the batch in training. Whole loops are in test_control_loop.py and test_control_checkpointing.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fr3e_async.control.checkpointing import Checkpointing


class Kept(Checkpointing):
    """One that writes nothing: what it begins is counted."""

    def __init__(self, *, training: bool, version: int) -> None:
        ledger: Any = SimpleNamespace(training=training, version=version)
        nothing: Any = None
        super().__init__(
            nothing, ledger, nothing, nothing, every=0, steps=10, ledger_log=nothing, progress=nothing, reporter=nothing, spawn=self._count,  # type: ignore[arg-type]
            ends=lambda: False, clock=lambda: 0.0,
        )  # fmt: skip
        self.begun = 0

    def _count(self, work: Any) -> None:
        self.begun += 1

    def _write(self, taken: Any) -> Any:
        return None

    def _cut(self) -> Any:
        return None


@pytest.mark.parametrize(("training", "version"), [(True, 3), (True, 0), (False, 0)])
def test_one_that_is_asked_for_follows_the_batch_in_training_and_comes_once(training: bool, version: int) -> None:
    """Before the first batch there is nothing to keep."""
    checkpointing = Kept(training=training, version=version)
    checkpointing.soon()
    assert checkpointing.begun == 0
    checkpointing.trained(version + 1)
    assert checkpointing.begun == 1
    checkpointing.trained(version + 2)
    assert checkpointing.begun == 1


def test_one_that_is_asked_for_between_batches_is_begun_at_once() -> None:
    checkpointing = Kept(training=False, version=3)
    checkpointing.soon()
    assert checkpointing.begun == 1
    checkpointing.trained(4)
    assert checkpointing.begun == 1
