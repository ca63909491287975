"""The prompt groups of a simulation: what their rollouts will be, and what engines have of them in their caches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fr3e_async.algorithm.strategies import GroupPlan
from fr3e_async.config import Config
from fr3e_async.machine.messages import Branch, Sample, Work, group_of
from fr3e_async.outcomes import Outcome
from fr3e_async.simulate.engine import Request
from fr3e_async.simulate.workload import MeasuredAnswer, Tree, Workload
from fr3e_async.types import Anchor, RolloutId, Verdict

BLOCK = 16  # tokens of a key-value block where engine.block_size leaves it to the engine
VERDICTS = {
    True: Verdict(outcome=Outcome.CORRECT, reason="simulated"),
    False: Verdict(outcome=Outcome.WRONG, reason="simulated"),
    None: Verdict(outcome=Outcome.UNKNOWN, reason="simulated"),
}
Home = tuple[str, int]  # an engine, and the state of its cache


@dataclass(frozen=True, slots=True)
class SimulatedRow:
    """One rollout of a simulated task; all lengths are in tokens."""

    id: RolloutId
    length: int
    context: int
    cached: int  # of the context


@dataclass(slots=True)
class SimulatedGroup:
    tree: Tree
    answers: dict[RolloutId, MeasuredAnswer] = field(default_factory=dict)
    positions: dict[int, list[int]] = field(default_factory=dict)  # token positions of the anchors, by base
    prompt_at: set[Home] = field(default_factory=set)
    base_at: set[tuple[Home, int]] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class SimulatedTask:
    """A task that a simulated worker holds, and what it still owes the driver."""

    task: int
    worker: str
    work: Work
    left: int  # rollouts or answers that have not ended
    ended: list[tuple[Request, int]] = field(default_factory=list)  # with the weights at their ends: on their way to the driver
    owed: dict[RolloutId, None] = field(default_factory=dict)  # rollouts that have not been delivered
    over: bool = False

    @property
    def group(self) -> str:
        return group_of(self.work)


class Groups:
    """Holds the open groups by name and draws their trees, lengths and answers from the workload."""

    def __init__(self, config: Config, plan: GroupPlan, workload: Workload, *, seed: int) -> None:
        self._workload, self._seed, self._plan = workload, seed, plan
        self._max_response = config.sampling.max_response
        self._min_gap = plan.rule.min_gap if plan.rule else 1
        self._caching, self._block = config.engine.prefix_caching, config.engine.block_size or BLOCK
        self._open: dict[str, SimulatedGroup] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def open(self, name: str, number: int) -> None:
        """``number``: groups before it, over the whole run."""
        self._open[name] = SimulatedGroup(self._workload.tree(self._seed, number, max_response=self._max_response))

    def close(self, name: str) -> None:
        del self._open[name]

    def prompt(self, name: str) -> int:
        """Return the length of the group's prompt, in tokens."""
        return self._open[name].tree.prompt

    def verdicts(self, name: str, ids: Sequence[RolloutId]) -> tuple[Verdict, ...]:
        answers = self._open[name].answers
        return tuple(VERDICTS[answers[id].correct] for id in ids)

    def anchors(self, trunk: RolloutId) -> list[Anchor]:
        group, first = self._open[trunk.group], trunk.branch * self._plan.anchors
        positions = group.positions.get(trunk.branch)
        if positions is None:
            positions = group.tree.positions(trunk.branch, count=self._plan.anchors, min_gap=self._min_gap)
            group.positions[trunk.branch] = positions
        return [
            Anchor(node=first + j, parent=first + j - 1 if j > 1 else 0, trunk=trunk.branch, position=position, score=0.0)
            for j, position in enumerate(positions, start=1)
        ]

    def rows(self, work: Sample | Branch, home: Home) -> list[SimulatedRow]:
        """The rollouts of a task as an engine gets them."""
        if isinstance(work, Sample):
            return self._sampled(work, home)
        return self._branched(work, home)

    def _sampled(self, work: Sample, home: Home) -> list[SimulatedRow]:
        group = self._open[work.ids[0].group]
        known = group.tree.prompt if home in group.prompt_at else 0
        group.prompt_at.add(home)
        group.base_at.update((home, id.branch) for id in work.ids)
        for id in work.ids:
            group.answers[id] = group.tree.base(id.branch)
        return self._with_cache(group, [(id, group.tree.prompt) for id in work.ids], known)

    def _branched(self, work: Branch, home: Home) -> list[SimulatedRow]:
        """Draw branches, the longest context first as the rollout worker does. The prefix cache keeps all until new weights come."""
        group, base = self._open[work.group], work.trunk.branch
        positions = {anchor.node: (number, anchor.position) for number, anchor in enumerate(self.anchors(work.trunk))}
        for id in work.ids:
            if id not in group.answers:
                group.answers[id] = group.tree.branch(base, *positions[id.node])
        order = sorted(work.ids, key=lambda id: (-positions[id.node][1], id))
        contexts = [(id, group.tree.prompt + positions[id.node][1]) for id in order]
        known = group.tree.prompt if home in group.prompt_at else 0
        if (home, base) in group.base_at:
            known = contexts[0][1]
        group.prompt_at.add(home)
        group.base_at.add((home, base))
        return self._with_cache(group, contexts, known)

    def _with_cache(self, group: SimulatedGroup, contexts: list[tuple[RolloutId, int]], known: int) -> list[SimulatedRow]:
        """What one request computes is there for the next ones, in whole blocks; the last token is always computed."""
        rows = []
        for id, context in contexts:
            cached = min(known, context - 1) // self._block * self._block if self._caching else 0
            rows.append(SimulatedRow(id, group.answers[id].length, context, cached))
            known = max(known, context)
        return rows
