"""Track an engine's weights: the bytes in its shared buffer, and the tensors that its model was proven to hold.

The buffer is filled while requests run. The model changes inside the pause, and its tensors count after a proof. Knows no vLLM.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fr3e_async.rollout.loaded_weights import Proof, Unproven, unproven
from fr3e_async.rollout.port import Fetch
from fr3e_async.weights.bundle import tensor_bytes
from fr3e_async.weights.manifest import WeightBucket, WeightBundle, WeightManifest
from fr3e_async.weights.shared import SharedWeights, offsets

WHOLE_EVERY = 500  # loads after which packed weights are compared whole again


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The cost of a version's bytes. *Example*: ``Receipt(copied_bytes=3_000_000, skipped_bytes=12_288, time_s=0.4)``."""

    copied_bytes: int
    skipped_bytes: int
    time_s: float


class HeldWeights:
    """Tracks the bytes that an engine received and the tensors its model was proven to hold. A new one holds nothing: the first version is loaded whole."""

    def __init__(self) -> None:
        self._shared = SharedWeights()
        self._model: dict[str, tuple[str, int]] = {}  # tensor -> wire type and checksum of what the model was proven to hold
        self._probed: set[str] = set()
        self.loads = 0  # times that a model was proven; with a rollback a version can come again, with other weights

    def thoroughness(self) -> tuple[bool, int]:
        """(whether every element must be compared, number of this load). At the first two loads, then every ``WHOLE_EVERY``-th."""
        return self.loads < 2 or self.loads % WHOLE_EVERY == 0, self.loads

    @property
    def verified(self) -> int:
        """Number of tensors of which every element was compared when they last changed, or in a whole proof since then."""
        return len(self._model) - self.probed

    @property
    def probed(self) -> int:
        """Number of tensors of which only a part was compared."""
        return len(self._probed)

    async def receive(self, bundle: WeightBundle, fetch: Fetch) -> Receipt:
        """Copy the tensors of the bundle that are new into the buffer, and check their checksums there. The event loop stays free.

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
        """Whether the model holds exactly the manifest's weights, and no others."""
        return not self.changed(manifest) and set(self._model) == set(manifest.names)

    def changed(self, manifest: WeightManifest) -> list[str]:
        """Names of the tensors that the model does not hold as the manifest describes them."""
        sums = zip(manifest.names, manifest.checksums, strict=True)
        return [name for name, told in sums if self._model.get(name) != (manifest.dtype, told)]

    def load_call(self, manifest: WeightManifest) -> tuple[Any, ...]:
        """Return the first arguments of ``WorkerExtension.fr3e_load_weights``."""
        shapes = [list(shape) for shape in manifest.shapes]
        starts = offsets(manifest)[:-1]
        found = self._shared.checksums(manifest)
        return self._shared.path, manifest.dtype, list(manifest.names), shapes, starts, self.changed(manifest), found

    def proven(self, manifest: WeightManifest, replies: Sequence[Mapping[str, Any]]) -> None:
        """Record a load by the replies of all workers. Raises ``Unproven``, as ``loaded`` does."""
        checksums: dict[str, int] = {}
        for reply in replies:
            for name, found in reply["checksums"].items():
                if checksums.setdefault(name, found) != found:
                    raise Unproven(f"{name} has come to the workers in different forms")
        self.loaded(manifest, [Proof.of(reply) for reply in replies], checksums)
        self.loads += 1

    def loaded(self, manifest: WeightManifest, proofs: Sequence[Proof], checksums: Mapping[str, int] | None = None) -> None:
        """Record that the model holds the manifest now, as each worker has proven.

        ``checksums``: of the tensors that the workers compared the model with, where they found them; else the buffer's count.

        Raises:
            Unproven: a tensor that has changed was not used wholly by the workers together.
        """
        found = self._shared.checksums(manifest) | dict(checksums or {})
        changed = set(self.changed(manifest))
        shapes = {n: s for n, s in zip(manifest.names, manifest.shapes, strict=True) if n in changed}
        if missing := unproven(proofs, shapes) or list(shapes.keys() - found.keys()):
            raise Unproven(f"{len(missing)} of the sent weights are not, or not wholly, in the engine, e.g. {min(missing)}")
        self._probed -= frozenset.union(frozenset(), *(proof.exact for proof in proofs))
        self._probed |= frozenset.union(frozenset(), *(proof.probed for proof in proofs))
        self._probed &= set(manifest.names)
        self._model = {n: (manifest.dtype, found[n]) if n in found else self._model[n] for n in manifest.names}

    def checksum(self, manifest: WeightManifest) -> int:
        """Checksum of what the model holds, made of the checksums that were found when the tensors arrived."""
        return replace(manifest, checksums=tuple(self._model[name][1] for name in manifest.names)).checksum

    def close(self) -> None:
        self._shared.close()


async def _one_ahead(
    numbers: Sequence[int], bundle: WeightBundle, fetch: Fetch
) -> AsyncGenerator[tuple[int, WeightBucket], None]:
    """Yield the buckets with these numbers; fetch the next while the caller uses the current one."""
    ahead: asyncio.Future[WeightBucket] | None = None
    try:
        for index, number in enumerate(numbers):
            bucket = await (ahead or fetch(bundle.buckets[number]))
            rest = numbers[index + 1 :]
            ahead = asyncio.ensure_future(fetch(bundle.buckets[rest[0]])) if rest else None
            yield number, bucket
    finally:
        if ahead is not None:
            ahead.cancel()
