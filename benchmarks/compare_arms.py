"""What is compared: the arms as settings, the two tasks, and what all of them have in common. Names and settings only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A method as settings over those that all arms share."""

    settings: tuple[str, ...] = ()
    flat: bool = False  # it does not branch: both engines sample whole rollouts
    equal_tokens: bool = False  # a prompt costs what one cost the arm ``REFERENCE`` on the same task and seed
    meaning: str


REFERENCE = "fr3e"
ARMS = {
    "fr3e": Arm(meaning="4 bases, 3 entropy anchors x 4 branches, alpha on (the paper's preset)"),
    "fr3e, alpha off": Arm(settings=("algorithm.alpha=false",), meaning="the same with plain advantages"),
    "fr3e, surprisal": Arm(
        settings=("algorithm.anchor_rule=surprisal",), meaning="anchors at unlikely tokens (the released code)"
    ),
    "fr3e, random": Arm(settings=("algorithm.anchor_rule=random",), meaning="anchors at random places"),
    "fr3e, uniform": Arm(settings=("algorithm.anchor_rule=uniform",), meaning="anchors evenly spaced"),
    "fr3e, newline": Arm(settings=("algorithm.anchor_rule=newline",), meaning="anchors where lines begin"),
    "grpo_pp, G=16": Arm(
        settings=("algorithm.strategy=grpo_pp", "algorithm.bases=16"),
        flat=True,
        meaning="16 rollouts a prompt, rejection, Clip-Higher",
    ),
    "grpo_pp, G=4": Arm(
        settings=("algorithm.strategy=grpo_pp", "algorithm.bases=4", "flow.groups_per_step=128"),
        flat=True,
        meaning="4 rollouts a prompt (the paper's baseline), four times as many prompts in a batch",
    ),
    "grpo_pp, equal tokens": Arm(
        settings=("algorithm.strategy=grpo_pp", "algorithm.bases=11"),
        flat=True,
        equal_tokens=True,
        meaning="as many rollouts a prompt as cost what a prompt costs fr3e",
    ),
    "grpo": Arm(
        settings=("algorithm.strategy=grpo", "algorithm.bases=16", "loss.clip_low=0.2", "loss.clip_high=0.2"),
        flat=True,
        meaning="16 rollouts a prompt, no rejection, clip 0.2 / 0.2",
    ),
    "rloo": Arm(
        settings=("algorithm.strategy=rloo", "algorithm.bases=16"),
        flat=True,
        meaning="16 rollouts, leave-one-out mean, rejection, Clip-Higher",
    ),
    "vineppo": Arm(
        settings=("algorithm.strategy=vineppo",), meaning="Monte-Carlo values at line ends of one trunk, which alone is trained"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    config: str
    tokens: int  # generated, of a run: the budget that all arms share
    every: int  # generated tokens between two evaluations
    title: str


TASKS = {
    "steps": Task(config="toy", tokens=160_000, every=20_000, title="arithmetic with slips"),
    "forks": Task(config="forks", tokens=240_000, every=30_000, title="arithmetic with rare turns"),
}
FOREIGN = 0.1  # cores that others may take of the machine before a run's seconds are not compared
STAGE = ("pools.flexible_roles=true",)  # settings of what is started once for all arms of a seed
COMMON = (
    "run.steps=100000",  # the budget ends a run
    "run.checkpoint_every=0",
    "evaluation.problems=128",
    "evaluation.samples=4",
    "observe.trees_per_step=8",
    "observe.journal=false",
    "observe.tensorboard=false",
    "observe.prometheus=false",
)
FLAT = ("generators.count=2", "explorers.count=0")
QUICK_ARMS = ("fr3e", "grpo_pp, equal tokens")
QUICK = ("toy.warm_start_steps=30", "toy.train_problems=512", "toy.heldout_problems=64", "flow.groups_per_step=8",
         "flow.max_rejected_in_a_row=100000", "evaluation.problems=16", "evaluation.samples=2")  # fmt: skip
QUICK_TOKENS = 18_000
# Raised with any change of code or of defaults that changes what a run does or what its row says: older rows are then passed over.
PROTOCOL = 2
