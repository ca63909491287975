"""The only place that names concrete classes and resources: from a config to a running crew, and back to nothing.

Everything else sees ports. Actors of all roles start side by side, since starting is most of a short run's set-up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fr3e_async.actors.cluster import draining_nodes, request
from fr3e_async.actors.engine import EngineActor
from fr3e_async.actors.gauges import RayGauges
from fr3e_async.actors.learner import LearnerActor
from fr3e_async.actors.native import NativeLearner
from fr3e_async.actors.payloads import RayPayloads
from fr3e_async.actors.proxies import RayEngine, RayLearner, RayVerifier, reach
from fr3e_async.actors.verifier import VerifierActor
from fr3e_async.actors.watch import ask, watchable
from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config, EnginePoolConfig, LearnerConfig
from fr3e_async.control.crew import Crew, Worker
from fr3e_async.control.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.control.ports import Clock, LearnerPort, WorkerLost
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.side import on_the_side
from fr3e_async.errors import ConfigError, LearnerLost, RunFailed
from fr3e_async.learner.spec import LearnerSpec, rank_environment
from fr3e_async.plan import check_resources, local_resources, per_actor, placement
from fr3e_async.rollout import EngineSpec, engine_environment
from fr3e_async.types import WeightBundle

T = TypeVar("T")

CALLS_AT_ONCE = 10_000  # an async actor queues calls beyond this; the pools bound the work long before
NAMESPACE = "fr3e"
ASK_S = 10.0  # for the autoscaler to take note
KNOCK_S = 10.0  # time for a cluster's address to accept a connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The policy as the actors need to know it."""

    path: str
    end_token_ids: tuple[int, ...]


def check_cluster(config: Config, *, training: bool = True) -> None:
    """What can be known of the cluster before anything is started: does this machine hold the actors, does the address answer?

    ``training``: false for an evaluation alone. Raises ``ConfigError``. ``connect`` checks the size of a cluster that is joined.
    """
    address, setting = _destination(config)
    if address == "local":
        check_resources(config, _local_offer(config, training), training=training)
        memory = psutil.virtual_memory().total / 2**30
        if config.ray.object_store_gib >= memory:
            raise ConfigError(
                f"ray.object_store_gib={config.ray.object_store_gib:g}: this machine has {memory:.1f} GiB of memory"
            )
    elif address != "auto":
        _knock(address, setting)


def _destination(config: Config) -> tuple[str, str]:
    """('local', or a cluster's address; the setting it comes from). `ray job submit` sets RAY_ADDRESS."""
    if config.ray.address:
        return config.ray.address, "ray.address"
    return os.environ.get("RAY_ADDRESS") or "local", "RAY_ADDRESS"


def _local_offer(config: Config, training: bool) -> dict[str, float]:
    return local_resources(config, machine_cpus=os.cpu_count() or 1, machine_gpus=machine_gpus(), training=training)


def _knock(address: str, setting: str) -> None:
    """Ray itself tries for minutes, and complains on stderr meanwhile."""
    parts = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d{1,5})", address)
    if parts is None:
        raise ConfigError(f"{setting}={address}: an address is written host:port (6379 unless the head was told otherwise)")
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{setting}={address}: no cluster answers ({error})") from error


def connect(config: Config, *, training: bool = True) -> None:
    """Join the cluster of ``ray.address``, ``ray job submit`` or RAY_ADDRESS; else start a local one. Checks its size.

    Raises ``ConfigError`` when the actors cannot fit, and when the address does not answer.
    """
    address, setting = _destination(config)
    settings: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": config.observe.verbose,
        "logging_level": logging.INFO if config.observe.verbose else logging.ERROR,
    }
    if address == "local":
        offered = _local_offer(config, training)
        settings |= {
            "num_cpus": int(offered.pop("CPU")),
            "num_gpus": int(offered.pop("GPU")),
            "resources": offered,
            "include_dashboard": False,
            "object_store_memory": int(config.ray.object_store_gib * 2**30),
        }
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(f"{setting}={address}: no cluster answers, or it wants another token ({error})") from error
    except RayError as error:
        raise ConfigError(f"{setting}={address}: the cluster refuses us: {error}") from error
    except (OSError, ValueError) as error:  # its folder cannot be written; a setting is beyond what the machine has
        raise ConfigError(f"{setting}={address}: Ray cannot start: {error}") from error
    if not config.ray.autoscaling:
        check_resources(config, ray.cluster_resources(), training=training)


def disconnect() -> None:
    """Leave the cluster; a local one ends with it."""
    ray.shutdown()


def gauges(config: Config) -> RayGauges | None:
    """Where numbers of this run go for Prometheus, if anywhere. After ``connect``."""
    return RayGauges(config.run.name) if config.observe.prometheus else None


def machine_gpus() -> int:
    """NVIDIA GPUs of this machine, without loading a GPU library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() and part.strip() != "-1"])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


class Folders(Protocol):
    """Where actors leave their files."""

    @property
    def logs(self) -> Path: ...

    @property
    def dumps(self) -> Path: ...


class NoLearner:
    """In a learner's place where nothing is trained: there is nothing to end."""

    async def close(self) -> None:
        pass


class Deployment:
    """The actors of a run. ``start`` brings up those that a run waits for; ``crew`` is what the controller works with."""

    engine_actor: type = EngineActor  # what a test of the cluster alone replaces

    def __init__(self, config: Config, model: Model, run_dir: Folders, *, clock: Clock) -> None:
        self._config, self._model, self._clock = config, model, clock
        self._logs, self._dumps = run_dir.logs, run_dir.dumps
        self._names: dict[str, int] = {}
        self._wanted: dict[str, int] = {}  # actors by role
        self._starting = 0  # actors, and the learner group
        self._requested: list[Any] | None = []  # what the autoscaler was told last; None: perhaps
        self._advising = asyncio.Lock()
        self.crew: Crew

    async def start(self, *, resume_from: Path | None) -> None:
        """Start the learner group and ``min`` actors of every role, and wait for all; the first failure ends the start.

        The others join when the cluster has room for them. With ``resume_from`` the learner continues from that folder; the
        engines have the weights of the model as it was given.
        """
        await self._bring_up(lambda: self._learner(resume_from), training=True)

    async def start_serving(self) -> None:
        """Start what an evaluation alone needs: ``min`` generators and verifiers, no learner. The crew's others are asked for."""

        async def none() -> LearnerPort:
            return cast(LearnerPort, NoLearner())

        await self._bring_up(none, training=False)

    async def _bring_up(self, learner_of: Callable[[], Coroutine[Any, Any, LearnerPort]], *, training: bool) -> None:
        config, room = self._config, self._config.ray.room_timeout_s
        rows = {row.role: row for row in placement(config, "least", training=training)}
        roles = [role for role in (GENERATORS, EXPLORERS, VERIFIERS) if role in rows for _ in range(rows[role].actors)]
        self._wanted = {row.role: row.actors for row in placement(config, training=training)}
        try:
            async with asyncio.TaskGroup() as tasks:
                learner = tasks.create_task(learner_of())
                workers = [(role, tasks.create_task(self.start_worker(role, room_s=room))) for role in roles]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        self.crew = Crew(
            config=config,
            learner=learner.result(),
            payloads=RayPayloads(),
            start=self.start_worker,
            workers=[(role, task.result()) for role, task in workers],
            want=self._want,
            draining=lambda: on_the_side(draining_nodes),
            node=ray.get_runtime_context().get_node_id(),
        )

    async def start_worker(self, role: str, *, room_s: float | None = None) -> Worker:
        """A new generator, explorer or verifier, as soon as there is room. Cancelled, it leaves nothing behind.

        Raises ``RunFailed`` if it does not start, or if there is no room within ``room_s`` (None: however long it takes).
        """
        worker: Worker | None = None
        try:
            async with self._advised():
                worker = await (self._verifier(room_s) if role == VERIFIERS else self._engine(role, room_s))
        except BaseException:
            if worker is not None:  # cancelled when it was up
                await worker.close()
            raise
        assert worker is not None
        return worker

    async def restart_learner(self, *, resume_from: Path | None) -> None:
        """End what is left of the learner group and make a new one, which continues from that folder, or begins anew."""
        await self.crew.learner.close()
        self.crew.learner = await self._learner(resume_from)

    def publisher(self) -> Publisher:
        """A new one for the learner as it is now."""
        learner = self.crew.learner
        return Publisher(
            ack_timeout_s=self._config.weights.ack_timeout_s,
            clock=self._clock,
            direct=learner if isinstance(learner, NativeLearner) else None,
            export_timeout_s=self._config.learner.step_timeout_s,
        )

    async def weights(self, version: int) -> WeightBundle:
        """The learner's, under this version, for engines that join one by one. Raises ``LearnerLost``, also if it takes too long."""
        learner, limit = self.crew.learner, self._config.learner.step_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await (learner.stored() if isinstance(learner, NativeLearner) else learner.export(version))
        except TimeoutError:
            raise LearnerLost(f"the learner did not export v{version} within learner.step_timeout_s ({limit:g} s)") from None

    async def close(self) -> None:
        """End what was started; actors that a failed start left behind die with the driver's connection."""
        self._starting = 0
        await self._advise()
        if hasattr(self, "crew"):
            await self.crew.close()

    # ---- the cluster ----

    def _want(self, role: str, actors: int) -> None:
        self._wanted[role] = actors

    @asynccontextmanager
    async def _advised(self) -> AsyncIterator[None]:
        """While something starts, the autoscaler knows of all that is wanted, so that it need not find out one by one.

        Only then: actors that are up hold their nodes, and a request that stands keeps idle nodes, too (Ray 2.60 may count it
        against any node that fits).
        """
        self._starting += 1
        try:
            await self._advise()
            yield
        finally:
            self._starting -= 1
            await self._advise()

    async def _advise(self) -> None:
        """One after another, so that the last word is the last; what did not arrive is said again with the next."""
        if not (self._config.ray.autoscaling and self._config.ray.request):
            return
        async with self._advising:
            rows = placement(self._config) if self._starting else []
            wanted = [(per_actor(row), row.labels) for row in rows for _ in range(self._wanted.get(row.role, 0))]
            if wanted == self._requested:
                return
            try:
                async with asyncio.timeout(ASK_S):
                    await on_the_side(lambda: request(wanted))
                self._requested = wanted
            except (TimeoutError, RayError, ValueError) as error:  # it is advice: the run goes on without
                self._requested = None
                logging.getLogger(__name__).warning("the autoscaler could not be told what is wanted: %s", error)

    def _name(self, role: str) -> str:
        """``generator-0``, ``generator-1``, ...; a replacement gets a new number."""
        self._names[role] = self._names.get(role, -1) + 1
        return f"{role.removesuffix('s')}-{self._names[role]}"

    def _log(self, name: str) -> str:
        return str(self._logs / f"{name}.log")

    # ---- engines ----

    async def _engine(self, role: str, room_s: float | None) -> RayEngine:
        """In a placement group of its own: all devices of one engine on one node, and given back together."""
        pool = self._config.generators if role == GENERATORS else self._config.explorers
        name = self._name(role)
        spec = self._engine_spec(pool, seed=self._config.run.seed * 1000 + sum(number + 1 for number in self._names.values()))
        place = _place([_bundle(pool)], "STRICT_PACK", [pool.labels])
        try:
            actor = (
                watchable(self.engine_actor)
                .options(
                    num_cpus=pool.cpus,
                    num_gpus=pool.gpus,
                    resources=pool.resources,
                    max_concurrency=CALLS_AT_ONCE,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=0),
                    runtime_env={"env_vars": engine_environment(spec)},
                )
                .remote(spec, make_strategy(self._config.algorithm).plan.rule, self._config.run.seed, self._log(name))
            )
            node = await self._brought_up(name, actor, room_s)
        except BaseException:
            remove_placement_group(place)  # ends its actor
            raise
        return RayEngine(name, actor, node=node, place=place)

    async def _brought_up(self, name: str, actor: Any, room_s: float | None) -> str:
        """Wait for its process, which takes as long as the cluster has no room, then for its start; its node."""
        limit, knob = self._config.engine.start_timeout_s, "engine.start_timeout_s"
        node = await self._started(name, ask(actor, "node"), room_s, "ray.room_timeout_s; the cluster has no room for it")
        await self._started(name, actor.start.remote(), limit, knob)
        return node

    def _engine_spec(self, pool: EnginePoolConfig, *, seed: int) -> EngineSpec:
        engine, model = self._config.engine, self._config.model
        return EngineSpec(
            model=self._model.path,
            end_token_ids=self._model.end_token_ids,
            max_model_len=self._config.context_length,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=engine.dtype,
            eager=engine.eager,
            kv_cache_gib=engine.kv_cache_gib,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            block_size=engine.block_size,
            max_running=engine.max_running,
            threads=engine.threads,
            prefix_caching=engine.prefix_caching,
            clear_cache_on_update=engine.clear_cache_on_update,
            entropy=engine.entropy,
            entropy_top_k=engine.entropy_top_k,
            tensor_parallel=max(pool.gpus, 1),
            transfer=_backend(self._config) if self._config.weights.transfer == "native" else "",
            seed=seed,
            seeded=self._config.sampling.reproducible,
            verbose=self._config.observe.verbose,
            options=dict(engine.options),
        )

    # ---- verifiers ----

    async def _verifier(self, room_s: float | None) -> RayVerifier:
        pool, model, name = self._config.verifiers, self._config.model, self._name(VERIFIERS)
        actor = (
            watchable(VerifierActor)
            .options(
                num_cpus=pool.cpus,
                resources=pool.resources,
                max_concurrency=CALLS_AT_ONCE,
                **({"label_selector": pool.labels} if pool.labels else {}),
            )
            .remote(pool, self._model.path, model.revision, model.trust_remote_code, self._log(name), self._config.reward)
        )
        try:
            node = await self._brought_up(name, actor, room_s)
        except BaseException:
            ray.kill(actor)
            raise
        return RayVerifier(name, actor, node=node)

    # ---- the learner group ----

    async def _learner(self, resume_from: Path | None) -> RayLearner:
        """All ranks in one placement group: the gang that a cluster must have room for at once."""
        learner = self._config.learner
        ranks = learner.ranks
        group = _place([_bundle(learner)] * ranks, learner.placement.upper(), [learner.labels] * ranks)
        try:
            async with self._advised():
                return await self._learner_in(group, resume_from)
        except BaseException:
            remove_placement_group(group)  # ends its actors; a second attempt needs the room
            raise

    async def _learner_in(self, group: PlacementGroup, resume_from: Path | None) -> RayLearner:
        learner, spec = self._config.learner, self._learner_spec()
        ranks = [
            watchable(LearnerActor)
            .options(
                num_cpus=learner.cpus,
                num_gpus=learner.gpus,
                resources=learner.resources,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                runtime_env={"env_vars": rank_environment(spec)},
            )
            .remote(spec, make_strategy(self._config.algorithm).plan.rule, self._log(f"learner-{rank}"))
            for rank in range(learner.ranks)
        ]
        room = self._config.ray.room_timeout_s
        nodes = await asyncio.gather(
            *(
                self._started(
                    f"learner-{i}", ask(rank, "node"), room, "ray.room_timeout_s; the cluster has no room for the group"
                )
                for i, rank in enumerate(ranks)
            )
        )
        host, port = await self._started(
            "learner-0", ranks[0].address.remote(), learner.start_timeout_s, "learner.start_timeout_s"
        )
        folder = str(resume_from / "learner") if resume_from else ""
        await asyncio.gather(
            *(
                self._started(
                    f"learner-{i}",
                    rank.start.remote(i, learner.ranks, host, port, folder),
                    learner.start_timeout_s,
                    "learner.start_timeout_s",
                )
                for i, rank in enumerate(ranks)
            )
        )
        weights = self._config.weights
        if weights.transfer == "native":
            return NativeLearner(
                ranks,
                group,
                bucket_bytes=weights.bucket_mib << 20,
                backend=_backend(self._config),
                timeout_s=weights.ack_timeout_s,
                nodes=nodes,
            )
        return RayLearner(ranks, group, bucket_bytes=weights.bucket_mib << 20, nodes=nodes)

    def _learner_spec(self) -> LearnerSpec:
        model = self._config.model
        return LearnerSpec(
            path=self._model.path,
            learner=self._config.learner,
            loss=self._config.loss,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            temperature=self._config.sampling.temperature,
            max_staleness=self._config.flow.max_staleness,
            seed=self._config.run.seed,
            dump_folder=str(self._dumps),
            verbose=self._config.observe.verbose,
        )

    async def _started(self, name: str, call: Awaitable[T], limit: float | None, knob: str) -> T:
        try:
            async with asyncio.timeout(limit):
                return await reach(name, call)
        except TimeoutError:
            cause = f"{name} did not start within {limit:.0f} s ({knob})"
        except WorkerLost as error:
            cause = f"{name} died while starting ({error})"
        except RunFailed as error:
            cause = f"{name} could not start: {error}"
        raise RunFailed(f"{cause}{_last_error(Path(self._log(name)))}; logs: {self._logs}")


def _bundle(actor: EnginePoolConfig | LearnerConfig) -> dict[str, float]:
    """What one actor occupies, by Ray's names."""
    return {"CPU": actor.cpus, **({"GPU": float(actor.gpus)} if actor.gpus else {}), **actor.resources}


def _place(bundles: list[dict[str, float]], strategy: str, labels: Sequence[Mapping[str, str]]) -> PlacementGroup:
    """A placement group, pending until the cluster has room for all of it: that is the demand which an autoscaler sees."""
    selectors = {"bundle_label_selector": [dict(its) for its in labels]} if any(labels) else {}
    return placement_group(bundles, strategy=strategy, **selectors)


def _backend(config: Config) -> str:
    """Of vLLM's own weight transfer."""
    return "nccl" if config.learner.gpus else "gloo"


def _last_error(log: Path) -> str:
    """The first line of a log that names an error, if the file is here: what follows is usually its consequence."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    named = [line.strip() for line in lines if re.match(r"^[\w.]*(Error|Exception): ", line.strip())]
    return f": {named[0]}" if named else ""
