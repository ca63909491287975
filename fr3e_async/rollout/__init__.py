"""Rollout engines behind one port. The only package that touches vLLM, and only in the modules that need it."""

from fr3e_async.rollout.install import check_installed, engine_environment, start_engine
from fr3e_async.rollout.port import Engine, EngineDead, EngineSpec, EngineStats, SampleRequest, WeightsRefused

__all__ = [
    "Engine",
    "EngineDead",
    "EngineSpec",
    "EngineStats",
    "SampleRequest",
    "WeightsRefused",
    "check_installed",
    "engine_environment",
    "start_engine",
]
