"""The actors of a run together: brought up side by side, since starting is most of a short run's set-up; replaced; ended.

Before a run begins, every engine gets a request and the learner's weights (``first_questions``). The questions cost well under a
second, and the weights what any hand-over costs. So a model that cannot be served or updated is refused as soon as one engine is up,
without a second round of starts for those that can; and no engine serves what it read from its own disk before that was compared,
element by element, with what the learner has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import ray
from ray.exceptions import RayError

from fr3e_async.actors.cluster import DrainingNodes, RayPayloads
from fr3e_async.actors.collective import CollectiveLearner
from fr3e_async.actors.engine import EngineActor
from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.door import Door
from fr3e_async.control.ports import EngineWorker, LearnerPort
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.workers import ENGINES, Worker, Workers
from fr3e_async.errors import LearnerLost, StartRefused
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.observe.events import Note, unheard
from fr3e_async.plan.placement import placement
from fr3e_async.weights.manifest import WeightAck, WeightBundle
from fr3e_async.wiring.joining import check_nodes_there
from fr3e_async.wiring.room import Advice, roll_call, without_room
from fr3e_async.wiring.starting import PolicyFiles, Starter

_ASK_S = 5.0  # for the head to say what is free


class Folders(Protocol):
    """The folders that actors write logs and dumps to."""

    logs: Path
    dumps: Path


class Ends(Protocol):
    """An actor, or a group of actors, that can be ended."""

    async def close(self) -> None: ...


Up = TypeVar("Up", bound=Ends)


class NoLearner:
    """Stands for the learner in an evaluation alone, which has none to end."""

    async def close(self) -> None:
        pass


async def _no_learner() -> LearnerPort:
    return cast(LearnerPort, NoLearner())


class Deployment:
    """The actors of a run. ``start`` brings up those that a run waits for; ``workers`` is what the controller works with."""

    engine_actor: type = EngineActor  # what a test of the cluster alone replaces

    def __init__(
        self,
        config: Config,
        model: PolicyFiles,
        run_dir: Folders,
        *,
        clock: Clock,
        note: Note = unheard,
        starter: Starter | None = None,
    ) -> None:
        """``note`` receives what a person should see of the actors; ``starter`` starts them, on Ray unless a test gives another."""
        self._note, self._up = note, dict[str, tuple[int, int]]()  # by role: actors up, actors that the start waits for
        self.config, self._clock, self._draining = config, clock, DrainingNodes()
        on_ray = Starter(config, model, engine_actor=self.engine_actor, logs=run_dir.logs, dumps=run_dir.dumps)
        self._starter = starter or on_ray
        self._advice = Advice(config)
        self.workers: Workers

    async def start(self, *, resume_from: Path | None) -> None:
        """Start the learner group and ``min`` actors of every role, and wait for all; the first failure ends the start.

        The others join when the cluster has room for them. With ``resume_from`` the learner continues from that folder; the
        engines have the weights of the model as it was given.
        """
        await self._bring_up(self._learner(resume_from), training=True)

    async def start_serving(self) -> None:
        """Start what an evaluation alone needs: ``min`` generators and verifiers, no learner. The other workers are asked for."""
        await self._bring_up(_no_learner(), training=False)

    async def _bring_up(self, starting_learner: Coroutine[Any, Any, LearnerPort], *, training: bool) -> None:
        config, room = self.config, self.config.ray.room_timeout_s
        rows = {row.role: row for row in placement(config, "least", training=training)}
        roles = [role for role in (GENERATORS, EXPLORERS, VERIFIERS) if role in rows for _ in range(rows[role].actors)]
        for row in placement(config, training=training):
            self._advice.set_target(row.role, row.actors)
        self._up = {role: (0, row.actors) for role, row in rows.items()}
        try:
            async with asyncio.TaskGroup() as tasks:
                learner = tasks.create_task(starting_learner)
                workers = [(role, tasks.create_task(self.start_worker(role, room_s=room))) for role in roles]
                for role, task in workers:
                    task.add_done_callback(lambda _, role=role: self._one_up(role))  # type: ignore[misc]
                learner.add_done_callback(lambda _: self._one_up("learner"))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        if config.ray.autoscaling:  # only now are the nodes there
            check_nodes_there(config, training=training)
        self.workers = Workers(
            config=config,
            learner=learner.result(),
            payloads=RayPayloads(),
            start=self.start_worker,
            workers=[(role, task.result()) for role, task in workers],
            set_target=self._advice.set_target,
            draining=lambda: run_in_daemon_thread(self._draining),
            node=ray.get_runtime_context().get_node_id(),
            first_error=self._starter.first_error,
            note=self._note,
        )

    def _one_up(self, role: str) -> None:
        there, wanted = self._up.get(role, (0, 0))
        self._up[role] = (wanted if role == "learner" else there + 1, wanted)

    async def missing(self) -> str:
        """Which actors a start waits for, and for what room; "" if all are up."""
        wanted = dict(self._starter.wanted)
        try:
            async with asyncio.timeout(_ASK_S):
                return roll_call(self._up, *await run_in_daemon_thread(lambda: without_room(wanted)))
        except (TimeoutError, RayError):  # the head does not say what is free
            return roll_call(self._up)

    async def start_worker(self, role: str, *, room_s: float | None = None) -> Worker:
        """A new generator, explorer or verifier, as soon as there is room. Cancelled, it leaves nothing behind.

        Raises ``RunFailed`` if it does not start, or if there is no room within ``room_s`` (None: however long it takes).
        """
        return await self._advised(lambda: self._starter.worker(role, room_s=room_s))

    async def restart_learner(self, *, resume_from: Path | None) -> None:
        """End what is left of the learner group and make a new one, which continues from that folder, or starts over."""
        await self.workers.learner.close()
        self._up["learner"] = (0, self.config.learner.ranks)
        self.workers.learner = await self._learner(resume_from)
        self._one_up("learner")

    def publisher(self) -> Publisher:
        """Make a publisher for the current learner, which sends by itself if its transfer is collective."""
        learner = self.workers.learner
        return Publisher(
            ack_timeout_s=self.config.weights.ack_timeout_s,
            clock=self._clock,
            direct=learner if isinstance(learner, CollectiveLearner) else None,
            export_timeout_s=self.config.learner.step_timeout_s,
        )

    async def weights(self, version: int) -> WeightBundle:
        """The learner's, under this version, for engines that join one by one. Raises ``LearnerLost``, also if it takes too long."""
        learner, limit = self.workers.learner, self.config.learner.step_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await (learner.stored() if isinstance(learner, CollectiveLearner) else learner.export(version))
        except TimeoutError:
            raise LearnerLost(f"the learner did not export v{version} within learner.step_timeout_s ({limit:g} s)") from None

    async def close(self) -> None:
        """End what was started; actors that a failed start left behind die with the driver's connection."""
        await self._advice.end()
        if hasattr(self, "workers"):
            await self.workers.close()

    async def _learner(self, resume_from: Path | None) -> LearnerPort:
        return await self._advised(lambda: self._starter.learner(resume_from))

    async def _advised(self, start: Callable[[], Awaitable[Up]]) -> Up:
        """Start something while the autoscaler knows of it. Cancelled when it was up, it is ended."""
        up: Up | None = None
        try:
            async with self._advice.standing():
                up = await start()
        except BaseException:
            if up is not None:
                await up.close()
            raise
        assert up is not None
        return up


async def first_questions(deployment: Deployment, weights: WeightBundle, door: Door | None) -> int:
    """Ask every engine, give it the learner's ``weights``, and ask the first one again; without a ``door`` nothing is asked.

    Returns the number of engines. Raises ``StartRefused``, one line: an engine dies, does not take the weights, or has other numbers.
    """
    workers = deployment.workers
    engines = [engine for role in ENGINES for name in workers.names(role) if (engine := workers.engine(name)) is not None]
    if door is not None:
        _refuse(deployment, await door.ask_all(engines))
    _refuse(deployment, await _updated(deployment, weights, engines))
    if door is not None:  # not one of its two times: it is asked again after an update that changes something
        _refuse(deployment, {engines[0].name: await door.ask(engines[0], counts=False)})
    return len(engines)


async def _updated(deployment: Deployment, weights: WeightBundle, engines: list[EngineWorker]) -> dict[str, str]:
    """Give engines the weights that they have, as the learner names and stores them; by engine, why it did not take them."""
    refused: dict[str, str] = {}

    def told(name: str, reply: WeightAck | str) -> None:
        if isinstance(reply, str):
            refused[name] = f"it did not take the learner's weights: {reply}"

    publisher = deployment.publisher()
    publisher.offer(weights)
    await publisher.hand_over(engines, told, alone=True)
    return refused


def _refuse(deployment: Deployment, whys: dict[str, str]) -> None:
    for name, why in ((name, why) for name, why in whys.items() if why):
        raise StartRefused(
            f"model.path or engine.options: {deployment.workers.explained(name, why if why.startswith(name) else f'{name}: {why}')}"
        )
