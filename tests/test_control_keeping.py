"""When a checkpoint that was asked for is begun: at once, or with the batch in training. Whole loops are in test_control_loop.py and test_control_checkpointing.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fr3e_async.control.checkpointing import Checkpointing


def checkpointing_of(*, training: bool, version: int) -> tuple[Checkpointing, list[Any]]:
    """One that writes nothing, and what it has begun. Ten steps, no checkpoint by the number of batches."""
    begun: list[Any] = []

    def spawn(work: Any) -> None:
        work.close()
        begun.append(work)

    cut = SimpleNamespace(open=())
    ledger = SimpleNamespace(training=training, version=version, admitted=0, settled=0, cut=lambda encode: cut)
    nothing = SimpleNamespace(write=lambda record: None, state=dict, to_dict=lambda now: {})
    context: Any = SimpleNamespace(
        config=SimpleNamespace(run=SimpleNamespace(checkpoint_every=0, steps=10, keep_best=False, export_every=0)), machine=SimpleNamespace(ledger=ledger),
        clock=lambda: 0.0, spawn=spawn, ends=False, files=SimpleNamespace(ledger_log=nothing), stream=nothing, progress=nothing,
        table=SimpleNamespace(held=dict),
    )  # fmt: skip
    return Checkpointing(context), begun


@pytest.mark.parametrize(("training", "version"), [(True, 3), (True, 0), (False, 0)])
def test_one_that_is_asked_for_follows_the_batch_in_training_and_comes_once(training: bool, version: int) -> None:
    """Before the first batch there is nothing to keep."""
    checkpointing, begun = checkpointing_of(training=training, version=version)
    checkpointing.soon()
    assert len(begun) == 0
    checkpointing.trained(version + 1)
    assert len(begun) == 1
    checkpointing.trained(version + 2)
    assert len(begun) == 1


def test_one_that_is_asked_for_between_batches_is_begun_at_once() -> None:
    checkpointing, begun = checkpointing_of(training=False, version=3)
    checkpointing.soon()
    assert len(begun) == 1
    checkpointing.trained(4)
    assert len(begun) == 1
