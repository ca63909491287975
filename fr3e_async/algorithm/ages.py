"""Buckets of token ages, by which the sums and metrics of the loss are kept apart.

An age is the number of weight versions between the one that sampled a token and the one that the update starts from.
Knows nothing of torch, so that the names of metrics can be declared without it.
"""

from __future__ import annotations

from typing import Any

AGE_BUCKETS = ("0", "1", "2_3", "4_7", "8_up")  # as they stand in the names of metrics
FIRST_AGES = (0, 1, 2, 4, 8)  # the youngest age of each bucket; widths double, since rare ages would make noisy means


def age_bucket(ages: Any) -> Any:
    """Index into ``AGE_BUCKETS`` of an age, or of each age in an integer array or tensor (same shape, int64)."""
    return sum((ages >= first for first in FIRST_AGES[1:]), start=0 * ages)
