"""What a run would occupy: actors × resources, whether a cluster offers as much, and the text of ``--dry-run``.

Arithmetic on a config; starts nothing and knows nothing of Ray. The numbers of bytes come from ``memory``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fr3e_async.algorithm.strategies import explorer_count, make_strategy
from fr3e_async.config import Config
from fr3e_async.errors import ConfigError, aligned
from fr3e_async.learner.memory import GIB, ModelShape, memory_estimate
from fr3e_async.settings.help import as_text, changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One role's actors and what Ray reserves for each.

    Example: ``Placement(role="generators", count_setting="generators.count", actors=4, least=1, most=8, cpus=2.0, gpus=1)``.
    """

    role: str  # the section of the config
    count_setting: str
    actors: int
    least: int  # that a run waits for
    most: int  # that the pool may grow to
    cpus: float  # each
    gpus: int  # each
    resources: dict[str, float] = field(default_factory=dict)  # custom ones, each
    labels: dict[str, str] = field(default_factory=dict)  # of the nodes

    def total(self, resource: str) -> float:
        return self.actors * per_actor(self).get(resource, 0.0)


def placement(
    config: Config, size: Literal["count", "least", "most"] = "count", *, training: bool = True
) -> list[Placement]:  # fmt: skip
    """One row for each role that has actors, in the order of the pipeline. ``size``: of pools that come and go.

    ``training``: false for what an evaluation alone needs, generators and verifiers.
    """
    branches = explorer_count(config) > 0 and training
    pools = [(role, getattr(config, role)) for role in ("generators", *(("explorers",) if branches else ()), "verifiers")]
    rows = [
        Placement(
            role=role, count_setting=f"{role}.count", actors=getattr(p, size), least=p.least, most=p.most, cpus=p.cpus,
            gpus=0 if role == "verifiers" else p.gpus, resources=p.resources, labels=p.labels,
        )
        for role, p in pools
    ]  # fmt: skip
    if training:
        n = config.learner
        rows.append(
            Placement(
                role="learner", count_setting="learner.ranks", actors=n.ranks, least=n.ranks, most=n.ranks, cpus=n.cpus, gpus=n.gpus,
                resources=n.resources, labels=n.labels,
            )
        )  # fmt: skip
    return [row for row in rows if row.actors]


def per_actor(row: Placement) -> dict[str, float]:
    """Resource → what one actor occupies, without what it does not."""
    each = {"CPU": row.cpus, "GPU": float(row.gpus)} | row.resources
    return {name: amount for name, amount in each.items() if amount}


def totals(rows: Sequence[Placement]) -> dict[str, float]:
    """Resource → what all actors need together. CPU and GPU are always in it."""
    names = ["CPU", "GPU", *sorted({name for row in rows for name in row.resources})]
    return {name: sum(row.total(name) for row in rows) for name in names}


def local_resources(config: Config, *, machine_cpus: int, machine_gpus: int, training: bool = True) -> dict[str, float]:
    """What a cluster of this machine alone would offer.

    CPUs: ray.num_cpus, or with 0 the larger of the machine's and what the actors need; GPUs: the machine's; custom
    resources: what is asked for, because on one node they have nothing to tell apart.
    """
    need = totals(placement(config, "most", training=training))
    cpus = config.ray.num_cpus or max(machine_cpus, math.ceil(need["CPU"] - 1e-9))
    return need | {"CPU": float(cpus), "GPU": float(machine_gpus)}


def check_resources(config: Config, available: Mapping[str, float], *, training: bool = True) -> None:
    """ConfigError unless ``available`` (resource → amount, as Ray names them) holds all actors that a run waits for at once.

    For a cluster that grows, ``available`` is what it may grow to, not what it has now.
    """
    rows = placement(config, "least", training=training)
    for resource, need in totals(rows).items():
        offer = available.get(resource, 0.0)
        if need <= offer + 1e-6:
            continue
        users = [row for row in rows if row.total(resource)]
        sums = " + ".join(f"{row.role} {row.actors}×{row.total(resource) / row.actors:g}" for row in users)
        label = {"CPU": "CPUs", "GPU": "GPUs"}.get(resource, f"of the custom resource {resource!r}")
        field_name = {"CPU": "cpus", "GPU": "gpus"}.get(resource, "resources")
        raise ConfigError(
            f"more actors than resources: {need:g} {label} needed ({sums}) but the cluster offers {offer:g}; "
            f"lower {' or '.join(row.count_setting for row in users)}, or {' or '.join(f'{r.role}.{field_name}' for r in users)}"
            + (", or raise ray.num_cpus" if resource == "CPU" and config.ray.num_cpus else "")
        )


def check_nodes(config: Config, nodes: Sequence[Mapping[str, float]], *, weights: float = 0.0, training: bool = True) -> None:
    """Raise ``ConfigError`` unless each actor fits one of the nodes, whose resources these are: an actor never spans two.

    ``weights``: bytes of one version. A node that an engine or a rank fits on must have an object store for two of them.
    """
    for row in placement(config, training=training):
        each = per_actor(row)
        fitting = [node for node in nodes if all(node.get(name, 0.0) >= need - 1e-6 for name, need in each.items())]
        if not fitting:
            need, most = ", ".join(f"{amount:g} {name}" for name, amount in each.items()), dict.fromkeys(each, 0.0)
            for node in nodes:
                most = {name: max(had, node.get(name, 0.0)) for name, had in most.items()}
            offer = ", ".join(f"{amount:g} {name}" for name, amount in most.items())
            raise ConfigError(
                f"{row.role}: one actor needs {need}, and lies on one node, but no node has that (the most of each: {offer}); "
                f"lower {row.role}.gpus, {row.role}.cpus or {row.role}.resources"
            )
        stores = [node["object_store_memory"] for node in fitting if "object_store_memory" in node]
        if row.role != "verifiers" and stores and min(stores) < 2 * weights:
            raise ConfigError(
                f"object store: {min(stores) / GIB:.1f} GiB on a node for {row.role}, but two versions of the weights take "
                f"{2 * weights / GIB:.1f} GiB and would be spilled to disk at each hand-over; raise ray.object_store_gib, or on a cluster "
                "`ray start --object-store-memory` and the shared memory of its containers (--shm-size)"
            )


# --- the text of --dry-run --------------------------------------------------------------------------------------------


def render_plan(
    config: Config, *, origins: Mapping[str, str], yaml: str = "", model: ModelShape | None = None
) -> str:  # fmt: skip
    """What ``--dry-run`` prints before its checks: settings that differ from the defaults (and all, if ``yaml`` is given), placement,
    batch sizes, memory. ``origins``: where each setting was given. Plain text."""
    blocks = [_render_changed(config, origins), *([f"all settings\n{_indented(yaml)}"] if yaml else [])]
    return "\n\n".join([*blocks, render_placement(config), _render_batch(config), _render_memory(config, model)])


def _render_changed(config: Config, origins: Mapping[str, str]) -> str:
    body = [
        [knob.path, as_text(value), f"default {as_text(knob.default)}", "command line" if "=" in said else said]
        for knob, value, said in changed(config, origins)
    ]
    return "settings that differ from the defaults\n" + _table(body, left=(0, 1, 2, 3))


def render_placement(config: Config, *, training: bool = True) -> str:
    """The table of actors with their CPUs, GPUs and custom resources, as text. ``training``: as in ``placement``."""
    rows = placement(config, training=training)
    need = totals(rows)
    custom = [name for name in need if name not in ("CPU", "GPU")]
    header = ["role", "actors", "CPUs each", "GPUs each", "resources each"]
    body = [
        [row.role, _range(row), f"{row.cpus:g}", str(row.gpus), ", ".join(f"{k} {v:g}" for k, v in row.resources.items())]
        for row in rows
    ]
    extra = ", ".join(f"{name} {need[name]:g}" for name in custom)
    body.append(["together", str(sum(row.actors for row in rows)), f"{need['CPU']:g}", f"{need['GPU']:g}", extra])
    return "placement\n" + _table([header, *body], left=(0, 4))


def _range(row: Placement) -> str:
    return str(row.actors) if row.least == row.most else f"{row.actors} ({row.least} to {row.most})"


def _render_batch(config: Config) -> str:
    groups, each = config.flow.groups_per_step, make_strategy(config.algorithm).plan.rollouts
    lines = [
        f"{groups} groups × {each} rollouts = {groups * each} rollouts, {config.learner.optimiser_steps} optimiser steps a batch",
        f"at most {config.flow.capacity} groups alive at once: no token is older than {config.flow.max_staleness} versions",
        f"longest sequence {config.context_length} tokens; {config.run.steps} batches",
    ]
    return "batch\n" + _indented("\n".join(lines))


def _render_memory(config: Config, model: ModelShape | None) -> str:
    if model is None:
        lead = f"model.path={config.model.path} is not on this disk; set model.parameters for an estimate"
    else:
        lead = f"model of {model.parameters:,} weights; estimate in GiB, without Python and its libraries"
    header = ["role", "copies", "on", "each", "parts"]
    body = []
    for row in memory_estimate(config, model):
        parts = " + ".join(f"{name} {gib:.2f}" for name, gib in row.parts.items())
        text = "; ".join(filter(None, [parts, row.note]))
        body.append([row.role, str(row.copies), row.where, f"{row.gib:.2f}" if row.parts else "-", text])
    return f"memory\n  {lead}\n" + _table([header, *body], left=(0, 2, 4))


def _table(rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    return "\n".join(f"  {line}" for line in aligned(rows, left=left))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.rstrip().splitlines())
