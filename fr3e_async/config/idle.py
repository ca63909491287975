"""Find settings that have no effect given the others. They are refused, since whoever sets one expects an effect.

Only what was given is refused (``loader`` knows); a default, or a shipped file that others are laid over, may be idle. What a
strategy reads of ``algorithm`` is said where strategies are (``algorithm.strategies.unread``).
"""

from collections.abc import Iterator
from typing import Any

from fr3e_async.config import Config
from fr3e_async.config.reward import MATH

# Values that ask for nothing: they stay correct beside a setting that switches them off.
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("algorithm.anchors", "algorithm.adaptive_first", "evaluation.problems"), (0,)),
    **dict.fromkeys(("evaluation.every", "evaluation.every_tokens"), (0,)),
    **dict.fromkeys(("algorithm.include_trunk", "algorithm.alpha", "algorithm.alpha_shrink"), (False,)),
    **dict.fromkeys(("evaluation.before", "verifiers.exact_integers"), (False,)),
    **dict.fromkeys(("algorithm.anchor_rule", "learner.tree_attention"), ("auto",)),
    **dict.fromkeys(("data.train_sources", "data.heldout_sources"), ([],)),
    "algorithm.std_normalise": ("auto", "false"),
    "algorithm.overlong_filter": (False,),
    "algorithm.overlong_cache": (0,),
    "loss.importance": ("off",),
    "loss.mean_length": (0,),
    "loss.reference_reset": (0,),
    "loss.dual_clip": (0.0,),
    "evaluation.paths": ({},),
    "learner.lr_min_ratio": (0.0,),
    "run.keep_best": (False,),
}


def idle_settings(config: Config) -> Iterator[tuple[str, str]]:
    """(setting, why it does nothing), whatever its value is. A name that ends in a dot is a whole section."""
    for idle, why, paths in _rules(config):
        yield from ((path, why) for path in paths if idle)


def _rules(config: Config) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    loss, data, words = config.loss, config.data, ("toy", "sources", "")
    yield loss.importance == "off", "loss.importance=off", ("loss.importance_cap",)
    yield loss.mean != "constant", f"loss.mean={loss.mean}", ("loss.mean_length",)
    yield config.learner.lr_schedule == "constant", "learner.lr_schedule=constant", ("learner.lr_min_ratio",)
    yield not data.heldout, "an empty data.heldout", ("run.keep_best",)
    never = not (config.evaluation.every or config.evaluation.every_tokens)
    yield never, "evaluation.every=0 and evaluation.every_tokens=0", ("run.keep_best",)
    reference = ("loss.reference_kl", "loss.reference_in", "loss.reference_reset")
    yield not loss.reference_coef, "loss.reference_coef=0", reference
    yield loss.objective == "cispo", "loss.objective=cispo", ("loss.dual_clip",)
    weightless = ("loss.importance", "loss.importance_cap")
    yield loss.prox == "behaviour", "loss.prox=behaviour, with which every importance weight is 1", weightless
    yield not config.algorithm.alpha, "algorithm.alpha=false", ("algorithm.alpha_shrink",)
    yield config.engine.entropy != "topk", f"engine.entropy={config.engine.entropy}", ("engine.entropy_top_k",)
    yield config.weights.update != "wait_idle", f"weights.update={config.weights.update}", ("weights.idle_timeout_s",)
    other = "learner.attention" if config.learner.packing == "tree" else "learner.tree_attention"
    yield True, f"learner.packing={config.learner.packing}", (other,)
    yield from _rules_of_pools(config)
    yield from _rules_of_evaluation(config)
    yield data.on_near_copy == "off", "data.on_near_copy=off", ("data.near_copy_words", "data.near_copy_share")
    for name, word in (("train", data.train), ("heldout", data.heldout)):
        yield word != "sources", f"data.{name}={word}", (f"data.{name}_sources",)
    columns = ("data.problem_field", "data.answer_field", "data.id_field")
    yield {data.train, data.heldout} <= {*words}, f"data.train={data.train} and data.heldout={data.heldout}", columns
    toyless = "toy" not in (data.train, data.heldout, config.model.path)
    yield toyless, "model.path, data.train and data.heldout, none of which is toy", ("toy.",)


def _rules_of_pools(config: Config) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    fixed = not any(pool.elastic for pool in (config.generators, config.explorers, config.verifiers))
    names = ("grow_after_s", "shrink_after_s", "busy_target")
    yield fixed, "pools whose min and max are their count", tuple(f"pools.{name}" for name in names)
    judge = ("exact_integers", "max_answer_chars", "unfinished", "units", "percent", "decimal_digits")
    functions = [term.function for term in config.reward_terms]
    yield MATH not in functions, f"reward={', '.join(functions)}", tuple(f"verifiers.{name}" for name in judge)


def _rules_of_evaluation(config: Config) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    heldout, suite = config.data.heldout, config.evaluation.suite
    for idle, why, names in (
        (not (heldout or suite), "an empty data.heldout and evaluation.suite", "every every_tokens before temperature top_p"),
        (not heldout, "an empty data.heldout", "problems samples"),
        (not suite, "an empty evaluation.suite", "paths suite_samples suite_problems share results_mib"),
    ):
        yield idle, why, tuple(f"evaluation.{name}" for name in names.split())
