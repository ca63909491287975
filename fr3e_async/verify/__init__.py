"""Judging responses: finding the answer, math-verify or a user's reward in killable processes, and checks of reference answers.

Only this package imports math_verify. ``VerifierPool`` is loaded when asked for: a worker process, which starts inside this
package too, must carry neither numpy nor our types.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fr3e_async.verify.pool import VerifierPool

__all__ = ["VerifierPool"]


def __getattr__(name: str) -> Any:
    if name == "VerifierPool":
        from fr3e_async.verify.pool import VerifierPool

        return VerifierPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
