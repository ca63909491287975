"""What ``TrainingState`` keeps of an optimiser, without a group of ranks: an engine that has one weight of four numbers and one of two."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from fr3e_async.learner.checkpoint_pieces import MASTER
from fr3e_async.learner.checkpoint_state import TrainingState

ADAM = ("exp_avg", "exp_avg_sq")


def engine_of(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> tuple[TrainingState, Any]:
    weights = [torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.nn.Parameter(torch.tensor([5.0, 6.0]))]
    schedule = SimpleNamespace(done=0)
    schedule.state_dict = lambda: {"done": schedule.done}
    schedule.load_state_dict = lambda state: setattr(schedule, "done", state["done"])
    engine = SimpleNamespace(
        optimizer=make(weights), lr_scheduler=schedule, global_steps=0, global_samples=0, micro_steps=0, skipped_steps=0
    )
    return TrainingState(engine, {weights[0]: "a", weights[1]: "b"}, {}), engine


def adam(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=0.5)


def update(engine: Any) -> None:
    for weight in engine.optimizer.param_groups[0]["params"]:
        weight.grad = torch.ones_like(weight)
    engine.optimizer.step()
    engine.global_steps, engine.micro_steps, engine.lr_scheduler.done = engine.global_steps + 1, 4, 7


def kept(state: TrainingState) -> tuple[dict[str, Any], Callable[..., torch.Tensor | None]]:
    """What a checkpoint has of it, and how it is read."""
    numbers: dict[tuple[str, str], torch.Tensor] = {}
    for run in state.runs(0, 1):
        numbers[run.part, run.name] = run.values.clone()
    roles = sorted({part for part, _ in numbers} - {MASTER})

    def read(role: str, name: str, start: int, stop: int) -> torch.Tensor | None:
        return numbers[role, name][start:stop] if (role, name) in numbers else None

    return {**state.describe(), "roles": roles}, read


def test_state_comes_back_with_weights_schedule_and_counters() -> None:
    state, engine = engine_of(adam)
    update(engine)
    described, read = kept(state)
    assert described["roles"] == list(ADAM)
    again, fresh = engine_of(adam)
    again.restore(described, read)
    # Adam's first step is the learning rate, whatever the gradient: 0.5 down from each weight.
    for weight, values in zip(fresh.optimizer.param_groups[0]["params"], ([[0.5, 1.5], [2.5, 3.5]], [4.5, 5.5]), strict=True):
        torch.testing.assert_close(weight.detach(), torch.tensor(values))
    for weight in fresh.optimizer.param_groups[0]["params"]:
        found = fresh.optimizer.state[weight]
        assert float(found["step"]) == 1
        torch.testing.assert_close(found["exp_avg"], torch.full_like(weight, 0.1))  # (1 - 0.9) · 1
        torch.testing.assert_close(found["exp_avg_sq"], torch.full_like(weight, 0.001))  # (1 - 0.999) · 1²
    assert (fresh.global_steps, fresh.micro_steps, fresh.skipped_steps, fresh.lr_scheduler.done) == (1, 4, 0, 7)
    assert not again.restoring


def test_an_optimiser_that_has_made_no_step_comes_back_without_state() -> None:
    """Every step was skipped for an overflow, say: to make its state now would be a checkpoint of another optimiser."""
    state, engine = engine_of(adam)
    engine.global_steps = engine.skipped_steps = 2
    described, read = kept(state)
    assert described["roles"] == []
    again, fresh = engine_of(adam)
    update(fresh)
    again.restore(described, read)
    assert not fresh.optimizer.state
    assert [weight.tolist() for weight in fresh.optimizer.param_groups[0]["params"]] == [[[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]]
    assert (fresh.global_steps, fresh.skipped_steps) == (2, 2)


def test_ranks_share_the_writing_of_what_all_of_them_have() -> None:
    """Six numbers for four ranks: borders at 0, 1, 3, 4 and 6."""
    state, _ = engine_of(adam)
    shares = [[(run.name, run.start, run.values.tolist()) for run in state.runs(rank, 4)] for rank in range(4)]
    assert shares == [[("a", 0, [1.0])], [("a", 1, [2.0, 3.0])], [("a", 3, [4.0])], [("b", 0, [5.0, 6.0])]]
