"""When a checkpoint that was asked for is begun: at once, or with the batch in training. Whole loops are in test_control_loop.py and test_control_saving.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fr3e_async.control.keeping import Keeper


class Kept(Keeper):
    """One that writes nothing: what it begins is counted."""

    def __init__(self, *, training: bool, version: int) -> None:
        ledger: Any = SimpleNamespace(training=training, version=version)
        nothing: Any = None
        super().__init__(
            nothing, ledger, nothing, nothing, every=0, steps=10, books=nothing, progress=nothing, reporter=nothing, spawn=self._count,  # type: ignore[arg-type]
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
    keeper = Kept(training=training, version=version)
    keeper.soon()
    assert keeper.begun == 0
    keeper.trained(version + 1)
    assert keeper.begun == 1
    keeper.trained(version + 2)
    assert keeper.begun == 1


def test_one_that_is_asked_for_between_batches_is_begun_at_once() -> None:
    keeper = Kept(training=False, version=3)
    keeper.soon()
    assert keeper.begun == 1
    keeper.trained(4)
    assert keeper.begun == 1
