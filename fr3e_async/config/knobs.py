"""What a setting is made of: a default, a meaning, a unit; and the one way to refuse a value."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from fr3e_async.errors import ConfigError


def knob(default: Any, meaning: str, unit: str = "") -> Any:
    """A field with its ``--help`` text. A list or dict default is copied for each instance."""
    metadata = {"help": meaning, "unit": unit}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, meaning: str) -> Any:
    return field(default_factory=cls, metadata={"help": meaning, "unit": ""})


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless the condition holds. The message starts with the setting's path."""
    if not condition:
        raise ConfigError(message)


def require_positive(path: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{path}.{name} must be positive, got {value}")


def require_at_least_0(path: str, **values: float) -> None:
    for name, value in values.items():
        require(value >= 0, f"{path}.{name} must not be negative, got {value}")
