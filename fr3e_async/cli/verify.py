"""``fr3e verify``: judge pairs of reference answer and prediction as a run would, and print tables."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fr3e_async.cli.words import UserPath, show
from fr3e_async.errors import ConfigError, StorageError, printable

if TYPE_CHECKING:
    from fr3e_async.config import RewardConfig
    from fr3e_async.verify.cases import JudgedCase

MATH = "math"


@click.command()
@click.argument("cases", metavar="CASES.jsonl", required=False, type=UserPath())
@click.option(
    "--explain", nargs=2, metavar="ANSWER REFERENCE", help="Print the rules that judge one pair, and their proof; without limits."
)
@click.option("--json", "rows", type=UserPath(), metavar="OUT", help="Write a row for each case: id, outcome, reason, time, …")
@click.option("--workers", type=int, default=2, metavar="N", help="Killable processes (default 2).")
@click.option("--reward", default=MATH, metavar="NAME", help="'math' (default) or package.module:function, as in a run.")
@click.option("--rewards", default="[]", metavar="JSON", help="The setting rewards as a JSON list of objects.")
def verify(
    cases: Path | None, explain: tuple[str, str] | None, rows: Path | None, workers: int, reward: str, rewards: str
) -> int:  # fmt: skip
    """Judge gold/prediction pairs of a file.

    Judge and limits are those of a run. Each line of CASES.jsonl is an object with gold (the reference answer) and prediction,
    and perhaps kind (full: a whole response; bare: an answer alone; raw: text with an answer somewhere), correct (a label), source,
    label_by, category, id and problem. With --reward and --rewards these functions get whole responses, with length and finish of
    the line, and its further fields as columns of the row.
    """
    from fr3e_async.config.reward import check_rewards, reward_terms

    entries = _entries(rewards)
    check_rewards(reward, entries)
    if explain is not None and cases is None:
        show(printable(explanation(*explain)))
    elif cases is not None and explain is None:
        score(cases, reward_terms(reward, entries), rows=rows, workers=workers)
    else:
        raise ConfigError("one of CASES.jsonl and --explain ANSWER REFERENCE is expected; see fr3e verify --help")
    return 0


def _entries(text: str) -> list[RewardConfig]:
    from fr3e_async.config import RewardConfig

    try:
        return [RewardConfig(**entry) for entry in json.loads(text)]
    except ConfigError as error:
        raise ConfigError(f"--rewards: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f'--rewards must be a JSON list like [{{"function": "rewards:form", "weight": 0.5}}]: {error}'
        ) from error


def explanation(answer: str, reference: str) -> str:
    """Both texts as they are compared, each rule that decided, the innermost first, and the proof of the last one."""
    from fr3e_async.verify import answers, judge, rulings, tokens
    from fr3e_async.verify.pool import bare_reference

    pair = answers.strip_dollars(answers.final_answer(answer) or answer), bare_reference(reference)
    told: list[str] = []
    rulings.trace = told
    outcome, reason = judge.judge(*pair)
    rulings.trace = None
    name = told[-1].partition(":")[0] if told else ""
    proofs = [" ".join((rule.__doc__ or "").partition(">>>")[0].split()) for rule in judge.RULES if rule.__name__ == name]
    said, meant = (tokens.render(tokens.tokenise(text)) for text in pair)
    return "\n".join([f"answer:    {said}", f"reference: {meant}", *told, f"{outcome}: {reason}", *proofs])


def score(path: Path, terms: Sequence[RewardConfig], *, rows: Path | None, workers: int) -> None:
    """Judge all cases of a file and print the tables. ``rows``: where to write a row for each case."""
    from fr3e_async.config import VerifierPoolConfig
    from fr3e_async.verify.cases import judge_cases, read_cases, report
    from fr3e_async.verify.rewards import check_reward

    config = VerifierPoolConfig(workers=workers)
    cases = read_cases(path)
    for term in terms:
        check_reward(term.function, batch=term.batch, columns=sorted({name for case in cases for name in case.columns}))
    if rows is not None:
        write(rows, [])  # before the work and not after it, should it not be possible
    started = time.monotonic()
    judged = judge_cases(cases, config, terms)
    seconds = time.monotonic() - started
    show(
        printable(report(judged, rewards=[term.function for term in terms] != [MATH]))
    )  # it quotes sources and categories of the file
    show(f"\n{len(cases)} cases in {seconds:.1f} s, {len(cases) / seconds:.0f} a second, {workers} worker(s)")
    if rows is not None:
        write(rows, judged)


def write(path: Path, judged: Sequence[JudgedCase]) -> None:
    """Write a row for each judged case as one JSON list. Raises ``StorageError``."""
    try:
        path.write_text(json.dumps([one.row() for one in judged], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error}); see --json") from error
