"""Settings of the method: how rollouts are drawn, how groups are built and credited, what is optimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    temperature: float = knob(1.0, "softmax temperature of training rollouts")
    top_p: float = knob(1.0, "nucleus mass; below 1 the importance correction must be off")
    top_k: int = knob(0, "keep only the k likeliest tokens; 0: off; otherwise the importance correction must be off")
    max_response: int = knob(1024, "longest response, and prefix + continuation of a branch", "tokens")
    stop: list[str] = knob([], "texts that end a response as an end token does, and stay in it; what stands behind is not judged")
    reproducible: bool = knob(
        False,
        "a seed for each rollout, from run.seed and its id: the same tokens whatever runs beside it, as far as the engine's "
        "arithmetic allows; slower",
    )

    def __post_init__(self) -> None:
        require_positive("sampling", temperature=self.temperature, max_response=self.max_response)
        require(0 < self.top_p <= 1, f"sampling.top_p must be in (0, 1], got {self.top_p}")
        require_at_least_0("sampling", top_k=self.top_k)
        require(all(self.stop), "sampling.stop: an empty text would end every response at once")

    @property
    def filtered(self) -> bool:
        """True if the sampler renormalises a truncated distribution, which biases importance ratios."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def plain(self) -> bool:
        """True if what is sampled is the model's own distribution."""
        return self.temperature == 1 and not self.filtered


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    strategy: str = knob("fr3e", "how groups are built and credited")
    bases: int = knob(4, "N: base trajectories of a prompt; for the flat strategies the whole group (G)")
    anchors: int = knob(3, "K: most anchors of a trunk (branching strategies)")
    branches: int = knob(4, "M: continuations of each anchor (branching strategies)")
    adaptive_first: int = knob(
        0,
        "continuations that each anchor gets at first; what is left of a trunk's anchors x branches goes to those anchors whose "
        "first rewards differ, and to none if there are none (fr3e); V is then of the first ones; 0: all branches at once",
        "rollouts",
    )
    anchor_rule: Literal["auto", "entropy", "surprisal", "random", "uniform", "newline"] = knob(
        "auto", "what picks the anchors; auto: the strategy's own rule, entropy for fr3e and newline for vineppo"
    )
    entropy_of: Literal["sampling", "raw"] = knob(
        "sampling", "distribution that entropy and surprisal are of: the one sampled from, or the model's at temperature 1"
    )
    min_gap: int = knob(8, "least distance between two anchors of a trunk", "tokens")
    trunk: Literal["first", "random", "all", "one_right_one_wrong"] = knob(
        "first",
        "which bases are trunks: the first, a random one, every one, or the first right and the first wrong one; the last "
        "picks states by their reward, and branching waits for the verdicts",
    )
    include_trunk: bool = knob(False, "count the trunk's own continuation as a member of each of its anchors' groups")
    train_bases: bool = knob(True, "train the bases as the group of the prompt; off: they only give its value (fr3e)")
    alpha: bool = knob(True, "scale advantages by alpha_j = exp(-(V(S_j) - V(S_j-1)))")
    alpha_shrink: bool = knob(False, "shrink V(S_j) - V(S_j-1) by its standard error before alpha")
    std_normalise: Literal["auto", "true", "false"] = knob(
        "auto",
        "divide advantages by the group's standard deviation + 1e-6 (fr3e, grpo, grpo_pp); auto: as the method's paper has it: "
        "grpo and grpo_pp do, fr3e does not",
    )

    def __post_init__(self) -> None:
        require(self.bases >= 2, f"algorithm.bases must be at least 2 (one rollout has no advantage), got {self.bases}")
        require_at_least_0("algorithm", anchors=self.anchors)
        require_positive("algorithm", min_gap=self.min_gap)
        least = 1 if self.include_trunk else 2
        require(self.branches >= least, f"algorithm.branches must be at least {least}, got {self.branches}")
        require(
            self.adaptive_first == 0 or 2 <= self.adaptive_first < self.branches,
            f"algorithm.adaptive_first must be 0 (off), or at least 2 and below algorithm.branches={self.branches}, "
            f"got {self.adaptive_first}",
        )
        require(
            not (self.include_trunk and self.trunk == "one_right_one_wrong"),
            "algorithm.include_trunk with algorithm.trunk=one_right_one_wrong: a trunk picked by its reward would bias V",
        )

    def normalises(self, *, by_default: bool) -> bool:
        """Whether advantages are divided; ``by_default``: what "auto" stands for."""
        return by_default if self.std_normalise == "auto" else self.std_normalise == "true"


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    tokens: int = knob(
        0,
        "the run is finished, whatever run.steps says, once the groups that have settled cost so many generated tokens; 0: no limit",
        "tokens",
    )
    tokens_per_prompt: int = knob(
        0,
        "generated tokens that a prompt may cost on average; group sizes follow it (algorithm.branches of a branching strategy, "
        "else algorithm.bases), so that strategies compare at equal tokens; 0: sizes as configured",
        "tokens",
    )

    def __post_init__(self) -> None:
        require_at_least_0("budget", tokens=self.tokens, tokens_per_prompt=self.tokens_per_prompt)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    objective: Literal["clip", "gspo", "cispo"] = knob(
        "clip",
        "what is maximised: the clipped surrogate of each token (PPO, GRPO, Clip-Higher); gspo: of the completion's ratio; cispo: "
        "the log-prob times a clipped, constant ratio",
    )
    mean: Literal["token", "sequence", "constant"] = knob(
        "token", "mean of the loss: every token weighs the same, every completion does, or mean_length tokens do (Dr.GRPO)"
    )
    mean_length: int = knob(
        0, "with loss.mean=constant: what the loss of a completion is divided by; sampling.max_response in Dr.GRPO", "tokens"
    )
    clip_low: float = knob(0.22, "epsilon_low of the objective's clipping; 1: no lower bound, as in CISPO")
    clip_high: float = knob(0.28, "epsilon_high of the objective's clipping")
    dual_clip: float = knob(0.0, "c of dual clip, for negative advantages; 0: off")
    prox: Literal["recompute", "behaviour"] = knob(
        "recompute", "proximal policy: recomputed before the update, or the sampler's own log-probs"
    )
    importance: Literal["truncate", "mask", "off"] = knob(
        "truncate",
        "weight exp(log prox - log behaviour): cut at importance_cap, zeroed outside of [importance_floor, importance_cap], or 1",
    )
    importance_cap: float = knob(2.0, "c_is: largest importance weight, at least 1")
    importance_floor: float = knob(
        0.0,
        "with importance=mask: smallest importance weight, below 1; a positive one makes the mask double-sided (IcePop); 0: off",
    )
    sequence_mask: float = knob(
        0.0,
        "x > 1: a completion whose geometric mean of exp(log prox - log behaviour) lies outside of [1/x, x] gets weight 0; 0: off",
    )
    kl_coef: float = knob(0.0, "weight of the k3 estimate of KL(current || proximal) per token")
    entropy_coef: float = knob(0.0, "weight of the entropy bonus per token")

    def __post_init__(self) -> None:
        require(0 < self.clip_low <= 1, f"loss.clip_low must be in (0, 1], got {self.clip_low}")
        require_at_least_0("loss", mean_length=self.mean_length)
        require(
            self.mean != "constant" or self.mean_length > 0,
            "loss.mean=constant needs loss.mean_length, the tokens that every completion counts as; set it to sampling.max_response",
        )
        require_positive("loss", clip_high=self.clip_high)
        require(self.dual_clip == 0 or self.dual_clip > 1, f"loss.dual_clip must be 0 (off) or above 1, got {self.dual_clip}")
        require_at_least_0("loss", kl_coef=self.kl_coef, entropy_coef=self.entropy_coef)
        self._check_importance()

    @property
    def uses_behaviour(self) -> bool:
        """True if the sampler's log-probs have a part in the loss."""
        return self.importance != "off" or self.prox == "behaviour" or self.sequence_mask > 0

    def _check_importance(self) -> None:
        # Bounds that hold 1 between them: on fresh tokens every switch must give the same update.
        require(self.importance_cap >= 1, f"loss.importance_cap must be at least 1, got {self.importance_cap}")
        require(0 <= self.importance_floor < 1, f"loss.importance_floor must be in [0, 1), got {self.importance_floor}")
        require(
            self.sequence_mask == 0 or self.sequence_mask > 1,
            f"loss.sequence_mask must be 0 (off) or above 1, got {self.sequence_mask}",
        )
        require(
            self.importance_floor == 0 or self.importance == "mask",
            f"loss.importance_floor={self.importance_floor} with loss.importance={self.importance} would do nothing; "
            "set loss.importance=mask or loss.importance_floor=0",
        )
        for name in ("importance_floor", "sequence_mask"):
            require(
                getattr(self, name) == 0 or self.prox == "recompute",
                f"loss.{name}={getattr(self, name)} with loss.prox={self.prox} would do nothing, for every importance weight is 1; "
                f"set loss.prox=recompute or loss.{name}=0",
            )


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    groups_per_step: int = knob(32, "prompt groups in one training batch", "groups")
    max_staleness: int = knob(1, "most weight versions that a token may be old when trained; 0: synchronous", "versions")
    order: Literal["admission", "window"] = knob(
        "admission",
        "which groups make a batch: the oldest ones; or ready ones out of the oldest groups_per_step + window, as long as all "
        "others can still be trained within max_staleness",
    )
    window: int = knob(0, "groups beyond a batch that may overtake older ones (flow.order=window)", "groups")
    lease_s: float = knob(120.0, "time an actor has for one task before it is given to another", "s")
    max_attempts: int = knob(3, "attempts at one rollout before it is given up and counted as failed")
    retry_backoff_s: float = knob(0.2, "wait before a second attempt; doubled for each further one", "s")
    max_rejected_in_a_row: int = knob(1000, "degenerate groups in a row before the run stops as starved", "groups")

    def __post_init__(self) -> None:
        require_positive(
            "flow", groups_per_step=self.groups_per_step, lease_s=self.lease_s,
            max_attempts=self.max_attempts, max_rejected_in_a_row=self.max_rejected_in_a_row,
        )  # fmt: skip
        require_at_least_0(
            "flow", max_staleness=self.max_staleness, window=self.window, retry_backoff_s=self.retry_backoff_s
        )  # fmt: skip
        require(
            (self.order == "window") == (self.window > 0),
            f"flow.window={self.window} with flow.order={self.order}: a window needs flow.order=window and at least 1 group",
        )

    @property
    def capacity(self) -> int:
        """(max_staleness + 1) · groups_per_step: groups alive at once so that no token is older than the bound when trained."""
        return (self.max_staleness + 1) * self.groups_per_step
