"""Starts the real engine in this process without anyone importing vLLM before it is needed."""

from __future__ import annotations

import gc

from fr3e_async.errors import UserError
from fr3e_async.rollout.install import check_installed
from fr3e_async.rollout.port import Engine, EngineSpec


async def start_engine(spec: EngineSpec) -> Engine:
    """A ``VllmEngine`` that serves the spec's model. The process needs ``engine_environment(spec)`` from its start.

    Raises ``UserError`` if there is no vLLM, or one that the engine was not written for.
    """
    version = check_installed(spec.entropy)
    collecting = gc.isenabled()
    gc.disable()  # nothing to collect while some 5,000 modules are imported: saves a fifth of the import's CPU time
    try:
        from fr3e_async.rollout.vllm_engine import VllmEngine
    except ImportError as error:
        raise UserError(f"vLLM {version} does not offer what the engine needs of it: {error}") from error
    finally:
        if collecting:
            gc.enable()
    return await VllmEngine.start(spec)
