"""The benchmarks: where each is published, its columns, how its reference answers are written, how often it is sampled. Facts only.

A column may have several names, since the same benchmark is published in several forms; the first that a row has counts.
Knows nothing of files: ``suite`` reads them.
"""

from dataclasses import dataclass
from typing import Literal

from fr3e_async.config.evaluation import BENCHMARKS as NAMES

ReferenceFormat = Literal["plain", "gsm8k", "olympiadbench", "theoremqa"]
Chosen = Literal["all", "without_picture", "held_out_part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark: its source, columns and samples per problem. *Example*: ``BENCHMARKS["aime24"].k`` is 16."""

    name: str
    title: str
    hub: str  # Hugging Face dataset id
    config: str = ""
    split: str = "test"
    revision: str = ""  # commit on the hub; "": the newest, and the results' digest says which problems it held
    problem: tuple[str, ...] = ("question", "problem")  # names of the column with the question
    answer: tuple[str, ...] = ("answer",)  # with the answer, or with a solution whose last box holds it
    uid: tuple[str, ...] = ("id",)
    reference: ReferenceFormat = "plain"
    chosen: Chosen = "all"
    k: int = 1  # samples of each problem
    problems: int  # as published, after ``chosen``; 0: it depends on the file
    citation: str
    licence: str


_ALL = (
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        hub="openai/gsm8k",
        config="main",
        revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        reference="gsm8k",
        problems=1319,
        citation="Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv:2110.14168",
        licence="MIT",
    ),
    Benchmark(
        name="math500",
        title="MATH-500",
        hub="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        problem=("problem",),
        answer=("answer", "solution"),
        uid=("unique_id", "id"),
        problems=500,
        citation="Hendrycks et al. 2021, arXiv:2103.03874; the 500 of Lightman et al. 2023, Let's Verify Step by Step, arXiv:2305.20050",
        licence="MATH is MIT; the problems are of competitions, whose owners may think otherwise",
    ),
    Benchmark(
        name="minerva",
        title="Minerva Math",
        hub="math-ai/minervamath",
        answer=("answer", "solution"),
        problems=272,
        citation="Lewkowycz et al. 2022, Solving Quantitative Reasoning Problems with Language Models, arXiv:2206.14858 (OCWCourses)",
        licence="MIT OpenCourseWare material (CC BY-NC-SA); the copies on the hub declare different licences",
    ),
    Benchmark(
        name="gaokao2023en",
        title="Gaokao 2023 (English)",
        hub="MARIO-Math-Reasoning/Gaokao2023-Math-En",
        split="train",
        problems=385,
        citation="Liao et al. 2024, MARIO: MAth Reasoning with code Interpreter Output, arXiv:2401.08190",
        licence="not declared",
    ),
    Benchmark(
        name="olympiadbench",
        title="OlympiadBench (open-ended, text-only, mathematics, English)",
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        answer=("final_answer", "answer"),
        reference="olympiadbench",
        problems=674,
        citation="He et al. 2024, OlympiadBench, arXiv:2402.14008",
        licence="MIT (repository), Apache-2.0 (hub)",
    ),
    Benchmark(
        name="collegemath",
        title="CollegeMath",
        hub="di-zhang-fdu/College_Math_Test",
        uid=("id", "question_number"),
        problems=2818,
        citation="Tang et al. 2024, MathScale, arXiv:2403.02884",
        licence="by row, from textbooks (Creative Commons, GFDL and others); for research only",
    ),
    Benchmark(
        name="aime24",
        title="AIME 2024",
        hub="HuggingFaceH4/aime_2024",
        split="train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        problem=("problem", "Problem", "question"),
        answer=("answer", "Answer", "solution", "Solution"),
        uid=("id", "ID"),
        k=16,
        problems=30,
        citation="Mathematical Association of America, AIME I and II 2024",
        licence="problems © MAA",
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        hub="math-ai/aime25",
        problem=("problem", "Problem", "question"),
        answer=("answer", "Answer", "solution", "Solution"),
        uid=("id", "ID"),
        k=16,
        problems=30,
        citation="Mathematical Association of America, AIME I and II 2025",
        licence="problems © MAA",
    ),
    Benchmark(
        name="amc23",
        title="AMC 2023",
        hub="math-ai/amc23",
        k=16,
        problems=40,
        citation="Mathematical Association of America, AMC 12 2023, with whole numbers for choices",
        licence="problems © MAA",
    ),
    Benchmark(
        name="theoremqa",
        title="TheoremQA (without pictures)",
        hub="TIGER-Lab/TheoremQA",
        problem=("Question", "question", "problem"),
        answer=("Answer", "answer"),
        reference="theoremqa",
        chosen="without_picture",
        problems=747,
        citation="Chen et al. 2023, TheoremQA: A Theorem-driven Question Answering Dataset, arXiv:2305.12524",
        licence="MIT",
    ),
    Benchmark(
        name="deepmath",
        title="DeepMath (held-out part)",
        hub="zwhe99/DeepMath-103K",
        split="train",
        revision="5cf055d1fe3d7a2eb19719ac020211469736ae44",
        answer=("final_answer", "answer"),
        chosen="held_out_part",
        problems=0,
        citation="He et al. 2025, DeepMath-103K, arXiv:2504.11456",
        licence="MIT",
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
assert tuple(BENCHMARKS) == NAMES
