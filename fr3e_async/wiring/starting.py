"""Starting actors: each in its place, with its environment, within its limits. One that does not come up leaves nothing behind.

An engine has a placement group of its own: all devices on one node, given back together. The learner's ranks share one: the
gang that a cluster must have room for at once. Verifiers are single actors.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fr3e_async.actors.collective import CollectiveLearner
from fr3e_async.actors.learner import LearnerActor
from fr3e_async.actors.proxies import RayEngine, RayLearner, RayVerifier, reach
from fr3e_async.actors.verifier import VerifierActor
from fr3e_async.actors.watch import ask, watchable
from fr3e_async.algorithm.strategies import critic_settings, make_strategy
from fr3e_async.config import Config, EnginePoolConfig, LearnerConfig
from fr3e_async.config.vllm_options import config_overrides
from fr3e_async.control.ports import WorkerLost
from fr3e_async.errors import RunFailed, StartRefused, UserError, with_cause
from fr3e_async.files.process_logs import first_error
from fr3e_async.learner.spec import LearnerSpec, rank_environment
from fr3e_async.machine.dispatch import GENERATORS, VERIFIERS
from fr3e_async.rollout import EngineSpec, engine_environment
from fr3e_async.wiring.room import Wanted

T = TypeVar("T")

EXACT_PART = 0.1  # of learner.stop_above_mismatch, where engines and learner both compute in float32
CALLS_AT_ONCE = 10_000  # an async actor queues calls beyond this; the pools bound the work long before


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFiles:
    """The model folder or hub id, and its end tokens. *Example*: ``PolicyFiles(path="toy", end_token_ids=(2,))``."""

    path: str
    end_token_ids: tuple[int, ...]
    optimizer_from: str = ""  # a learner checkpoint of these weights, whose optimiser a new run takes on


class Starter:
    """Starts actors by role, with their names, logs and specs. ``RunFailed`` if one does not come up within its limit."""

    def __init__(self, config: Config, model: PolicyFiles, *, engine_actor: type, logs: Path, dumps: Path) -> None:
        self._config, self._model, self._engine_actor = config, model, engine_actor
        self._logs, self._dumps = logs, dumps
        self._names: dict[str, int] = {}  # by role: the number of the newest
        self._log_starts: dict[str, int] = {}  # bytes of a log that were there before the actor
        self.wanted: dict[str, Wanted] = {}  # by name: whose process is not there yet

    async def worker(self, role: str, *, room_s: float | None) -> RayEngine | RayVerifier:
        """Start a generator, explorer or verifier. ``room_s``: how long to wait for room on the cluster; None: without end."""
        return await (self._verifier(room_s) if role == VERIFIERS else self._engine(role, room_s))

    async def learner(self, resume_from: Path | None) -> RayLearner:
        """Start all ranks. With ``resume_from`` they resume from that folder of a checkpoint."""
        learner = self._config.learner
        group = _reserve([_bundle(learner)] * learner.ranks, learner.placement.upper(), [learner.labels] * learner.ranks)
        try:
            ranks = self._ranks(group)
            needs = {name: amount * learner.ranks for name, amount in _bundle(learner).items()}
            with self._waiting("the learner", Wanted(needs=needs, placement=group)):
                nodes = await self._of_all(
                    ranks, lambda rank, i: ask(rank, "node"), self._config.ray.room_timeout_s,
                    "ray.room_timeout_s; the cluster has no room for the group",
                )  # fmt: skip
            limit = (learner.start_timeout_s, "learner.start_timeout_s")
            host, port = await self._started("learner-0", ranks[0].address.remote(), *limit)
            folder = str(resume_from / "learner") if resume_from else ""
            await self._of_all(ranks, lambda rank, i: rank.start.remote(i, learner.ranks, host, port, folder), *limit)
        except BaseException:
            remove_placement_group(group)  # ends its actors; a second attempt needs the room
            raise
        weights, buckets = self._config.weights, self._config.weights.bucket_mib << 20
        if weights.transfer != "collective":
            return RayLearner(ranks, group, bucket_bytes=buckets, nodes=nodes)
        timeout, backend = weights.ack_timeout_s, _backend(self._config)
        return CollectiveLearner(ranks, group, bucket_bytes=buckets, backend=backend, timeout_s=timeout, nodes=nodes)

    # ---- one actor ----

    async def _engine(self, role: str, room_s: float | None) -> RayEngine:
        pool = self._config.generators if role == GENERATORS else self._config.explorers
        name = self._name(role)
        seed = self._config.run.seed * 1000 + sum(number + 1 for number in self._names.values())
        spec = engine_spec(self._config, self._model, pool, seed=seed)
        placement = _reserve([_bundle(pool)], "STRICT_PACK", [pool.labels])
        try:
            options = _options(pool, placement, 0, engine_environment(spec))
            engine = watchable(self._engine_actor).options(max_concurrency=CALLS_AT_ONCE, **options)
            rule = make_strategy(self._config.algorithm).plan.rule
            actor = engine.remote(spec, rule, self._config.run.seed, self._log(name))
            wanted = Wanted(needs=_bundle(pool), placement=placement)
            node = await self._brought_up(name, actor, room_s, wanted, refused="model.path or engine.options")
        except BaseException:
            remove_placement_group(placement)  # ends its actor
            raise
        return RayEngine(name, actor, node=node, placement=placement)

    async def _verifier(self, room_s: float | None) -> RayVerifier:
        pool, model, name = self._config.verifiers, self._config.model, self._name(VERIFIERS)
        labels = {"label_selector": pool.labels} if pool.labels else {}
        verifier = watchable(VerifierActor).options(
            num_cpus=pool.cpus, resources=pool.resources, max_concurrency=CALLS_AT_ONCE, **labels
        )
        actor = verifier.remote(
            pool, self._model.path, model.revision, model.trust_remote_code, self._log(name), self._config.reward_terms,
            ends=self._model.end_token_ids, thoughts=tuple(self._config.data.thoughts), stops=tuple(self._config.sampling.stop),
        )  # fmt: skip
        try:
            wanted = Wanted(needs={"CPU": pool.cpus, **pool.resources})
            node = await self._brought_up(name, actor, room_s, wanted, refused="model.path, reward or verifiers")
        except BaseException:
            ray.kill(actor)
            raise
        return RayVerifier(name, actor, node=node)

    async def _brought_up(self, name: str, actor: Any, room_s: float | None, wanted: Wanted, *, refused: str) -> str:
        """Wait for its process, which takes as long as the cluster has no room, then for its start; its node."""
        limit, knob = self._config.engine.start_timeout_s, "engine.start_timeout_s"
        with self._waiting(name, wanted):
            node = await self._started(name, ask(actor, "node"), room_s, "ray.room_timeout_s; the cluster has no room for it")
        await self._started(name, actor.start.remote(), limit, knob, refused=refused)
        return node

    # ---- the ranks ----

    def _ranks(self, group: PlacementGroup) -> list[Any]:
        learner, spec = self._config.learner, learner_spec(self._config, self._model, dumps=self._dumps)
        rule, actor = make_strategy(self._config.algorithm).plan.rule, watchable(LearnerActor)
        options = [_options(learner, group, rank, rank_environment(spec)) for rank in range(learner.ranks)]
        return [actor.options(**its).remote(spec, rule, self._log(f"learner-{rank}")) for rank, its in enumerate(options)]

    async def _of_all(
        self, ranks: Sequence[Any], call: Callable[[Any, int], Awaitable[T]], limit: float | None, knob: str
    ) -> list[T]:
        """Call every rank at the same time; the results, by rank."""
        return await asyncio.gather(*(self._started(f"learner-{i}", call(rank, i), limit, knob) for i, rank in enumerate(ranks)))

    # ---- names and limits ----

    async def _started(self, name: str, call: Awaitable[T], limit: float | None, knob: str, *, refused: str = "") -> T:
        """Await an actor's ``call`` within ``limit`` seconds, set by ``knob``. ``RunFailed`` names the actor and its first error.

        ``refused``: settings that are to blame if the actor itself raises; ``StartRefused`` then.
        """
        try:
            async with asyncio.timeout(limit):
                return await reach(name, call)
        except TimeoutError:
            cause = f"{name} did not start within {limit:.0f} s ({knob})"
        except WorkerLost as error:
            cause = f"{name} died while starting ({error})"
        except RunFailed as error:
            if isinstance(said := getattr(error.__cause__, "cause", None), UserError):  # the actor's own, as it was raised
                raise StartRefused(f"{name}: {said}") from error
            cause = f"{name} could not start: {error}"
            if refused:
                raise StartRefused(f"{refused}: {with_cause(cause, self.first_error(name))}") from error
        raise RunFailed(f"{with_cause(cause, self.first_error(name))}; logs: {self._logs}")

    @contextlib.contextmanager
    def _waiting(self, name: str, wanted: Wanted) -> Iterator[None]:
        self.wanted[name] = wanted
        try:
            yield
        finally:
            self.wanted.pop(name, None)

    def _name(self, role: str) -> str:
        """``generator-0``, ``generator-1``, ...; a replacement gets a new number."""
        self._names[role] = self._names.get(role, -1) + 1
        name = f"{role.removesuffix('s')}-{self._names[role]}"
        with contextlib.suppress(OSError):  # there is none yet, unless a former session's actor had the name
            self._log_starts[name] = os.path.getsize(self._log(name))
        return name

    def first_error(self, name: str) -> str:
        """The first error in the log of this session's actor; empty if the file is not on this machine."""
        return first_error(self._log(name), start=self._log_starts.get(name, 0))

    def _log(self, name: str) -> str:
        return str(self._logs / f"{name}.log")


# ---- what an actor is told ----


def engine_spec(config: Config, model: PolicyFiles, pool: EnginePoolConfig, *, seed: int) -> EngineSpec:
    """The spec of an engine of this pool, from the sections that it needs."""
    return EngineSpec(
        model=model.path,
        end_token_ids=model.end_token_ids,
        max_model_len=config.context_length,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        engine=replace(config.engine, threads=_threads(config.engine.threads, pool)),
        tensor_parallel=max(pool.gpus, 1),
        transfer=_backend(config) if config.weights.transfer == "collective" else "",
        seed=seed,
        seeded=config.sampling.reproducible,
        stops=tuple(config.sampling.stop),
        thoughts=tuple(config.data.thoughts),
        verbose=config.observe.verbose,
    )


def learner_spec(config: Config, model: PolicyFiles, *, dumps: Path) -> LearnerSpec:
    """The spec of every rank of the learner group, from the sections that it needs."""
    learner = replace(
        config.learner,
        threads=_threads(config.learner.threads, config.learner),
        stop_above_mismatch=0.0 if config.sampling.filtered else mismatch_bound(config),
    )
    return LearnerSpec(
        path=model.path,
        optimizer_from=model.optimizer_from,
        learner=learner,
        loss=config.loss,
        critic=critic_settings(config),
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        temperature=config.sampling.temperature,
        max_staleness=config.flow.max_staleness,
        batches=config.run.steps,
        overrides=config_overrides(config.engine.options),
        longest=config.context_length,
        seed=config.run.seed,
        dump_folder=str(dumps),
        verbose=config.observe.verbose,
    )


def _threads(setting: int, actor: EnginePoolConfig | LearnerConfig) -> int:
    """CPU threads of a process: as set, and on GPUs at least its part of the actor's CPUs, which copy the shards of the weights."""
    return max(setting, int(actor.cpus / actor.gpus)) if actor.gpus else setting


def mismatch_bound(config: Config) -> float:
    """``learner.stop_above_mismatch`` in nats, a tenth of it where engine and learner both compute in float32."""
    exact = config.engine.dtype == config.learner.dtype == "float32"
    return config.learner.stop_above_mismatch * (EXACT_PART if exact else 1.0)


def _bundle(actor: EnginePoolConfig | LearnerConfig) -> dict[str, float]:
    """The resources that one actor occupies. *Example*: ``{"CPU": 0.5, "GPU": 1.0}``."""
    return {"CPU": actor.cpus, **({"GPU": float(actor.gpus)} if actor.gpus else {}), **actor.resources}


def _options(actor: EnginePoolConfig | LearnerConfig, group: PlacementGroup, bundle: int, env: dict[str, str]) -> dict[str, Any]:
    """Ray's options of an actor that runs in one bundle of a placement group, with these environment variables."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    resources = {"num_cpus": actor.cpus, "num_gpus": actor.gpus, "resources": actor.resources}
    return {**resources, "scheduling_strategy": strategy, "runtime_env": {"env_vars": env}}


def _reserve(bundles: list[dict[str, float]], strategy: str, labels: Sequence[Mapping[str, str]]) -> PlacementGroup:
    """A placement group, pending until the cluster has room for all of it: that is the demand which an autoscaler sees."""
    selectors = {"bundle_label_selector": [dict(its) for its in labels]} if any(labels) else {}
    return placement_group(bundles, strategy=strategy, **selectors)


def _backend(config: Config) -> str:
    """The torch backend of the collective transfer: "nccl" or "gloo"."""
    return "nccl" if config.learner.gpus else "gloo"
