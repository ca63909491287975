"""An object store that is too small: rollouts go to disk and come back; on a full disk the run is told so in one line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fr3e_async.types import Completion, Finish, RolloutBatch, RolloutId

pytestmark = [pytest.mark.ray]

STORE_BYTES = 80 << 20
TOKENS = 1_000_000  # of one rollout: 20 MB a batch, so that a few fill the store
BATCHES = 8

PROGRAM = """
import asyncio, json, sys
import ray
from test_store_pressure_ray import STORE_BYTES, tried
full = sys.argv[1] == "full"
ray.init(
    address="local", object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False,
    _system_config={"local_fs_capacity_threshold": 0.0001} if full else None,
)
print(json.dumps(asyncio.run(tried())))
ray.shutdown()
"""


def batch(number: int) -> RolloutBatch:
    tokens = np.full(TOKENS, number, dtype=np.int32)
    values = np.zeros(TOKENS, dtype=np.float32)
    completion = Completion(
        tokens=tokens, logprobs=values, entropies=values, entropy_errors=values, versions=tokens, finish=Finish.STOP
    )  # fmt: skip
    context = np.ones(4, dtype=np.int32)
    return RolloutBatch.build(
        ids=[RolloutId(f"p{number}@0", 0, 0)], contexts=[context], prompt_lens=[4], context_of=[0], completions=[completion]
    )  # fmt: skip


class Maker:
    """What an engine is to the store: its batches are return values, owned by the caller."""

    def make(self, number: int) -> tuple[int, RolloutBatch]:
        return number, batch(number)


def same(first: RolloutBatch, number: int) -> bool:
    return bool((first.completion(0).tokens == number).all())


async def tried() -> dict[str, str]:
    """What becomes of more batches than the store holds: put by the driver, and returned by an actor."""
    import ray

    from fr3e_async.actors.cluster import RayPayloads
    from fr3e_async.actors.proxies import reach
    from fr3e_async.control.ports import TaskLost, WorkerLost
    from fr3e_async.errors import RunFailed

    store, outcomes = RayPayloads(), {}
    actor = ray.remote(Maker).options(num_cpus=0).remote()

    async def made(number: int):
        note, payload = actor.make.options(num_returns=2).remote(number)
        assert await reach("generator-0", note) == number
        return payload

    async def put(number: int):
        return store.put(batch(number))

    for name, way in (("put", put), ("returned", made)):
        try:
            held = [await asyncio.wait_for(way(number), 60) for number in range(BATCHES)]
            outcomes[name] = (
                "whole" if all(same(store.get(payload), number) for number, payload in enumerate(held)) else "changed"
            )
            del held
        except (RunFailed, TaskLost, WorkerLost) as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    return outcomes


def outcome(mode: str) -> dict[str, str]:
    """In a process of its own, so that a store that is stuck ends with it."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    words = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_rollouts_beyond_a_small_store_go_to_disk_and_come_back():
    assert outcome("small") == {"put": "whole", "returned": "whole"}


def test_a_full_disk_beneath_a_full_store_is_named():
    outcomes = outcome("full")
    assert "object store takes no more rollouts" in outcomes["put"]
    assert "ray.object_store_gib" in outcomes["put"]
    assert outcomes["returned"].startswith(("RunFailed", "TaskLost")), outcomes
