"""Sizes of pools: what is refused, with the setting's name."""

from __future__ import annotations

import pytest
from builders import small_config

from fr3e_async.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        (
            "generators",
            {"count": 2, "min": 3},
            r"generators\.count must be from generators\.min to generators\.max, got 2 with min 3",
        ),
        ("explorers", {"count": 2, "max": 1}, r"explorers\.count must be from explorers\.min"),
        ("verifiers", {"count": 2, "min": -1}, r"verifiers\.min must be at least 0, got -1"),
        ("pools", {"busy_target": 0.0}, r"pools\.busy_target must be in \(0, 1\]"),
        ("pools", {"shrink_after_s": 0.0}, r"pools\.shrink_after_s must be positive"),
        ("generators", {"cpus": 0.0}, r"generators\.cpus, generators\.gpus and generators\.resources are all 0"),
        ("learner", {"cpus": 0.0}, r"learner\.cpus, learner\.gpus and learner\.resources are all 0"),
        ("ray", {"room_timeout_s": 0.0}, r"ray\.room_timeout_s must be positive"),
    ],
)
def test_what_cannot_be_is_refused(section, fields, words):
    with pytest.raises(ConfigError, match=words):
        small_config(**{section: fields})


def test_a_group_of_fixed_members_needs_fixed_pools():
    with pytest.raises(
        ConfigError, match=r"weights\.transfer=collective with explorers that come and go \(explorers\.min, \.max\)"
    ):
        small_config(weights={"transfer": "collective"}, explorers={"count": 1, "max": 2})


def test_0_means_count():
    pool = small_config(generators={"count": 3, "max": 5}).generators
    assert (pool.least, pool.count, pool.most, pool.elastic) == (3, 3, 5, True)
    assert not small_config().generators.elastic
