"""The embedded default: a task of arithmetic in steps and a small model that half knows it.

Importing this package is cheap; torch is loaded only when the model has to be built.
"""

from fr3e_async.data.toy.cache import ensure_toy, toy_path
from fr3e_async.data.toy.task import toy_task

__all__ = ["ensure_toy", "toy_path", "toy_task"]
