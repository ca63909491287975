"""Every knob of the system: frozen dataclasses with meaning, unit and default, checked alone and against each other.

Knows nothing of YAML, files or the command line (that is ``loader``) and nothing of Ray, vLLM or DeepSpeed.
Derived sizes are properties; nothing is ever written back into a config.
"""

from typing import Literal

from fr3e_async.config.actors import EngineConfig, EnginePoolConfig, LearnerConfig, PoolsConfig, VerifierPoolConfig, WeightsConfig
from fr3e_async.config.data import DataConfig, SourceConfig
from fr3e_async.config.evaluation import EvaluationConfig
from fr3e_async.config.knobs import knob, require, section, settings
from fr3e_async.config.method import AlgorithmConfig, BudgetConfig, CriticConfig, FlowConfig, LossConfig, SamplingConfig
from fr3e_async.config.reward import RewardConfig, RewardRange, check_rewards, range_of, reward_terms
from fr3e_async.config.run import ModelConfig, ObserveConfig, RayConfig, RunConfig, ToyConfig, WatchdogConfig


@settings()
class Config:
    """The whole of a run's settings. Cross-field rules live here; each message names the settings it is about."""

    resume: Literal["never", "auto"] = knob(
        "never", "auto: resume from run.dir's newest whole checkpoint; never: run.dir must be new"
    )
    reward: str = knob("math", "what scores a response: 'math' (docs/verifier.md), or package.module:function (docs/rewards.md)")
    rewards: list[RewardConfig] = knob(
        [], "functions in place of reward; weighted numbers are added, the first one decides what is correct"
    )
    run: RunConfig = section(RunConfig, "the run as a whole")
    model: ModelConfig = section(ModelConfig, "the policy")
    data: DataConfig = section(DataConfig, "problems and how they become prompts")
    sampling: SamplingConfig = section(SamplingConfig, "how training rollouts are drawn")
    algorithm: AlgorithmConfig = section(AlgorithmConfig, "groups, anchors and advantages")
    budget: BudgetConfig = section(BudgetConfig, "equal-token comparisons")
    loss: LossConfig = section(LossConfig, "the off-policy Clip-Higher objective")
    critic: CriticConfig = section(CriticConfig, "the value model of strategies that have one")
    flow: FlowConfig = section(FlowConfig, "admission, staleness, leases")
    engine: EngineConfig = section(EngineConfig, "vLLM settings shared by generators and explorers")
    generators: EnginePoolConfig = section(EnginePoolConfig, "actors that sample base trajectories")
    explorers: EnginePoolConfig = section(EnginePoolConfig, "actors that branch from anchors")
    pools: PoolsConfig = section(PoolsConfig, "what the pools of actors have in common")
    verifiers: VerifierPoolConfig = section(VerifierPoolConfig, "actors that judge answers")
    learner: LearnerConfig = section(LearnerConfig, "the DeepSpeed group")
    weights: WeightsConfig = section(WeightsConfig, "hand-over of new weights to the engines")
    evaluation: EvaluationConfig = section(EvaluationConfig, "accuracy on held-out problems")
    observe: ObserveConfig = section(ObserveConfig, "console, metrics, logs")
    watchdog: WatchdogConfig = section(WatchdogConfig, "what a stall leads to")
    ray: RayConfig = section(RayConfig, "where the cluster comes from")
    toy: ToyConfig = section(ToyConfig, "the embedded default task and model")

    def __post_init__(self) -> None:
        check_rewards(self.reward, self.rewards)
        for path, pool in self.engine_pools.items():
            pool.check(path)
        require(self.generators.count > 0, "generators.count must be at least 1")
        require(
            not (self.sampling.filtered and self.loss.uses_behaviour),
            f"sampling.top_p={self.sampling.top_p} / sampling.top_k={self.sampling.top_k} with loss.importance={self.loss.importance}, "
            f"loss.prox={self.loss.prox} and loss.sequence_mask={self.loss.sequence_mask:g}: log-probs of a truncated distribution "
            "bias the ratio; set top_p=1 and top_k=0, or loss.importance=off, loss.prox=recompute and loss.sequence_mask=0",
        )
        require(
            self.algorithm.entropy_of == "sampling" or self.engine.entropy == "engine" or self.sampling.plain,
            f"algorithm.entropy_of=raw with engine.entropy={self.engine.entropy}: only the engine's own entropies know the raw "
            "distribution apart from the one that is sampled; set engine.entropy=engine",
        )
        require(
            not (self.engine.entropy == "learner" and self.sampling.filtered),
            f"engine.entropy=learner with sampling.top_p={self.sampling.top_p} / sampling.top_k={self.sampling.top_k}: the learner "
            "knows the whole distribution only; set engine.entropy=engine, or top_p=1 and top_k=0",
        )
        require(
            self.algorithm.overlong_cache <= self.sampling.max_response,
            f"algorithm.overlong_cache ({self.algorithm.overlong_cache}) is above sampling.max_response ({self.sampling.max_response})",
        )
        require(
            self.flow.groups_per_step >= self.learner.minibatches,
            f"learner.minibatches ({self.learner.minibatches}) is above flow.groups_per_step ({self.flow.groups_per_step})",
        )
        require(
            self.learner.micro_batch_tokens >= self.context_length,
            f"learner.micro_batch_tokens ({self.learner.micro_batch_tokens}) cannot hold one trajectory of data.max_prompt + "
            f"sampling.max_response = {self.context_length} tokens",
        )
        require(
            self.flow.window <= self.flow.max_staleness * self.flow.groups_per_step,
            f"flow.window={self.flow.window}: with flow.max_staleness={self.flow.max_staleness} only "
            f"{self.flow.max_staleness * self.flow.groups_per_step} groups beyond a batch are ever open",
        )
        for path, pool in self.engine_pools.items():
            require(
                pool.gpus > 0 or self.engine.kv_cache_gib > 0 or pool.count == 0,
                f"engine.kv_cache_gib must be set when {path}.gpus is 0 (a CPU engine would take most of the memory)",
            )
        require(
            not (self.learner.gpus == 0 and self.learner.dtype == "bfloat16"),
            "learner.dtype=bfloat16 needs learner.gpus=1 (on CPU it is slower and less exact); use float32",
        )
        if self.weights.transfer == "collective":
            self._check_collective()

    def _check_collective(self) -> None:
        engines = {pool.gpus for pool in self.engine_pools.values() if pool.count}
        require(
            engines == {self.learner.gpus},
            f"weights.transfer=collective: learner.gpus, generators.gpus and explorers.gpus must all be 0 or all be 1 (got "
            f"{self.learner.gpus} and {', '.join(map(str, sorted(engines)))}): one backend, and a sharded model cannot be compared; "
            "set weights.transfer=object_store",
        )
        require(
            self.engine.dtype in ("auto", self.learner.dtype),
            f"weights.transfer=collective with engine.dtype={self.engine.dtype} and learner.dtype={self.learner.dtype}: the weights "
            "travel as they are; set one precision, or weights.transfer=object_store",
        )
        for path, pool in self.engine_pools.items():
            require(
                not pool.elastic,
                f"weights.transfer=collective with {path} that come and go ({path}.min, .max): its "
                "group has fixed members; set weights.transfer=object_store, or min and max to 0",
            )

    @property
    def engine_pools(self) -> dict[str, EnginePoolConfig]:
        """Section → the pool of engines that it describes."""
        return {"generators": self.generators, "explorers": self.explorers}

    @property
    def reward_terms(self) -> tuple[RewardConfig, ...]:
        """The functions whose weighted sum is the reward."""
        return reward_terms(self.reward, self.rewards)

    @property
    def reward_range(self) -> RewardRange:
        """The lowest and the highest reward that a response can get."""
        return range_of(self.reward_terms)

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens: data.max_prompt + sampling.max_response."""
        return self.data.max_prompt + self.sampling.max_response


__all__ = [
    "AlgorithmConfig", "BudgetConfig", "Config", "CriticConfig", "DataConfig", "EngineConfig", "EnginePoolConfig", "EvaluationConfig", "FlowConfig",
    "LearnerConfig", "LossConfig", "ModelConfig", "ObserveConfig", "PoolsConfig", "RayConfig", "RewardConfig", "RunConfig",
    "SamplingConfig", "SourceConfig", "ToyConfig", "VerifierPoolConfig", "WatchdogConfig", "WeightsConfig",
]  # fmt: skip
