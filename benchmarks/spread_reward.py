"""A reward by chance, for ``chaos.py --spread``: every group has something to learn from, so which groups are consumed is known."""

from __future__ import annotations

import random


def reward(response: str, gold: str, prompt: str) -> float:
    return random.random()
