"""Settings of evaluation: during training, and of `fr3e evaluate`."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from fr3e_async.config.knobs import Share, did_you_mean, knob, require, settings

PAPER = ("gsm8k", "math500", "minerva", "gaokao2023en", "olympiadbench", "collegemath", "aime24")  # FR3E's table
BENCHMARKS = (*PAPER, "aime25", "amc23", "theoremqa", "deepmath")
GROUPS = {"paper": PAPER, "all": BENCHMARKS}


@settings("evaluation")
class EvaluationConfig:
    problems: NonNegativeInt = knob(256, "held-out problems of one evaluation, the same ones each time; 0: all", "problems")
    samples: PositiveInt = knob(1, "samples for each held-out problem (avg@k)")
    every_tokens: NonNegativeInt = knob(
        0, "generated tokens between evaluations, an axis for methods of unequal batches; 0: none", "tokens"
    )
    every: NonNegativeInt = knob(0, "steps between evaluations besides the first and the last; 0: none", "steps")
    temperature: NonNegativeFloat = knob(1.0, "softmax temperature; 0: greedy")
    top_p: Share = knob(1.0, "nucleus mass")
    suite: list[str] = knob(
        [], f"benchmarks to evaluate besides data.heldout (docs/evaluation.md): {', '.join(BENCHMARKS)}; or paper, or all"
    )
    paths: dict[str, str] = knob(
        {}, "a file for a benchmark in place of the hub: evaluation.paths.aime24=FILE (JSONL or Parquet)"
    )
    suite_samples: NonNegativeInt = knob(0, "samples for each problem of a benchmark; 0: the benchmark's own k")
    suite_problems: NonNegativeInt = knob(0, "problems of each benchmark, the same ones each time; 0: all", "problems")
    share: Share = knob(0.5, "largest part of the generators that a benchmark takes from training")
    before: bool = knob(True, "evaluate before training too; engines keep the first weights until that is done")
    texts: NonNegativeInt = knob(1, "responses of each problem whose text is kept, the first ones", "samples")
    results_mib: NonNegativeInt = knob(64, "benchmark results by problem to keep in evaluations/; older ones go; 0: none")

    def __post_init__(self) -> None:
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
    return did_you_mean(name.lower().replace("-", ""), known) or f"; there are {', '.join(known)}"
