"""What a learner rank is started with: its settings, its process environment, the group's address, its progress counter.

Knows nothing of torch or DeepSpeed, so that the process that starts the ranks need not load them.
"""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fr3e_async.config import CriticConfig, LearnerConfig, LossConfig

T = TypeVar("T")
REDUCE_BUCKET = 1 << 25  # gradients that are reduced at once: 64 MiB in bfloat16, whatever the model's size
SLICE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}  # logits made at once: on a CPU a slice stays in its cache


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """Everything a rank needs but its number. Equal for all ranks of a group.

    Example: ``LearnerSpec(path="Qwen/Qwen2.5-7B", learner=config.learner, loss=config.loss, temperature=1.0, max_staleness=1)``.
    """

    path: str  # local Hugging Face folder or hub id
    learner: LearnerConfig
    loss: LossConfig
    critic: CriticConfig | None = None  # a value model beside the policy makes the advantages, from rewards in their place
    optimizer_from: str = ""  # a checkpoint of another run that a group without one of its own starts from, as version 0
    revision: str = ""
    trust_remote_code: bool = False
    temperature: float = 1.0  # of the sampler: log-probs are of softmax(logits / temperature)
    max_staleness: int | None = None  # versions; an older token stops the run. None: not checked here
    batches: int = 1  # of the whole run: where learner.lr_schedule ends
    overrides: dict[str, Any] = field(default_factory=dict)  # values of the model's config that are others than in its folder
    longest: int | None = None  # tokens of a row, context and completion; None: not known
    seed: int = 0
    dump_folder: str = ""  # where a step that must not be taken is written to; empty: nowhere
    verbose: bool = False  # let the libraries' own logs through


def rank_environment(spec: LearnerSpec) -> dict[str, str]:
    """Environment variables of a rank's process. They must be set before torch and DeepSpeed are imported."""
    environment = {"OMP_NUM_THREADS": str(spec.learner.threads), "TOKENIZERS_PARALLELISM": "false"}
    if spec.learner.gpus == 0:
        # DeepSpeed's ZeRO imports an optimiser that runs torch.compile at import: seconds of CPU for nothing.
        environment |= {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    if not spec.verbose:
        environment |= {
            "DEEPSPEED_LOG_LEVEL": "error",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONWARNINGS": "ignore",
        }
    return environment


def free_address(host: str) -> tuple[str, int]:
    """``host`` and a TCP port that is free there now, for the group's rendezvous. Call it on rank 0's machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return host, probe.getsockname()[1]


class Pulse:
    """A count of what a rank has done, by which the watchdog tells slow from stuck.

    One for each micro-batch pass, optimiser step, gathered bucket of weights and piece written. One thread counts, any may read.
    """

    def __init__(self) -> None:
        self.count = 0

    def beat(self) -> None:
        self.count += 1

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, with a beat after each one that was dealt with."""
        for item in items:
            yield item
            self.beat()
