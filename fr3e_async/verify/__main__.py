"""``python -m fr3e_async.verify CASES.jsonl``: judge gold/prediction pairs by the judge and limits of a run, and print tables.

``--explain ANSWER REFERENCE`` prints what the judge compares, the rules that decided, and what the last one proves; without limits.

Each line of the file is an object with ``gold`` and ``prediction``, and perhaps ``kind`` (full: a whole response; bare: an answer
alone; raw: text with an answer somewhere), ``correct`` (a label), ``source``, ``label_by``, ``category``, ``id`` and ``problem``. Where a
run demands a box, ``answers.answer_of`` takes other statements of an answer as well. ``--reward`` and ``--rewards`` are the settings of a
run: whole responses then go to the functions, with ``length`` and ``finish`` of the line, and its further fields as columns of the row. Exit
codes: 0 done, 1 failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from fr3e_async.config import RewardConfig, VerifierPoolConfig
from fr3e_async.config.reward import check_rewards, reward_terms
from fr3e_async.errors import ConfigError, RunFailed, StorageError, UserError, printable
from fr3e_async.types import Verdict
from fr3e_async.verify import answers
from fr3e_async.verify.cases import JudgedCase, LabelledCase, read_cases, report
from fr3e_async.verify.pool import Question, VerifierPool, bare_gold
from fr3e_async.verify.rewards import MATH, check_reward


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Every error that a person can mend is one line on stderr."""
    try:
        args = arguments(argv)
        return score(args) if args.explain is None else explain(*args.explain)
    except (UserError, RunFailed) as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m fr3e_async.verify", description="Judge gold/prediction pairs by the judge and limits of a run."
    )
    parser.add_argument("cases", type=Path, nargs="?", metavar="CASES.jsonl", help="one object a line with gold and prediction")
    parser.add_argument(
        "--explain", nargs=2, metavar=("ANSWER", "REFERENCE"), help="print the rules that judge one pair, and their proof"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a row for each case: id, outcome, reason, time, …")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="killable processes (default 2)")
    parser.add_argument("--reward", default=MATH, help="'math' (default) or package.module:function, as in a run")
    parser.add_argument(
        "--rewards", type=_entries, default=[], metavar="JSON", help="the setting rewards as a JSON list of objects"
    )
    parsed = parser.parse_args(argv)
    check_rewards(parsed.reward, parsed.rewards)
    if (parsed.cases is None) is (parsed.explain is None):
        raise ConfigError("one of CASES.jsonl and --explain ANSWER REFERENCE is expected")
    return parsed


def _entries(text: str) -> list[RewardConfig]:
    try:
        return [RewardConfig(**entry) for entry in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f'--rewards must be a JSON list like [{{"function": "rewards:form", "weight": 0.5}}]: {error}'
        ) from error


def explain(answer: str, reference: str) -> int:
    """Print both texts as they are compared, each rule that decided, the innermost first, and the proof of the last one."""
    from fr3e_async.verify import judge, rulings, tokens  # which load sympy

    pair = answers.strip_dollars(answers.final_answer(answer) or answer), bare_gold(reference)
    told: list[str] = []
    rulings.trace = told
    outcome, reason = judge.judge(*pair)
    rulings.trace = None
    name = told[-1].partition(":")[0] if told else ""
    proofs = [" ".join((rule.__doc__ or "").partition(">>>")[0].split()) for rule in judge.RULES if rule.__name__ == name]
    said, meant = (tokens.render(tokens.tokenise(text)) for text in pair)
    print(printable("\n".join([f"answer:    {said}", f"reference: {meant}", *told, f"{outcome}: {reason}", *proofs])))
    return 0


def score(args: argparse.Namespace) -> int:
    config = VerifierPoolConfig(workers=args.workers)
    terms = reward_terms(args.reward, args.rewards)
    cases = read_cases(args.cases)
    for term in terms:
        check_reward(term.function, batch=term.batch, columns=sorted({name for case in cases for name in case.columns}))
    if args.json is not None:
        write(args.json, [])  # before the work and not after it, should it not be possible
    started = time.monotonic()
    judged = judge_cases(cases, config, terms)
    seconds = time.monotonic() - started
    math_alone = [term.function for term in terms] == [MATH]
    print(printable(report(judged, rewards=not math_alone)))  # it quotes sources and categories of the file
    print(f"\n{len(cases)} cases in {seconds:.1f} s, {len(cases) / seconds:.0f} a second, {args.workers} worker(s)")
    if args.json is not None:
        write(args.json, judged)
    return 0


def judge_cases(
    cases: Sequence[LabelledCase], config: VerifierPoolConfig, terms: Sequence[RewardConfig] = reward_terms(MATH, ())
) -> list[JudgedCase]:
    """One case after another for each worker, so that the time of a case is its own; where a function takes batches, it is the mean."""
    with VerifierPool(config, terms) as pool:
        math_alone = [term.function for term in terms] == [MATH]
        if math_alone:  # the first case shall not wait for imports
            pool.judge_answer("\\frac12", "0.5")

        def one(case: LabelledCase) -> JudgedCase:
            started = time.perf_counter()
            verdict = _verdict(pool, case) if math_alone else pool.judge(*_question(case))
            return JudgedCase(case=case, verdict=verdict, time_s=time.perf_counter() - started)

        if any(term.batch for term in terms):
            started = time.perf_counter()
            verdicts = asyncio.run(pool.judge_many(map(_question, cases)))
            each = (time.perf_counter() - started) / len(cases)
            return [JudgedCase(case=case, verdict=verdict, time_s=each) for case, verdict in zip(cases, verdicts, strict=True)]
        with ThreadPoolExecutor(config.workers) as threads:
            return list(threads.map(one, cases))


def _verdict(pool: VerifierPool, case: LabelledCase) -> Verdict:
    return pool.judge_answer(answers.answer_of(case.prediction, case.kind), answers.gold_of(case.gold, case.kind))


def _question(case: LabelledCase) -> Question:
    return Question(case.prediction, case.gold, case.problem, length=case.length, finish=case.finish, columns=case.columns)


def write(path: Path, judged: Sequence[JudgedCase]) -> None:
    """The rows as one JSON list. Raises ``StorageError``."""
    try:
        path.write_text(json.dumps([one.row() for one in judged], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error}); see --json") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
