"""One version of the weights from the object store to many receivers, on one node and on several, over the time of plain copies.

A receiver does what an engine does before its pause: it fetches bucket by bucket, copies into its own shared buffer, and finds the
checksum of what arrived. The learner's part (export) is that of the package, from an actor that has random tensors.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from common import table
from scale_actors import LEAST_FREE_GIB, MemoryLow, end, local_ray, require_memory, wait_all

MODEL_MIB, BUCKET_MIB, TENSOR_MIB = 64, 8, 1
COUNTS, QUICK_COUNTS = (1, 2, 4, 8, 16, 32), (1, 2)
NODES, QUICK_NODES = ((1, 1), (2, 1), (4, 1), (2, 4)), ((1, 2),)  # (nodes besides the learner's, receivers on each)
RECEIVER_GIB = 0.3  # torch, and a buffer of the model
Figures = dict[str, Any]


class Exporter:
    """A learner rank that has weights, and new ones for each version."""

    def __init__(self, mib: int, tensor_mib: int) -> None:
        import numpy as np

        self._numbers = np.random.default_rng(0).random((mib // tensor_mib, tensor_mib << 18), dtype=np.float32)

    def start(self) -> int:
        return os.getpid()

    def export(self, version: int, held: Any, bucket_bytes: int) -> Iterator[Any]:
        import torch

        from fr3e_async.weights.bundle import stream

        self._numbers += 1.0
        each = max(1, bucket_bytes // self._numbers[0].nbytes)
        named = [(f"w{i}", torch.from_numpy(tensor)) for i, tensor in enumerate(self._numbers)]
        buckets = [named[i : i + each] for i in range(0, len(named), each)]
        yield from stream(buckets, version=version, dtype="float32", held=held)


class Receiver:
    """What an engine has of the weights, without the engine."""

    def __init__(self) -> None:
        from fr3e_async.rollout.held_weights import HeldWeights

        self._held = HeldWeights()

    def start(self) -> int:
        return os.getpid()

    async def take(self, bundle: Any) -> dict[str, float]:
        """Seconds: ``waited`` for the store, and until all of it is in the buffer and checked."""
        from fr3e_async.rollout.loaded_weights import Proof

        waited = 0.0

        async def fetch(reference: Any) -> Any:
            nonlocal waited
            began = time.perf_counter()
            bucket = await reference
            waited += time.perf_counter() - began
            return bucket

        receipt = await self._held.receive(bundle, fetch)
        self._held.loaded(bundle.manifest, [Proof(exact=frozenset(self._held.changed(bundle.manifest)))])
        assert self._held.checksum(bundle.manifest) == bundle.checksum
        return {"waited": waited, "whole": receipt.time_s, "copied": float(receipt.copied_bytes)}


class Broadcast:
    """A learner, receivers, and versions handed over between them."""

    def __init__(self, options: Sequence[dict[str, Any]], *, learner: dict[str, Any] | None = None, mib: int = MODEL_MIB) -> None:
        """``options``: Ray's, for each receiver; ``learner``: for the learner."""
        from fr3e_async.actors.proxies import RayLearner

        require_memory(RECEIVER_GIB * len(options), f"{len(options)} receivers")
        rank = ray.remote(Exporter).options(num_cpus=0, **(learner or {})).remote(mib, TENSOR_MIB)
        self._receivers = [ray.remote(Receiver).options(num_cpus=0, **more).remote() for more in options]
        self._actors = [rank, *self._receivers]
        self._pids = wait_all([actor.start.remote() for actor in self._actors])
        self._learner = RayLearner([rank], None, bucket_bytes=BUCKET_MIB << 20)
        self.nbytes, self._version = mib << 20, 0

    async def hand_over(self, count: int) -> dict[str, float]:
        """One version, all of it new, to the first ``count`` receivers."""
        self._version += 1
        began = time.perf_counter()
        bundle = await self._learner.export(self._version)
        exported = time.perf_counter()
        receipts = await asyncio.gather(*(receiver.take.remote(bundle) for receiver in self._receivers[:count]))
        ended = time.perf_counter()
        assert all(receipt["copied"] == self.nbytes for receipt in receipts)
        return {
            "export": exported - began,
            "broadcast": ended - exported,
            "waited": statistics.mean(receipt["waited"] for receipt in receipts),
            "slowest": max(receipt["whole"] for receipt in receipts),
        }

    def measure(self, count: int, *, rounds: int) -> Figures:
        """Medians over versions, beside the time of one plain copy."""
        from weights import memcpy_s

        asyncio.run(self._rounds(count, 2))  # the store's and the buffers' pages are touched
        before = memcpy_s(self.nbytes)
        found = asyncio.run(self._rounds(count, rounds))
        row = {key: statistics.median(one[key] for one in found) for key in found[0]}
        memcpy = statistics.median([before, memcpy_s(self.nbytes)])
        rate = count * self.nbytes / row["broadcast"]
        return row | {"memcpy": memcpy, "bytes_per_s": rate, "ratio": ratio(row["broadcast"], memcpy, copies=count)}

    async def _rounds(self, count: int, rounds: int) -> list[dict[str, float]]:
        return [await self.hand_over(count) for _ in range(rounds)]

    def close(self) -> None:
        end(self._actors, self._pids)


def ratio(broadcast_s: float, memcpy_s: float, *, copies: int) -> float:
    """Of a hand-over to the plain copies that it makes, one after another in one thread: below 1 where several cores copy."""
    return broadcast_s / (memcpy_s * copies)


def one_node(*, quick: bool) -> Figures:
    counts = QUICK_COUNTS if quick else COUNTS
    found: Figures = {"rows": {}, "stopped": ""}
    with local_ray(store_gib=0.5):
        try:
            bench = Broadcast([{}] * counts[-1])
        except MemoryLow as error:
            return found | {"stopped": f"not measured: {error}"}
        for count in counts:
            found["rows"][str(count)] = bench.measure(count, rounds=3 if quick else 7)
        bench.close()
    return found


def some_nodes(nodes: int, each: int, *, rounds: int) -> Figures:
    """Raylets of their own on this machine, each with its own store, besides the one of the driver and the learner."""
    from ray.cluster_utils import Cluster

    store = 256 << 20
    head = {"num_cpus": 1, "object_store_memory": store, "include_dashboard": False, "resources": {"learner": 1.0}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=store, resources={f"node{number}": 1.0})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        places = [{"resources": {f"node{number}": 0.01}} for number in range(nodes) for _ in range(each)]
        bench = Broadcast(places, learner={"resources": {"learner": 1.0}})
        row = bench.measure(nodes * each, rounds=rounds)
        bench.close()
        return row
    finally:
        ray.shutdown()
        cluster.shutdown()


def section(measured: Mapping[str, Figures], *, quick: bool) -> Figures:
    """``measured``: nothing is needed of other sections."""
    found: Figures = {"mib": MODEL_MIB, "one_node": one_node(quick=quick), "nodes": {}}
    for nodes, each in QUICK_NODES if quick else NODES:
        try:
            found["nodes"][f"{nodes} x {each}"] = some_nodes(nodes, each, rounds=3 if quick else 7)
        except MemoryLow as error:
            found["one_node"]["stopped"] = f"{nodes} nodes are not measured: {error}"
    return found


def show(found: Figures) -> None:
    head = ("receivers", "export ms", "broadcast ms", "waited for the store ms", "one plain copy ms", "GiB/s arriving", "ratio")
    for title, rows in (("on one node", found["one_node"]["rows"]), ("on nodes of their own: nodes x receivers", found["nodes"])):
        print(f"\nBroadcast: {found['mib']} MiB of new weights, {title}; ratio: to one plain copy for each receiver")
        cells = [
            (name, *(f"{1e3 * row[key]:.0f}" for key in ("export", "broadcast", "waited", "memcpy")),
             f"{row['bytes_per_s'] / 2**30:.2f}", f"{row['ratio']:.2f}")
            for name, row in rows.items()
        ]  # fmt: skip
        table(head, cells)
    if found["one_node"]["stopped"]:
        print(found["one_node"]["stopped"], f"({LEAST_FREE_GIB:g} GiB stay free)")
