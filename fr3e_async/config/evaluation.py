"""Settings of evaluation: during training, and of `fr3e evaluate`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from fr3e_async.config.knobs import knob, require, require_at_least_0, require_positive

PAPER = ("gsm8k", "math500", "minerva", "gaokao2023en", "olympiadbench", "collegemath", "aime24")  # FR3E's table
BENCHMARKS = (*PAPER, "aime25", "amc23", "theoremqa", "deepmath")
GROUPS = {"paper": PAPER, "all": BENCHMARKS}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    problems: int = knob(256, "held-out problems of one evaluation, the same ones each time; 0: all", "problems")
    samples: int = knob(1, "samples for each held-out problem (avg@k)")
    every_tokens: int = knob(
        0,
        "the same by generated tokens of settled groups: an evaluation of the first batch after each such number; 0: none. Curves of "
        "methods whose batches differ in size have equal steps then",
        "tokens",
    )
    every: int = knob(0, "batches between evaluations besides the first and the last; 0: none", "batches")
    temperature: float = knob(1.0, "softmax temperature; 0: greedy")
    top_p: float = knob(1.0, "nucleus mass")
    suite: list[str] = knob(
        [], f"benchmarks that are evaluated besides data.heldout (docs/evaluation.md): {', '.join(BENCHMARKS)}; or paper, or all"
    )
    paths: dict[str, str] = knob(
        {},
        "where a benchmark lies instead of the Hugging Face hub: evaluation.paths.aime24=FILE (JSONL or Parquet); empty: the hub",
    )
    suite_samples: int = knob(0, "samples for each problem of a benchmark; 0: the benchmark's own k")
    suite_problems: int = knob(0, "problems of each benchmark, the same ones each time; 0: all", "problems")
    share: float = knob(
        0.5, "part of the generators' room that a benchmark takes at most while the run trains; the rest stays with training"
    )
    before: bool = knob(True, "evaluate before training too; engines keep the first weights until that is done")
    texts: int = knob(1, "responses of each problem whose text is kept, the first ones", "samples")
    results_mib: int = knob(64, "kept of the benchmarks' results by problem (evaluations/); older ones go; 0: none", "MiB")

    def __post_init__(self) -> None:
        require_positive("evaluation", samples=self.samples)
        require_at_least_0(
            "evaluation", problems=self.problems, every=self.every, every_tokens=self.every_tokens, temperature=self.temperature, suite_samples=self.suite_samples,
            suite_problems=self.suite_problems, texts=self.texts, results_mib=self.results_mib,
        )  # fmt: skip
        require(0 < self.top_p <= 1, f"evaluation.top_p must be in (0, 1], got {self.top_p}")
        require(0 < self.share <= 1, f"evaluation.share must be in (0, 1], got {self.share}")
        for name in self.suite:
            require(
                name in BENCHMARKS or name in GROUPS,
                f"evaluation.suite: unknown benchmark {name!r}{_near(name, *BENCHMARKS, *GROUPS)}",
            )
        for name in self.paths:
            require(name in BENCHMARKS, f"evaluation.paths: unknown benchmark {name!r}{_near(name, *BENCHMARKS)}")

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The names in ``suite``, groups written out, each once."""
        return tuple(dict.fromkeys(one for name in self.suite for one in GROUPS.get(name, (name,))))


def _near(name: str, *known: str) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", ""), known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else f"; there are {', '.join(known)}"
