"""Whole runs of random clusters: any settings that are valid together, any order, any share of mishaps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ledger_support import TRUNK_MODES, control_config
from machine_mishaps import first
from machine_support import Cluster

MODES = ("in_flight", "wait_idle", "abort_retry")


def random_cluster(rng: random.Random, **fixed: Any) -> Cluster:
    """Any mode, with any settings that are valid together. ``fixed``: of ``control_config``, or fields of ``Cluster``."""
    own = {name: fixed.pop(name) for name in ("world", "rescored", "birth") if name in fixed}
    settings: dict[str, Any] = {
        "steps": rng.randint(2, 6), "groups": rng.randint(1, 3), "staleness": rng.randint(0, 3), "update": rng.choice(MODES),
        "together": rng.random() < 0.4, "flexible": rng.random() < 0.5, "elastic": rng.random() < 0.5, "alike": rng.random() < 0.8,
        "adaptive": rng.random() < 0.4, "backoff": rng.choice([0.0, 0.5]),
    } | fixed  # fmt: skip
    settings["elastic"] &= not fixed.get("together")  # its group has fixed members
    settings["together"] &= not settings["elastic"]
    room = settings["staleness"] * settings["groups"]
    settings["window"] = fixed.get("window", rng.choice([0, rng.randint(0, room)]))
    if not settings["adaptive"]:
        settings.setdefault("trunk", rng.choice(TRUNK_MODES))
    return Cluster(**{"config": control_config(**settings), "rescored": rng.random() < 0.3, "birth": rng.choice([0, -1])} | own)


def play(cluster: Cluster, rng: random.Random, *, moves: int, mishaps: float, kills: float = 0.005) -> Cluster:
    """So many actions in a random order, then the way to the end."""
    for _ in range(moves):
        if rng.random() < 0.1:
            cluster.look(rng.randrange)
        chance = rng.random()
        if chance < kills:
            cluster.kill(rng.randrange)
        elif chance < 3 * kills:
            cluster.checkpoint()
        elif chance < 3.1 * kills:
            cluster.stop(first)
        else:
            names = cluster.BAD if rng.random() < mishaps else cluster.GOOD
            any(cluster.act(name, rng.randrange) for name in rng.sample(names, len(names)))  # the first that can be done
    cluster.to_the_end()
    return cluster


def any_order(cluster: Cluster, rng: random.Random, *, faults: float, bad: Sequence[str]) -> Cluster:
    """Random actions until the run is finished; ``faults``: part of them that are ``bad``."""
    for _ in range(40_000):  # a run takes some thousands
        if cluster.ledger.finished:
            return cluster
        names = bad if rng.random() < faults else cluster.GOOD
        any(cluster.act(name, rng.randrange) for name in rng.sample(names, len(names)))
    raise AssertionError(f"the run does not end: {cluster.ledger.waiting()}")
