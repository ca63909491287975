"""What travels when weights do: a version's manifest, its buckets, and an engine's word that it serves them."""

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

WeightBucket = tuple[NDArray, ...]  # [size] float32 or uint16 (the bits of bfloat16): some tensors of a version, flat


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """What the weights of one version are, without their bytes: N tensors under their Hugging Face names, in B buckets."""

    version: int
    dtype: str  # on the wire: "float32" | "bfloat16"
    names: tuple[str, ...]  # [N]
    shapes: tuple[tuple[int, ...], ...]  # [N]
    checksums: tuple[int, ...]  # [N] of each tensor's bytes on the wire (``weights.checksum``)
    buckets: tuple[int, ...]  # [B] number of tensors in each bucket, in the order of ``names``

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count or len(set(self.names)) != count:
            raise ValueError(f"weights v{self.version}: {count} tensors of {len(set(self.names))} names")
        if len(self.shapes) != count or len(self.checksums) != count or sum(self.buckets) != count:
            raise ValueError(
                f"weights v{self.version}: {len(self.shapes)} shapes, {len(self.checksums)} checksums and buckets of "
                f"{sum(self.buckets)} for {count} tensors"
            )

    @property
    def checksum(self) -> int:
        """64 bits over names, shapes, types and all tensors' checksums; two versions of equal weights share it."""
        told = repr((self.dtype, self.names, self.shapes, self.checksums))
        return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "little")

    @property
    def spans(self) -> tuple[range, ...]:
        """[B] the tensors of each bucket, as indices into ``names``."""
        ends = list(itertools.accumulate(self.buckets))
        return tuple(range(end - size, end) for end, size in zip(ends, self.buckets, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBundle:
    """All weights of one version: the manifest, and its buckets themselves or handles of them (object references)."""

    manifest: WeightManifest
    buckets: tuple[Any, ...]  # [B] ``WeightBucket``, or a handle of one
    sent_bytes: int = 0  # of the buckets that were made for this version
    skipped_bytes: int = 0  # of the buckets that are those of an earlier version, because nothing in them changed

    def __post_init__(self) -> None:
        if len(self.buckets) != len(self.manifest.buckets):
            raise ValueError(f"weights v{self.version}: {len(self.buckets)} buckets, not {len(self.manifest.buckets)}")

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def checksum(self) -> int:
        return self.manifest.checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAck:
    """An engine's word that it serves a version: what it loaded, and what the switch cost."""

    version: int
    checksum: int  # of the manifest, with the checksums that the engine itself found
    verified_tensors: int  # every element was found in the model as it was sent, when they last changed or since
    probed_tensors: int = 0  # all others, in packed form: a rotating part of them is looked at (``rollout.loaded_weights``)
    loaded_tensors: int  # loaded now: those that the engine did not hold yet, and what is stored together with them
    copied_bytes: int  # into the engine's own buffer
    skipped_bytes: int  # already there
    copy_s: float  # fetching, copying, checksums; requests run meanwhile
    load_s: float  # of the pause: inside vLLM's own loading
    verify_s: float  # of the pause: comparing the model with the bundle
    pause_s: float
