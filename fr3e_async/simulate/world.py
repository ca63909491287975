"""The world around the control machine, on virtual time: it carries out commands and says what happened. It decides nothing.

Assign(Sample, Branch) ─► engine ─► Delivered when rollouts of the task have ended
Assign(Score) ─► verifier ─► Scored            Train ─► learner ─► Trained ─► Exported        Rescore ─► learner ─► Rescored
Send ─► fetch ─► the engine stands still ─► Acked      Hire ─► WorkerUp      Wait ─► Due      Withdraw ─► Lost
"""

import gc
import math
import random
import time
from dataclasses import replace
from typing import Protocol

from fr3e_async.algorithm.strategies import explorer_count, make_strategy
from fr3e_async.config import Config
from fr3e_async.errors import RunFailed
from fr3e_async.machine import events, messages
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.machine import Machine
from fr3e_async.rollout.port import LINGER_S
from fr3e_async.simulate.clock import Cores, Station, VirtualClock
from fr3e_async.simulate.engine import Request, SimulatedEngine
from fr3e_async.simulate.groups import Groups, SimulatedTask
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.stats import SimulationReport, Stats
from fr3e_async.types import Finish, RolloutSummary

NAMES = {GENERATORS: "generator", EXPLORERS: "explorer", VERIFIERS: "verifier"}


class EventLog(Protocol):
    """Receives each event with the commands that it caused; ``store.journal.Journal`` is one."""

    def write(self, event: events.Event, commands: list[messages.Command], now: float) -> None: ...


class World:
    """See the module's docstring. ``cores``: of the one machine that all processes share; 0: everyone has a device."""

    def __init__(
        self, config: Config, model: SystemModel, *, seed: int = 0, cores: float = 0, warmup: int = 1, log: EventLog | None = None
    ) -> None:  # fmt: skip
        self.config, self.times = config, model.service
        self.clock = VirtualClock()
        self._cores = Cores(cores)
        strategy = make_strategy(config.algorithm)
        self.machine = Machine(config, strategy)
        self.stats = Stats(self.machine, warmup=warmup, lease_s=config.flow.lease_s)
        self.events = 0
        self._chance = random.Random(seed)
        self._log = log
        rule = strategy.plan.rule
        self._rescored = rule is not None and rule.needs_entropies and config.engine.entropy == "learner"
        self._groups = Groups(config, strategy.plan, model.workload, seed=seed)
        self._engines: dict[str, SimulatedEngine] = {}
        self._verifiers: dict[str, Station] = {}
        self.jobs: dict[int, SimulatedTask] = {}
        self._hires: set[int] = set()  # tickets of workers that come up
        self._born: dict[str, int] = {}  # workers by role, also those that are gone
        self._payloads = 0
        self._learner = Station(self.clock, self._cores, threads=config.learner.ranks * config.learner.threads)
        self._driver = Station(self.clock, self._cores) if self.times.control_s else None
        self._together = config.weights.transfer == "collective"
        self._receiving: set[str] = set()  # of a common hand-over

    # ---- running ----

    def run(self) -> None:
        """To the end of the run. Raises ``RunFailed`` where a real run would end so, or when nothing is left to happen."""
        config = self.config
        counts = {GENERATORS: config.generators.count, EXPLORERS: explorer_count(config), VERIFIERS: config.verifiers.count}
        self._carry_out(self.machine.start())
        for role, count in counts.items():
            for _ in range(count):
                self._start(role)
        self._tell(events.Begun())  # after the workers, also where the control loop takes its time
        if self.machine.autoscaler.elastic:
            self.clock.after(config.observe.heartbeat_s, self._pools, self.stats.busy_s(0.0))
        while not self.machine.ledger.finished:
            if not self.clock.step():
                raise RunFailed("the simulation stands still: " + "; ".join(self.machine.ledger.waiting()[:3]))

    def _pools(self, before: dict[str, tuple[float, float]]) -> None:
        """What the watch of a real run tells at every heartbeat."""
        now, idle = self.stats.busy_s(self.clock.now), []
        for role, (busy, there) in now.items():
            was_busy, was_there = before[role] if there >= before[role][1] else (0.0, 0.0)  # counted again since
            if there > was_there:
                idle.append((role, round(1 - min(1.0, (busy - was_busy) / (there - was_there)), 3)))
        self._tell(events.Utilization(at=self.clock.now, idle=tuple(idle)))
        self.clock.after(self.config.observe.heartbeat_s, self._pools, now)

    def _tell(self, event: events.Event) -> None:
        if self._driver is None:
            self._handle(event)
        else:
            self._driver.submit(self.times.control_s, self._handle, event)

    def _handle(self, event: events.Event) -> None:
        self._apply(event)
        ledger = self.machine.ledger
        while ledger.admissible() > 0:
            self._admit(ledger.admitted)

    def _apply(self, event: events.Event) -> None:
        commands = self.machine.handle(event)
        self.events += 1
        self.stats.observe(self.clock.now, event, commands)
        if self._log is not None:
            self._log.write(event, commands, self.clock.now)
        self._carry_out(commands)

    def _admit(self, number: int) -> None:
        group = f"p{number}@0"
        self._groups.open(group, number)
        self._apply(events.Admitted(group=group))

    def _carry_out(self, commands: list[messages.Command]) -> None:
        for command in commands:
            match command:
                case messages.Assign():
                    self._assign(command)
                case messages.Train():
                    seconds = self.times.learner.train_s([i.load for i in command.items], ranks=self.config.learner.ranks)
                    self._learner.submit(seconds, self._trained, command.version)
                case messages.Retire():
                    self._groups.close(command.group)
                case messages.Send():
                    self._send(command)
                case messages.Rescore():
                    learner = self.times.learner
                    seconds = learner.token_s * learner.rescore_fraction * sum(command.lengths)
                    self._learner.submit(seconds / learner.speed(self.config.learner.ranks), self._rescore, command)
                case messages.Hire():
                    self._hires.add(command.ticket)
                    self.clock.after(command.delay_s + self.times.engine.start_s, self._hired, command)
                case messages.Dismiss():
                    self._hires.discard(command.ticket)
                case messages.Release():
                    self._release(command)
                case messages.Wait():
                    self.clock.after(command.seconds, self._tell, events.Due(key=command.key))
                case messages.Withdraw():
                    self._withdraw(command)

    # ---- workers ----

    def _hired(self, command: messages.Hire) -> None:
        if command.ticket in self._hires:
            self._hires.discard(command.ticket)
            self._start(command.role, command.ticket)

    def _release(self, command: messages.Release) -> None:
        if command.worker in self._engines:
            self._engines.pop(command.worker).kill()
            self._received(command.worker)
        self._verifiers.pop(command.worker, None)

    def _start(self, role: str, ticket: int = 0) -> None:
        number = self._born[role] = self._born.get(role, -1) + 1
        name = f"{NAMES[role]}-{number}"
        if role == VERIFIERS:
            self._verifiers[name] = Station(self.clock, self._cores, servers=self.config.verifiers.workers)
        else:
            engine = self.config.engine
            self._engines[name] = SimulatedEngine(
                self.clock, self._cores, self.times.engine, max_running=engine.max_running, threads=engine.threads,
                ended=self._ended,
            )  # fmt: skip
            if self.times.engine.mtbf_s:
                self.clock.after(self._chance.expovariate(1 / self.times.engine.mtbf_s), self._fail, name)
            if self.times.engine.kv_tokens:
                self.clock.after(self.config.observe.heartbeat_s, self._beat, name)
        self._tell(events.WorkerUp(role=role, worker=name, ticket=ticket))

    def _fail(self, name: str) -> None:
        engine = self._engines.pop(name, None)
        if engine is None:  # it has left before
            return
        engine.kill()
        self._tell(events.WorkerDown(worker=name, why="simulated failure"))
        for job in [job for job in self.jobs.values() if job.worker == name]:
            self._lose(job, "died")
        self._received(name)

    def _beat(self, name: str) -> None:
        engine = self._engines.get(name)
        if engine is None:
            return
        used, waiting, preempted = engine.pressure()
        if used or waiting or preempted:
            self._tell(events.Pressure(worker=name, kv_used=used, waiting=waiting, preempted=preempted))
        self.clock.after(self.config.observe.heartbeat_s, self._beat, name)

    # ---- tasks ----

    def _assign(self, command: messages.Assign) -> None:
        work = command.work
        assert work is not None, "nobody asks for a worker in a simulation"
        job = SimulatedTask(command.task, command.worker, work, left=len(work.ids))
        self.jobs[job.task] = job
        if isinstance(work, messages.Score):
            for _ in work.ids:
                self._verifiers[command.worker].submit(self._answer_s(), self._answered, job)
            return
        engine = self._engines.get(command.worker)
        if engine is None:  # it has died, and the machine does not know yet
            self._lose(job, "died")
            return
        rows = self._groups.rows(work, (command.worker, engine.cache))
        job.owed = dict.fromkeys(work.ids)
        engine.add([Request(job, row.length, row.context - row.cached, row=row) for row in rows])

    def _ended(self, request: Request) -> None:
        job = request.job
        job.left -= 1
        if not job.ended:  # those that end before it is under way come with it
            self.clock.after(max(self.times.engine.task_s, LINGER_S if job.left else 0.0), self._deliver, job)
        job.ended.append((request, self._engines[job.worker].version))

    def _deliver(self, job: SimulatedTask) -> None:
        if job.over:
            return
        work, ended = job.work, job.ended
        job.ended = []
        for request, _ in ended:
            del job.owed[request.row.id]
        if not job.owed:
            self._close(job)
        self._payloads += 1
        most = self.config.sampling.max_response
        prompt = self._groups.prompt(job.group)
        notes = tuple(
            RolloutSummary(
                id=(row := request.row).id, length=row.length, context=row.context, cached=row.cached, entropy_sum=0.0,
                entropy_error_sum=0.0, finish=Finish.LENGTH if row.context - prompt + row.length >= most else Finish.STOP,
                oldest_version=request.version, newest_version=version,
            )
            for request, version in ended
        )  # fmt: skip
        anchors = None
        if isinstance(work, messages.Sample) and work.trunk and not self._rescored:
            anchors = tuple(anchor for request, _ in ended for anchor in self._groups.anchors(request.row.id))
        key, left = self._payloads, len(job.owed)
        self._tell(events.Delivered(task=job.task, group=job.group, payload=key, notes=notes, anchors=anchors, left=left))

    def _answer_s(self) -> float:
        times = self.times.verifier
        if not times.spread:
            return times.answer_s
        return times.answer_s * math.exp(self._chance.gauss(-(times.spread**2) / 2, times.spread))

    def _answered(self, job: SimulatedTask) -> None:
        job.left -= 1
        if job.left == 0:
            times = self.times.verifier
            call_s = self._chance.choice(times.task_samples) if times.task_samples else times.task_s
            self.clock.after(call_s, self._scored, job)

    def _scored(self, job: SimulatedTask) -> None:
        if job.over:
            return
        self._close(job)
        verdicts = self._groups.verdicts(job.group, job.work.ids)
        self._tell(events.Scored(task=job.task, group=job.group, ids=job.work.ids, verdicts=verdicts))

    def _lose(self, job: SimulatedTask, reason: str, *, counted: bool = True) -> None:
        self._close(job)
        scoring = isinstance(job.work, messages.Score)
        payload = job.work.payload if isinstance(job.work, messages.Score) else -1
        lost = events.Lost(
            task=job.task, group=job.group, ids=job.work.ids if scoring else tuple(job.owed), reason=reason,
            scoring=scoring, payload=payload, counted=counted,
        )  # fmt: skip
        self.clock.after(0.0, self._tell, lost)

    def _close(self, job: SimulatedTask) -> None:
        job.over = True
        del self.jobs[job.task]

    def _withdraw(self, command: messages.Withdraw) -> None:
        jobs = [self.jobs[task] for task in command.tasks if task in self.jobs]
        if command.worker in self._engines:
            self._engines[command.worker].withdraw(set(jobs))
        for job in jobs:
            self._lose(job, "withdrawn", counted=False)

    # ---- the learner and its weights ----

    def _trained(self, version: int) -> None:
        self._learner.submit_first(self.times.learner.export_s, self._exported, version)
        self._tell(events.Trained(version=version))

    def _exported(self, version: int) -> None:
        if self._together:
            self._learner.hold(True)
        self._tell(events.Exported(version=version))

    def _rescore(self, command: messages.Rescore) -> None:
        if command.group not in self._groups:
            return
        anchors = tuple(anchor for id in command.trunks for anchor in self._groups.anchors(id))
        self._tell(events.Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))

    def _send(self, command: messages.Send) -> None:
        if self._together and not command.alone:
            self._receiving = {name for name in command.workers if name in self._engines}
            if not self._receiving:
                self._learner.hold(False)
        for worker in command.workers:
            self.clock.after(self.times.weights.fetch_s, self._load, (worker, command.version))

    def _load(self, what: tuple[str, int]) -> None:
        engine = self._engines.get(what[0])
        if engine is not None:
            clear = self.config.engine.clear_cache_on_update
            engine.load(self.times.weights.pause_s, clear_cache=clear, call=self._loaded, argument=what)

    def _loaded(self, what: tuple[str, int]) -> None:
        worker, version = what
        self._engines[worker].version = version
        self._received(worker)
        self._tell(events.Acked(worker=worker, version=version))

    def _received(self, worker: str) -> None:
        if worker in self._receiving:
            self._receiving.discard(worker)
            if not self._receiving:
                self._learner.hold(False)


def simulate(
    config: Config, model: SystemModel, *, steps: int = 0, seed: int = 0, cores: float = 0, warmup: int = 1, log: EventLog | None = None
) -> SimulationReport:  # fmt: skip
    """Run ``steps`` batches (0: run.steps) of a config on virtual time. Raises ``RunFailed`` like a real run."""
    steps = steps or config.run.steps
    config = replace(config, run=replace(config.run, steps=steps))
    began = time.perf_counter()
    world = World(config, model, seed=seed, cores=cores, warmup=min(warmup, steps - 1), log=log)
    was_on = gc.isenabled()
    gc.disable()  # nothing in a simulation is a cycle, and looking for some among millions of objects takes a quarter of the time
    try:
        world.run()
    finally:
        if was_on:
            gc.enable()
    return world.stats.report(label="simulation", events=world.events, seconds=time.perf_counter() - began)
