"""Settings that do nothing beside the others: a person who gave one believes in an effect that it does not have.

Only what was given is refused (``loader`` knows); a default, or a shipped file that others are laid over, may be idle. What a
strategy reads of ``algorithm`` is said where strategies are (``algorithm.strategies.unread``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fr3e_async.config import Config

# Values that ask for nothing: said beside a setting that switches them off, they are true all the same.
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "algorithm.anchors": (0,),
    "algorithm.adaptive_first": (0,),
    "algorithm.anchor_rule": ("auto",),
    "algorithm.include_trunk": (False,),
    "algorithm.alpha": (False,),
    "algorithm.alpha_shrink": (False,),
    "algorithm.std_normalise": ("auto", "false"),
    "loss.importance": ("off",),
    "learner.tree_attention": ("auto",),
    "data.train_sources": ([],),
    "data.heldout_sources": ([],),
}


def idle_settings(config: Config) -> Iterator[tuple[str, str]]:
    """(setting, why it does nothing), whatever its value is. A name that ends in a dot is a whole section."""
    for idle, why, paths in _rules(config):
        if idle:
            for path in paths:
                yield path, why


def _rules(config: Config) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    loss, data, words = config.loss, config.data, ("toy", "sources", "")
    yield loss.importance == "off", "loss.importance=off", ("loss.importance_cap",)
    weightless = ("loss.importance", "loss.importance_cap")
    yield loss.prox == "behaviour", "loss.prox=behaviour, with which every importance weight is 1", weightless
    yield not config.algorithm.alpha, "algorithm.alpha=false", ("algorithm.alpha_shrink",)
    yield config.engine.entropy != "topk", f"engine.entropy={config.engine.entropy}", ("engine.entropy_top_k",)
    yield config.weights.update != "wait_idle", f"weights.update={config.weights.update}", ("weights.idle_timeout_s",)
    yield config.learner.packing != "tree", f"learner.packing={config.learner.packing}", ("learner.tree_attention",)
    yield data.on_near_copy == "off", "data.on_near_copy=off", ("data.near_copy_words", "data.near_copy_share")
    for name, word in (("train", data.train), ("heldout", data.heldout)):
        yield word != "sources", f"data.{name}={word}", (f"data.{name}_sources",)
    columns = ("data.problem_field", "data.answer_field", "data.id_field")
    yield {data.train, data.heldout} <= {*words}, f"data.train={data.train} and data.heldout={data.heldout}", columns
    toyless = "toy" not in (data.train, data.heldout, config.model.path)
    yield toyless, "model.path, data.train and data.heldout, none of which is toy", ("toy.",)
