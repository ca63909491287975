"""How long things take: the numbers that a simulation runs on, all in seconds of work on a device of one's own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from fr3e_async.algorithm.batching import RowCost, tree_tokens
from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading, write_atomically
from fr3e_async.simulate.workload import LogNormalWorkload, MeasuredWorkload, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    step_s: float  # a: one decode step, whatever the load
    request_s: float  # b: more for each running request
    prefill_s: float  # c: for each context token that is not in the prefix cache
    task_s: float = 0.0  # from a task's last token to the control loop, and the way there: nobody is busy meanwhile
    kv_tokens: int = 0  # key-value cache; 0: without end
    start_s: float = 60.0  # from Replace to WorkerUp
    mtbf_s: float = 0.0  # mean time between failures of one engine; 0: none fails


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierTimes:
    answer_s: float  # mean, for one answer in one process
    spread: float = 0.0  # σ of its logarithm (log-normal); 0: always the mean
    task_s: float = 0.0  # for a call there and back, however many answers are in it; nobody is busy meanwhile
    task_samples: tuple[float, ...] = ()  # the same, to be drawn from; a batch waits for its slowest call


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerTimes:
    fixed_s: float  # a batch, however small
    token_s: float  # each token that one rank computes: trained ones, and contexts once a group
    scaling: float = 1.0  # what of a doubling of ranks becomes speed: 1 all, 0.5 none
    export_s: float = 0.0  # gathering new weights
    rescore_fraction: float = 1 / 3  # of token_s, for a token that is only re-scored: a forward pass

    def speed(self, ranks: int) -> float:
        """Of a group of ranks, in ranks: ranks · scaling^log2(ranks)."""
        return ranks * self.scaling ** math.log2(ranks)

    def train_s(self, loads: Sequence[RowCost], *, ranks: int) -> float:
        """Rows of one batch. Ranks are taken as evenly loaded."""
        return self.fixed_s + self.token_s * batch_tokens(loads) / self.speed(ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTimes:
    fetch_s: float = 0.0  # an engine gets the weights while it generates; all engines at once
    pause_s: float = 0.0  # it stands still to load them


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The service times of all parts of a system. ``control_s``: seconds that the control loop itself takes for one event."""

    engine: EngineTimes
    verifier: VerifierTimes
    learner: LearnerTimes
    weights: WeightTimes = field(default_factory=WeightTimes)
    control_s: float = 0.0


def batch_tokens(loads: Sequence[RowCost]) -> int:
    """What a batch costs the learner, in tokens: every completion, and the longest context of each group once."""
    groups: dict[int, list[RowCost]] = {}
    for load in loads:
        groups.setdefault(load.group, []).append(load)
    return sum(map(tree_tokens, groups.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemModel:
    """What a simulation knows of a system: service times and what prompts are like. ``source`` says where from."""

    service: Service
    workload: Workload
    source: str = "given"

    def save(self, path: Path) -> None:
        data = msgspec.json.encode({"service": self.service, "workload": self.workload, "source": self.source})
        write_atomically(path, msgspec.json.format(data, indent=1).decode() + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that ``save`` wrote. Raises ``StorageError`` (one line) where it is missing or has other content."""
        with reading(path):
            content = path.read_bytes().replace(b'"right', b'"correct')  # the word of older files
        try:
            read = msgspec.json.decode(content, type=_File)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageError(f"{path}: no service times of a simulation ({error})") from error
        return cls(service=read.service, workload=read.workload, source=read.source)


class _File(msgspec.Struct):
    """The JSON layout of the file that ``SystemModel.save`` writes and ``load`` reads."""

    service: Service
    workload: LogNormalWorkload | MeasuredWorkload
    source: str
