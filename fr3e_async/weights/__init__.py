"""Versioned weights as one flat, checksummed buffer, and how a buffer reaches another process of the same host."""

from fr3e_async.weights.bundle import checksum, named_tensors, pack_tensors, unpack, verify
from fr3e_async.weights.shared import SharedBuffer, open_shared

__all__ = ["SharedBuffer", "checksum", "named_tensors", "open_shared", "pack_tensors", "unpack", "verify"]
