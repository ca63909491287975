"""Where DeepSpeed keeps master weights and optimiser state, for each of its optimisers, as runs of named weights.

The one place that reaches inside DeepSpeed: its public tensor access gathers whole weights over all ranks, and has neither
the optimiser's step count nor state that does not exist yet. Knows nothing of files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from fr3e_async.errors import ConfigError
from fr3e_async.learner.checkpoint_pieces import MASTER, REFERENCE, WeightRun

TESTED = "0.19.8"
COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
# (role, weight, start, stop) → numbers, or None if the checkpoint has none of this role for this weight
Read = Callable[[str, str, int, int], Tensor | None]


class OptimiserSlot(NamedTuple):
    """``numel`` numbers of a flattened weight from ``start``, which this rank keeps in ``owner`` from ``offset``."""

    name: str
    start: int
    numel: int
    owner: Tensor  # what torch's optimiser calls a parameter: the key of its state
    offset: int


class TrainingState:
    """Master weights, optimiser state, schedule and counters of a DeepSpeed engine."""

    def __init__(self, engine: Any, names: Mapping[torch.nn.Parameter, str], buffers: Mapping[str, Tensor]) -> None:
        """``names``: of every trained weight. ``buffers``: what else the model stores.

        Raises ``ConfigError`` for a DeepSpeed or an optimiser that is not known here.
        """
        if deepspeed.__version__ != TESTED:
            raise ConfigError(
                f"deepspeed {deepspeed.__version__} is installed, but checkpoints are made for {TESTED}: "
                f"pip install deepspeed=={TESTED}"
            )
        self._engine, self._names, self.buffers = engine, dict(names), dict(buffers)
        self.reference: FrozenWeights | None = None
        self.restoring = False  # the optimiser steps that are seen now are none of the training
        kind = type(engine.optimizer).__name__
        if kind not in LAYOUTS and not isinstance(engine.optimizer, torch.optim.Optimizer):
            raise ConfigError(f"learner.ds_config: this optimiser ({kind}) cannot be saved, so it cannot be used")
        self._slots, self._publish = LAYOUTS.get(kind, (_plain_slots, lambda _: None))
        # Otherwise each rank has the whole state, and they share the writing.
        self._partitioned = kind not in REPLICATED and kind in LAYOUTS
        if kind == "FP16_UnfusedOptimizer":
            _undo_first_step(engine.optimizer)

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: list(getattr(weight, "ds_shape", weight.shape)) for weight, name in self._names.items()}

    def runs(self, rank: int, world: int) -> Iterator[WeightRun]:
        """Yield what ``rank`` writes, as views. The runs of all ranks cover every weight once, in every role."""
        for slot in self._share(rank, world):
            yield WeightRun(MASTER, slot.name, slot.start, _cut(slot.owner, slot))
            for role, values in self._tensor_state(slot.owner):
                yield WeightRun(role, slot.name, slot.start, _cut(values, slot))
        if self.reference is not None:
            yield from self.reference.runs(rank, world)

    def hold_reference(self, version: int) -> None:
        """Make the weights as they are, which are ``version``, the reference."""
        former = None if self.reference is None else self.reference.held
        self.reference = FrozenWeights(self._engine, self._names, version, into=former)

    def describe(self) -> dict[str, Any]:
        """Describe all that is no run, for JSON: settings and step counts of each group of weights, schedule, counters."""
        groups = []
        for group, owners in zip(self._base.param_groups, self._owners(), strict=True):
            states = [self._base.state[owner] for owner in owners if owner in self._base.state]
            scalars = {key: float(value) for key, value in (states[0].items() if states else ()) if _is_scalar(value)}
            settings = {key: value for key, value in group.items() if key != "params" and _is_setting(value)}
            groups.append({"settings": settings, "scalars": scalars, "has_state": bool(states)})
        schedule = self._engine.lr_scheduler.state_dict()
        return {
            "groups": groups,
            "schedule": {key: value for key, value in schedule.items() if _is_setting(value)},
            "counters": {name: int(getattr(self._engine, name)) for name in COUNTERS},
            "reference": None if self.reference is None else self.reference.version,
        }

    def restore(self, described: Mapping[str, Any], read: Read) -> None:
        """Restore the state that ``runs`` and ``describe`` gave. All ranks.

        ``described``: with ``roles``, the sorted names of all roles but the masters' that ``runs`` had.

        Raises ``ConfigError`` if the optimiser has other groups of weights, or keeps other tensors of a weight.
        """
        if len(described["groups"]) != len(self._base.param_groups):
            raise ConfigError(
                f"learner.ds_config: the optimiser has {len(self._base.param_groups)} groups of weights, "
                f"but the checkpoint {len(described['groups'])}"
            )
        # An optimiser without state has none after its updates either, and one that has some must not start from nothing.
        counters = described["counters"]
        updated = counters["global_steps"] > counters["skipped_steps"] or any(told["has_state"] for told in described["groups"])
        self._base.state.clear()
        if updated:
            for group, owners in zip(self._base.param_groups, self._owners(), strict=True):
                self._create_state(group, owners)
            self._require_roles(described["roles"])  # before the settings are taken on, which are of the same optimiser then
        for told, group, owners in zip(described["groups"], self._base.param_groups, self._owners(), strict=True):
            group.update({key: value for key, value in told["settings"].items() if key in group})
            for owner in owners:
                _set_scalars(self._base.state.get(owner, {}), told["scalars"])
        for slot in self._all_slots():
            for role, values in [(MASTER, slot.owner), *self._tensor_state(slot.owner)]:
                found = read(role, slot.name, slot.start, slot.start + slot.numel)
                if found is not None:
                    _cut(values, slot).copy_(found)
        self._publish(self._engine.optimizer)
        self._engine.lr_scheduler.load_state_dict({**self._engine.lr_scheduler.state_dict(), **described["schedule"]})
        for name, value in described["counters"].items():
            setattr(self._engine, name, value)
        if self.reference is not None and described.get("reference") is not None:
            self.reference.restore(described["reference"], read)

    def _require_roles(self, roles: Sequence[str]) -> None:
        ours = sorted({role for owner in self._base.state for role, _ in self._tensor_state(owner)})
        if ours != list(roles):
            raise ConfigError(
                f"learner.ds_config.optimizer: the checkpoint is of another optimiser, which keeps "
                f"{', '.join(roles) or 'nothing'} of each weight where this one keeps {', '.join(ours) or 'nothing'}"
            )

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The optimiser below DeepSpeed's wrapper."""
        optimiser = self._engine.optimizer
        return optimiser if isinstance(optimiser, torch.optim.Optimizer) else optimiser.optimizer

    def _all_slots(self) -> list[OptimiserSlot]:
        return list(self._slots(self._engine.optimizer, self._names))

    def _owners(self) -> list[list[Tensor]]:
        """By group of weights. Under ZeRO-3 the groups stand empty between steps, and the wrapper knows."""
        wrapper = self._engine.optimizer
        if not hasattr(wrapper, "sub_group_to_group_id"):
            return [list(group["params"]) for group in self._base.param_groups]
        owners: list[list[Tensor]] = [[] for _ in self._base.param_groups]
        for index, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
            owners[wrapper.sub_group_to_group_id[index]].append(flat)
        return owners

    def _share(self, rank: int, world: int) -> Iterator[OptimiserSlot]:
        slots = self._all_slots()
        if self._partitioned:
            yield from slots
            return
        total, at = sum(slot.numel for slot in slots), 0
        begin, end = rank * total // world, (rank + 1) * total // world
        for slot in slots:
            left, right = max(begin - at, 0), min(end - at, slot.numel)
            if left < right:
                yield slot._replace(start=slot.start + left, offset=slot.offset + left, numel=right - left)
            at += slot.numel

    def _tensor_state(self, owner: Tensor) -> list[tuple[str, Tensor]]:
        state = self._base.state.get(owner, {})
        return [(key, value) for key, value in state.items() if torch.is_tensor(value) and value.shape == owner.shape]

    def _create_state(self, group: dict[str, Any], owners: list[Tensor]) -> None:
        """Let the optimiser make its state, in the form that it likes, by steps of zero gradients. Weights are set later."""
        held, self.restoring = group["params"], True
        for owner in owners:
            gradient, group["params"] = owner.grad, [owner]
            owner.grad = torch.zeros_like(owner)
            self._base.step()
            owner.grad = gradient
        group["params"], self.restoring = held, False


class FrozenWeights:
    """A second set of the trained weights, as they were at ``version``, that can take the place of the current ones for a while.

    They lie in host memory, cut as the engine cuts its own: a part of each under ZeRO-3, else all. There is no second module, so
    layouts and kernels are the policy's. (A further model that is trained, or has another shape, needs an engine of its own.)
    """

    def __init__(self, engine: Any, names: Mapping[torch.nn.Parameter, str], version: int, *, into: list[Tensor] | None) -> None:
        self._engine, self._names, self.version = engine, names, version
        self._cut, pin = all(hasattr(weight, "ds_tensor") for weight in names), torch.cuda.is_available()
        self.held = into or [torch.empty_like(local, device="cpu", pin_memory=pin) for local in self._locals()]
        for local, held in zip(self._locals(), self.held, strict=True):
            held.copy_(local)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange these weights with the engine's; a second call undoes it, bit for bit. All ranks, between two passes."""
        optimiser = self._engine.optimizer
        if self._cut:
            optimiser._partition_all_parameters()
        for local, held in zip(self._locals(), self.held, strict=True):
            current = local.clone()
            local.copy_(held)
            held.copy_(current)
        if self._cut:
            _gather_persistent(optimiser)

    def runs(self, rank: int, world: int) -> Iterator[WeightRun]:
        """Yield what ``rank`` writes, as views; the runs of all ranks cover every weight once."""
        for index, (name, start, stop, held) in enumerate(self._parts()):
            if start < stop and (self._cut or index % world == rank):
                yield WeightRun(REFERENCE, name, start, held.flatten()[: stop - start])

    def restore(self, version: int, read: Read) -> None:
        """Take the weights that ``runs`` gave, of whatever cut."""
        self.version = version
        for name, start, stop, held in self._parts():
            if start < stop and (found := read(REFERENCE, name, start, stop)) is not None:
                held.view(-1)[: stop - start].copy_(found)

    def _locals(self) -> list[Tensor]:
        return [getattr(weight, "ds_tensor", weight).detach() for weight in self._names]

    def _parts(self) -> Iterator[tuple[str, int, int, Tensor]]:
        """(weight, first number, end, the part that this rank holds), padding at its end left out."""
        for (weight, name), held in zip(self._names.items(), self.held, strict=True):
            total = getattr(weight, "ds_numel", weight.numel())
            start = held.numel() * self._engine.optimizer._get_param_partition_rank(weight) if self._cut else 0
            yield name, start, min(start + held.numel(), total), held


def _plain_slots(_optimiser: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[OptimiserSlot]:
    for weight, name in names.items():
        yield OptimiserSlot(name, 0, weight.numel(), weight, 0)


def _unfused_slots(optimiser: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[OptimiserSlot]:
    for weights, masters in zip(optimiser.fp16_groups, optimiser.fp32_groups, strict=True):
        for weight, master in zip(weights, masters, strict=True):
            yield OptimiserSlot(names[weight], 0, weight.numel(), master, 0)


def _undo_first_step(optimiser: Any) -> None:
    """At its birth this wrapper makes a step of zero gradients, which decays the masters and counts in the bias correction."""
    optimiser.optimizer.state.clear()
    for weights, masters in zip(optimiser.fp16_groups, optimiser.fp32_groups, strict=True):
        for weight, master in zip(weights, masters, strict=True):
            master.data.copy_(weight.data)


def _publish_unfused(optimiser: Any) -> None:
    for weights, masters in zip(optimiser.fp16_groups, optimiser.fp32_groups, strict=True):
        for weight, master in zip(weights, masters, strict=True):
            weight.data.copy_(master.data)


def _zero_slots(optimiser: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[OptimiserSlot]:
    """ZeRO-1 and 2: the weights of a group one after another, in an order of the wrapper's, and a partition for each rank."""
    for index, owner in enumerate(optimiser.single_partition_of_fp32_groups):
        weights, offsets = optimiser.round_robin_bit16_groups[index], optimiser.round_robin_bit16_offsets[index]
        rank = dist.get_rank(optimiser.real_dp_process_group[index])
        yield from _partition(zip(weights, offsets, strict=True), names, owner, begin=rank * owner.numel())


def _bf16_slots(optimiser: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[OptimiserSlot]:
    """The same, in the order of the model."""
    for index, owner in enumerate(optimiser.fp32_groups_flat_partition):
        weights = optimiser.bf16_groups[index]
        offsets = accumulate((weight.numel() for weight in weights), initial=0)
        rank = dist.get_rank(optimiser.real_dp_process_group[index])
        yield from _partition(zip(weights, offsets, strict=False), names, owner, begin=rank * owner.numel())


def _partition(
    placed: Iterable[tuple[torch.nn.Parameter, int]], names: Mapping[torch.nn.Parameter, str], owner: Tensor, *, begin: int
) -> Iterator[OptimiserSlot]:
    """What of the weights at these offsets lies in ``owner``, which begins at ``begin``; one may lie across a border."""
    for weight, offset in placed:
        left, right = max(offset, begin), min(offset + weight.numel(), begin + owner.numel())
        if left < right:
            yield OptimiserSlot(names[weight], left - offset, right - left, owner, left - begin)


def _publish_flat(optimiser: Any) -> None:
    optimiser._hp_optimizer_states_linked = False  # DeepSpeed's own views of the state are of the one before
    if optimiser.optimizer.state:
        optimiser._lazy_init_hp_params_optimizer_state()
    optimiser.update_lp_params()
    for index in range(len(getattr(optimiser, "round_robin_bit16_groups", ()))):
        optimiser._update_model_bit16_weights(index)  # ZeRO-1 and 2 may keep the weights in another order


def _stage3_slots(optimiser: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[OptimiserSlot]:
    """ZeRO-3: every weight cut in equal parts over the ranks, the last one padded."""
    for weight, name in names.items():
        group, offset, numel = optimiser.grad_position[optimiser.get_param_id(weight)]
        start = numel * optimiser._get_param_partition_rank(weight)
        owner = optimiser.fp32_partitioned_groups_flat[group]
        if start < weight.ds_numel:
            yield OptimiserSlot(name, start, min(numel, weight.ds_numel - start), owner, offset)


def _publish_stage3(optimiser: Any) -> None:
    optimiser._partition_all_parameters()
    for index in range(len(optimiser.fp16_groups)):
        optimiser._reassign_or_swap_out_partitioned_parameters(index)
    _gather_persistent(optimiser)


def _gather_persistent(optimiser: Any) -> None:
    if optimiser.persistent_parameters:  # small weights are kept whole on every rank
        optimiser.persistent_parameters[0].all_gather(optimiser.persistent_parameters)
    optimiser.invalidate_secondary_tensor()


# By the class of DeepSpeed's wrapper: where the numbers lie, and how weights in training precision follow the masters.
LAYOUTS: dict[str, tuple[Callable[..., Iterator[OptimiserSlot]], Callable[[Any], None]]] = {
    "FP16_UnfusedOptimizer": (_unfused_slots, _publish_unfused),
    "BF16_Optimizer": (_bf16_slots, _publish_flat),
    "DeepSpeedZeroOptimizer": (_zero_slots, _publish_flat),
    "DeepSpeedZeroOptimizer_Stage3": (_stage3_slots, _publish_stage3),
}
REPLICATED = ("FP16_UnfusedOptimizer",)


def _cut(values: Tensor, slot: OptimiserSlot) -> Tensor:
    return values.detach().view(-1)[slot.offset : slot.offset + slot.numel]


def _is_scalar(value: Any) -> bool:
    return value.dim() == 0 if torch.is_tensor(value) else isinstance(value, int | float)


def _is_setting(value: Any) -> bool:
    """Numbers and lists of numbers: not weights, functions or switches, which belong to the program that runs now."""
    if isinstance(value, list | tuple):
        return all(_is_setting(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _set_scalars(state: dict[str, Any], scalars: Mapping[str, float]) -> None:
    for key, value in scalars.items():
        if torch.is_tensor(state.get(key)):
            state[key].fill_(value)
        elif key in state:
            state[key] = type(state[key])(value)
