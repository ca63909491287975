"""What trackers are given, as flat numbers and texts: settings, evaluations, the result. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NO_METRIC = ("label", "version")  # of an evaluation: words, and the step itself


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted path → value as text; settings of settings that are mappings or lists are JSON.

    *Example*: ``{"run": {"seed": 0, "dir": ""}}`` → ``{"run.seed": "0", "run.dir": '""'}``
    """
    flat: dict[str, str] = {}
    for section, value in settings.items():
        inside = value if isinstance(value, Mapping) else None
        for path, item in ((f"{section}.{name}", item) for name, item in inside.items()) if inside else ((section, value),):
            flat[path] = item if isinstance(item, str) and item else json.dumps(item, sort_keys=True)
    return flat


def measured_values(record: Mapping[str, Any]) -> dict[str, float]:
    """An entry of the summary's ``evaluations`` as metrics ``eval/…``, or ``eval/<benchmark>/…`` where it names one.

    *Example*: ``{"label": "after", "version": 8, "accuracy": 0.5, "maj": {"value": 0.6, "low": 0.4}}`` →
    ``{"eval/accuracy": 0.5, "eval/maj": 0.6, "eval/maj/low": 0.4}``
    """
    named = record.get("benchmark")
    prefix = f"eval/{named}" if isinstance(named, str) and named else "eval"
    return dict(_numbers({name: value for name, value in record.items() if name not in _NO_METRIC}, prefix))


def summary_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``summary.json``, less its list of evaluations, as ``summary/…``."""
    return dict(_numbers({name: value for name, value in summary.items() if name != "evaluations"}, "summary"))


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        path = prefix if name == "value" else f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _numbers(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)
