"""Judging answers: what counts as the answer of a response, and math-verify behind killable processes.

Only this package imports math_verify, and only ``judge`` does. ``VerifierPool`` is loaded when asked for: a worker process,
which starts inside this package too, must carry neither numpy nor our types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fr3e_async.verify.pool import VerifierPool

__all__ = ["VerifierPool"]


def __getattr__(name: str) -> Any:
    if name == "VerifierPool":
        from fr3e_async.verify.pool import VerifierPool

        return VerifierPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
