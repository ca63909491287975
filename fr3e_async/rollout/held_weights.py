"""What an engine has of the weights: the bytes in its shared buffer, and which tensors its model was loaded with.

The first is filled while requests run; the second changes inside the pause. Knows nothing of vLLM.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fr3e_async.rollout.port import Fetch
from fr3e_async.types import WeightBucket, WeightBundle, WeightManifest
from fr3e_async.weights import SharedWeights, offsets
from fr3e_async.weights.bundle import tensor_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What it took to have a version's bytes in the buffer."""

    copied_bytes: int
    skipped_bytes: int
    time_s: float


class HeldWeights:
    """See the module's docstring. A fresh one holds nothing, so that the first version is loaded as a whole."""

    def __init__(self) -> None:
        self._shared = SharedWeights()
        self._model: dict[str, tuple[str, int]] = {}  # tensor -> wire type and checksum that the model was loaded with
        self._verified: set[str] = set()

    @property
    def verified(self) -> int:
        """Tensors that were found in the model as they were in the bundle that brought them."""
        return len(self._verified)

    async def receive(self, bundle: WeightBundle, fetch: Fetch) -> Receipt:
        """Have every tensor of the bundle in the buffer, its checksum found right there; the event loop stays free.

        Only buckets with something new are fetched, the next one while the last is copied. Raises ``ValueError`` for a
        wrong checksum or size.
        """
        started = time.perf_counter()
        manifest = bundle.manifest
        copied = 0
        numbers = await asyncio.to_thread(self._shared.prepare, manifest)
        async with aclosing(_one_ahead(numbers, bundle, fetch)) as buckets:
            async for number, bucket in buckets:
                copied += await asyncio.to_thread(self._shared.fill, manifest, number, bucket)
        total = sum(tensor_bytes(manifest, index) for index in range(len(manifest.names)))
        return Receipt(copied_bytes=copied, skipped_bytes=total - copied, time_s=time.perf_counter() - started)

    def same(self, manifest: WeightManifest) -> bool:
        """Does the model hold these very weights, and no others?"""
        return not self.changed(manifest) and set(self._model) == set(manifest.names)

    def changed(self, manifest: WeightManifest) -> list[str]:
        """Tensors that the model does not hold as the manifest has them."""
        sums = zip(manifest.names, manifest.checksums, strict=True)
        return [name for name, told in sums if self._model.get(name) != (manifest.dtype, told)]

    def load_call(self, manifest: WeightManifest) -> tuple[Any, ...]:
        """The arguments of ``WorkerExtension.fr3e_load_weights``."""
        shapes = [list(shape) for shape in manifest.shapes]
        starts = offsets(manifest)[:-1]
        return self._shared.path, manifest.dtype, list(manifest.names), shapes, starts, self.changed(manifest)

    def loaded(self, manifest: WeightManifest, verified: Sequence[Sequence[str]]) -> None:
        """The model holds the manifest now; ``verified``: the names that each worker has compared."""
        self._verified -= set(self.changed(manifest))
        self._verified |= set(verified[0]).intersection(*verified[1:])
        self._verified &= set(manifest.names)
        self._model = {n: (manifest.dtype, told) for n, told in zip(manifest.names, manifest.checksums, strict=True)}

    def checksum(self, manifest: WeightManifest) -> int:
        """Of what the model holds, by the checksums that were found when it came."""
        return replace(manifest, checksums=tuple(self._model[name][1] for name in manifest.names)).checksum

    def close(self) -> None:
        self._shared.close()


async def _one_ahead(
    numbers: Sequence[int], bundle: WeightBundle, fetch: Fetch
) -> AsyncGenerator[tuple[int, WeightBucket], None]:
    """The buckets of these numbers, each fetched while the one before is in use."""
    ahead: asyncio.Future[WeightBucket] | None = None
    try:
        for place, number in enumerate(numbers):
            bucket = await (ahead or fetch(bundle.buckets[number]))
            rest = numbers[place + 1 :]
            ahead = asyncio.ensure_future(fetch(bundle.buckets[rest[0]])) if rest else None
            yield number, bucket
    finally:
        if ahead is not None:
            ahead.cancel()
