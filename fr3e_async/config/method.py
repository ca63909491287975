"""Settings of the method: how rollouts are drawn, how groups are built and credited, what is optimised."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fr3e_async.config.knobs import PartOr0, Share, knob, require, settings


@settings("sampling")
class SamplingConfig:
    temperature: PositiveFloat = knob(1.0, "softmax temperature of training rollouts")
    top_p: Share = knob(1.0, "nucleus mass; below 1 the importance correction must be off")
    top_k: NonNegativeInt = knob(0, "keep only the k likeliest tokens; the importance correction must be off then; 0: keep all")
    max_response: PositiveInt = knob(1024, "longest response, and prefix + continuation of a branch", "tokens")
    stop: list[str] = knob([], "texts that end a response and stay in it; what follows them is not judged")
    reproducible: bool = knob(False, "seed each rollout by run.seed and its id: its tokens depend on nothing beside it; slower")

    def __post_init__(self) -> None:
        require(all(self.stop), "sampling.stop: an empty text would end every response at once")

    @property
    def filtered(self) -> bool:
        """True if the sampler renormalises a truncated distribution, which biases importance ratios."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def plain(self) -> bool:
        """True if rollouts are sampled from the model's own distribution."""
        return self.temperature == 1 and not self.filtered


@settings("algorithm")
class AlgorithmConfig:
    strategy: str = knob("fr3e", "how groups are built and credited")
    bases: Annotated[int, Field(ge=2)] = knob(4, "N: base trajectories of a prompt, the whole group (G) of flat strategies")
    anchors: NonNegativeInt = knob(3, "K: most anchors of a trunk (branching strategies)")
    branches: int = knob(4, "M: continuations of each anchor (branching strategies)")
    adaptive_first: int = knob(
        0, "continuations that each anchor gets first; anchors whose rewards differ get the rest (fr3e); 0: all", "rollouts"
    )
    anchor_rule: Literal["auto", "entropy", "surprisal", "random", "uniform", "newline"] = knob(
        "auto", "what picks the anchors; auto: the strategy's own rule, entropy for fr3e and newline for vineppo"
    )
    entropy_of: Literal["sampling", "raw"] = knob(
        "sampling", "entropy and surprisal of the distribution sampled from; raw: of the model's"
    )
    min_gap: PositiveInt = knob(8, "least distance between two anchors of a trunk", "tokens")
    trunk: Literal["first", "random", "all", "one_correct_one_wrong"] = knob(
        "first", "bases that are trunks; one_correct_one_wrong: picked by reward, so branching waits for the verdicts"
    )
    include_trunk: bool = knob(False, "count the trunk's own continuation as a member of each of its anchors' groups")
    train_bases: bool = knob(True, "train the bases as the group of the prompt; off: they only give its value (fr3e)")
    alpha: bool = knob(True, "scale advantages by alpha_j = exp(-(V(S_j) - V(S_j-1)))")
    alpha_shrink: bool = knob(False, "shrink V(S_j) - V(S_j-1) by its standard error before alpha")
    overlong_filter: bool = knob(False, "leave rollouts out of training that sampling.max_response cut off; baselines count them")
    overlong_cache: NonNegativeInt = knob(
        0,
        "the last tokens of sampling.max_response, over which a response's reward falls by up to half its range (DAPO); 0: off",
        "tokens",
    )
    credit_weights: Literal["path", "fr3e"] = knob(
        "path", "tree_credit: weights that make a group's update exact; fr3e: 1 for all (experimental)"
    )
    std_normalise: Literal["auto", "true", "false"] = knob(
        "auto", "divide advantages by the group's standard deviation + 1e-6; auto: for grpo and grpo_pp, not for fr3e"
    )

    def __post_init__(self) -> None:
        least = 1 if self.include_trunk else 2
        require(self.branches >= least, f"algorithm.branches must be at least {least}, got {self.branches}")
        require(
            self.adaptive_first == 0 or 2 <= self.adaptive_first < self.branches,
            f"algorithm.adaptive_first must be 0 (off), or at least 2 and below algorithm.branches={self.branches}, "
            f"got {self.adaptive_first}",
        )
        require(
            not (self.include_trunk and self.trunk == "one_correct_one_wrong"),
            "algorithm.include_trunk with algorithm.trunk=one_correct_one_wrong: a trunk picked by its reward would bias V",
        )

    def normalises(self, *, by_default: bool) -> bool:
        """Whether advantages are divided; ``by_default``: what "auto" stands for."""
        return by_default if self.std_normalise == "auto" else self.std_normalise == "true"


@settings("budget")
class BudgetConfig:
    tokens: NonNegativeInt = knob(
        0, "the run ends when settled groups have cost this many generated tokens; 0: no limit", "tokens"
    )
    tokens_per_prompt: NonNegativeInt = knob(
        0, "mean generated tokens of a prompt; group sizes follow, so that strategies compare; 0: as configured", "tokens"
    )


@settings("loss")
class LossConfig:
    objective: Literal["clip", "gspo", "cispo"] = knob(
        "clip",
        "what is maximised: the clipped surrogate of each token (PPO, GRPO, Clip-Higher); gspo: of the completion's ratio; cispo: "
        "the log-prob times a clipped, constant ratio",
    )
    mean: Literal["token", "sequence", "constant"] = knob(
        "token", "mean of the loss: every token weighs the same, every completion does, or mean_length tokens do (Dr.GRPO)"
    )
    mean_length: NonNegativeInt = knob(
        0, "with loss.mean=constant: what the loss of a completion is divided by; sampling.max_response in Dr.GRPO", "tokens"
    )
    clip_low: Share = knob(0.22, "epsilon_low of the objective's clipping; 1: no lower bound, as in CISPO")
    clip_high: PositiveFloat = knob(0.28, "epsilon_high of the objective's clipping")
    dual_clip: float = knob(0.0, "c of dual clip, for negative advantages; 0: off")
    prox: Literal["recompute", "behaviour"] = knob("recompute", "proximal policy: recomputed, or the sampler's own log-probs")
    importance: Literal["truncate", "mask", "off"] = knob(
        "truncate", "weight exp(log prox - log behaviour): cut at importance_cap, or zeroed outside of the floor and cap, or 1"
    )
    importance_cap: Annotated[float, Field(ge=1)] = knob(2.0, "c_is: largest importance weight")
    importance_floor: PartOr0 = knob(0.0, "smallest importance weight of importance=mask; above 0: IcePop")
    sequence_mask: float = knob(
        0.0, "x > 1: a completion whose mean importance (geometric) is outside of [1/x, x] gets weight 0; 0: off"
    )
    kl_coef: NonNegativeFloat = knob(0.0, "weight of the k3 estimate of KL(current || proximal) per token")
    entropy_coef: NonNegativeFloat = knob(0.0, "weight of the entropy bonus per token")
    reference_coef: NonNegativeFloat = knob(
        0.0, "beta: weight of KL(current || reference); the reference is a frozen copy of the first weights; 0: there is none"
    )
    reference_kl: Literal["k1", "k2", "k3"] = knob(
        "k3", "estimate of this KL at a token, with x = log reference - log current; k1: -x, k2: x^2 / 2, k3: e^x - 1 - x"
    )
    reference_in: Literal["loss", "token_reward", "sequence_reward"] = knob(
        "loss",
        "where it counts; loss: each token; token_reward: A of a token loses that of the completion from this token on; "
        "sequence_reward: that of the whole completion",
    )
    reference_reset: NonNegativeInt = knob(
        0, "batches after which the reference takes the current weights, each time; 0: never", "batches"
    )

    def __post_init__(self) -> None:
        require(
            self.mean != "constant" or self.mean_length > 0,
            "loss.mean=constant needs loss.mean_length, the tokens that every completion counts as; set it to sampling.max_response",
        )
        for name in ("dual_clip", "sequence_mask"):
            value = getattr(self, name)
            require(value == 0 or value > 1, f"loss.{name} must be 0 (off) or above 1, got {value}")
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

    @property
    def uses_behaviour(self) -> bool:
        """True if the loss uses the sampler's log-probs."""
        return self.importance != "off" or self.prox == "behaviour" or self.sequence_mask > 0


@settings("critic")
class CriticConfig:
    lr: PositiveFloat = knob(2e-6, "AdamW learning rate of the critic; all else is as in learner (experimental)")
    grad_clip: NonNegativeFloat = knob(1.0, "largest global gradient norm of the critic; 0: off (experimental)")
    policy_lambda: Annotated[float, Field(ge=0, le=1)] = knob(
        0.95, "lambda of GAE for the policy's advantages (ppo; experimental)"
    )
    value_lambda: Annotated[float, Field(ge=0, le=1)] = knob(
        1.0, "lambda of GAE for what values are trained towards; 1: the reward (experimental)"
    )
    length_alpha: NonNegativeFloat = knob(
        0.05, "lambda of the policy is 1 - 1 / (length_alpha * length), at least 0 (vapo; experimental)"
    )
    positive_coef: NonNegativeFloat = knob(
        0.1, "weight of the log-likelihood of correct responses in the loss (vapo; experimental)"
    )
    value_clip: NonNegativeFloat = knob(
        0.2, "a value that has moved by more in an update is not drawn on; 0: no bound (experimental)"
    )
    pretrain_batches: NonNegativeInt = knob(
        0, "batches at the beginning of a run that train the critic alone (experimental)", "batches"
    )


@settings("flow")
class FlowConfig:
    groups_per_step: PositiveInt = knob(32, "prompt groups in one training batch", "groups")
    max_staleness: NonNegativeInt = knob(1, "most weight versions that a trained token may be old; 0: synchronous", "versions")
    order: Literal["admission", "window"] = knob(
        "admission", "a batch is the oldest groups; window: ready ones among them and flow.window more, within max_staleness"
    )
    window: NonNegativeInt = knob(0, "groups beyond a batch that may overtake older ones (flow.order=window)", "groups")
    lease_s: PositiveFloat = knob(120.0, "time an actor has for one task before another actor gets it")
    max_attempts: PositiveInt = knob(3, "attempts at one rollout before it counts as failed")
    retry_backoff_s: NonNegativeFloat = knob(0.2, "wait before a second attempt; doubles for each further one")
    max_rejected_in_a_row: PositiveInt = knob(1000, "degenerate groups in a row before the run stops as starved", "groups")

    def __post_init__(self) -> None:
        require(
            (self.order == "window") == (self.window > 0),
            f"flow.window={self.window} with flow.order={self.order}: a window needs flow.order=window and at least 1 group",
        )

    @property
    def capacity(self) -> int:
        """(max_staleness + 1) · groups_per_step: groups alive at once so that no token is older than the bound when trained."""
        return (self.max_staleness + 1) * self.groups_per_step
