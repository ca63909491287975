"""Pairs a second of the verifier pool against bare math-verify in one process, on the same pairs.

    python benchmarks/verifier.py [--quick] [--cases FILE] [--json OUT]

bare     gold and answer parsed in a box, then ``verify``; its own time-outs off, no limits; a fresh process
same     the pool with that very work as its reward: what limits, processes and the way there and back cost. Goal: 0.9 of bare
         for each worker
judge    the pool as a run uses it: the project's judge, which settles many pairs without math-verify and keeps parsed golds.
         Goal: 1.8 of bare for each worker

All are warm, none sees a pair twice, and no pair is of plain integers, which the pool compares without a process. The ratio of CPU
time, of all processes of a pool, stands beside that of the rate: it holds on a machine that is busy with other things as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import cpu_s, finish, machine, parser
from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of each time-out that is off
GOALS = {"same": 0.9, "judge": 1.8}  # times bare math-verify, per worker
TICK = 1 / os.sysconf("SC_CLK_TCK")  # CPU time is counted in these: a short run may have none
Pairs = list[tuple[str, str]]  # (answer, gold)


def generated(groups: int, rollouts: int, seed: int) -> Pairs:
    """``rollouts`` answers to each of ``groups`` golds, all pairs different; about half are right, most in another form."""
    source = random.Random(seed)
    pairs: Pairs = []
    while len(pairs) < groups * rollouts:
        a, b, c = source.randint(2, 97), source.randint(2, 97), source.randint(2, 97)
        gold, form = source.choice(SHAPES)
        wrongs = [source.randint(0, 1) * (i + 1) for i in range(rollouts)]
        pairs += [(form(a, b + wrong, c, i), gold(a, b, c)) for i, wrong in enumerate(wrongs)]
    return list(dict.fromkeys(pairs))


Gold = Callable[[int, int, int], str]
Form = Callable[[int, int, int, int], str]  # the last number makes equal answers look different
SHAPES: list[tuple[Gold, Form]] = [
    (lambda a, b, c: rf"\frac{{{a}}}{{{b}}}", lambda a, b, c, i: rf"\frac{{{a * (i + 2)}}}{{{b * (i + 2)}}}"),
    (lambda a, b, c: rf"{a}\sqrt{{{b}}}", lambda a, b, c, i: rf"\frac{{{a}\sqrt{{{b * (i + 2) ** 2}}}}}{{{i + 2}}}"),
    (lambda a, b, c: f"x^2+{a + b}x+{a * b}", lambda a, b, c, i: rf"\frac{{{i + 2}(x+{a})(x+{b})}}{{{i + 2}}}"),
    (
        lambda a, b, c: rf"\left({a},\frac{{{b}}}{{{c}}}\right)",
        lambda a, b, c, i: rf"({a}, \frac{{{b * (i + 2)}}}{{{c * (i + 2)}}})",
    ),
    (
        lambda a, b, c: rf"\{{{a},\sqrt{{{b}}}\}}",
        lambda a, b, c, i: rf"\{{\frac{{\sqrt{{{b * (i + 2) ** 2}}}}}{{{i + 2}}},{a}\}}",
    ),
    (lambda a, b, c: rf"\frac{{{b}\pi}}{{{a}}}", lambda a, b, c, i: rf"\frac{{{b * (i + 2)}}}{{{a * (i + 2)}}}\pi"),
    (lambda a, b, c: f"{a / 100 + b}", lambda a, b, c, i: rf"\frac{{{(a + 100 * b) * (i + 2)}}}{{{100 * (i + 2)}}}"),
    (lambda a, b, c: rf"(-\infty,\frac{{{b}}}{{{a}}}]", lambda a, b, c, i: rf"x \le \frac{{{b * (i + 2)}}}{{{a * (i + 2)}}}"),
]


def warm_up() -> Pairs:
    """Enough that each of a few workers sees all shapes."""
    return generated(60, 1, seed=10**6)


def from_file(path: Path) -> Pairs:
    """Pairs of a JSONL file with ``gold`` and ``prediction``, as ``fr3e verify`` reads it."""
    from fr3e_async.verify import answers
    from fr3e_async.verify.pool import bare_reference

    pairs: Pairs = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        answer = answers.answer_of(row["prediction"], row.get("kind", "full"))
        gold = bare_reference(row["gold"])
        answer = None if answer is None else answers.strip_dollars(answer)
        if answer and answers.quick_verdict(answer, gold, max_chars=2000) is None:
            pairs.append((answer, gold))
    random.Random(0).shuffle(pairs)
    return list(dict.fromkeys(pairs))


class Run(NamedTuple):
    wall_s: float
    cpu_s: float
    right: int


def equal(answer: str, gold: str, prompt: str = "") -> bool:
    """Bare math-verify on one pair; as a reward it is what the pool called ``same`` does."""
    meant, said = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer))
    return bool(verify(meant, said, timeout_seconds=None))


def bare() -> None:
    """The peer, in a process of its own: pairs as JSON on stdin, a ``Run`` on stdout."""
    warm, pairs = json.load(sys.stdin)
    for pair in warm:
        equal(*pair)
    started, used = time.perf_counter(), cpu_s()
    count = sum(equal(*pair) for pair in pairs)
    print(json.dumps(Run(time.perf_counter() - started, cpu_s() - used, count)))


def run_bare(pairs: Pairs) -> Run:
    command = [sys.executable, __file__, "--bare"]
    done = subprocess.run(
        command, input=json.dumps([warm_up(), pairs]), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return Run(*json.loads(done.stdout))


def run_pool(pairs: Pairs, judge: str, workers: int) -> Run:
    from fr3e_async.config import VerifierPoolConfig
    from fr3e_async.outcomes import Outcome
    from fr3e_async.verify import VerifierPool

    def asked(pairs: Pairs) -> Pairs:
        return pairs if judge == "same" else [(f"so \\boxed{{{answer}}}.", gold) for answer, gold in pairs]

    config = VerifierPoolConfig(workers=workers)
    with VerifierPool(config, "math" if judge == "judge" else "verifier:equal") as pool:
        asyncio.run(pool.judge_many(asked(warm_up())))
        questions = asked(pairs)
        started, used = time.perf_counter(), cpu_s()
        verdicts = asyncio.run(pool.judge_many(questions))
        wall_s, right = time.perf_counter() - started, sum(verdict.outcome is Outcome.CORRECT for verdict in verdicts)
        return Run(wall_s, cpu_s() - used, right)


def compare(name: str, parts: list[Pairs], workers: list[int]) -> dict[str, Any]:
    """One round for each part, bare and pools one after another; medians of the rates and of the ratios within a round."""
    pools = [(judge, count) for judge in ("same", "judge") for count in workers]
    rounds: dict[str, list[float]] = {}
    for part in parts:
        peer = run_bare(part)
        rounds.setdefault("bare", []).append(len(part) / peer.wall_s)
        rounds.setdefault("bare right", []).append(peer.right / len(part))
        for judge, count in pools:
            run, key = run_pool(part, judge, count), f"{judge} {count}"
            rounds.setdefault(key, []).append(len(part) / run.wall_s)
            rounds.setdefault(f"{key} right", []).append(run.right / len(part))
            rounds.setdefault(f"{key} ratio", []).append(peer.wall_s / run.wall_s / count)
            rounds.setdefault(f"{key} cpu ratio", []).append(max(peer.cpu_s, TICK) / max(run.cpu_s, TICK))
    medians = {key: round(statistics.median(values), 3) for key, values in rounds.items()}
    print(f"{name}: {sum(map(len, parts))} pairs, {len(parts)} rounds; bare {medians['bare']:.0f} pairs/s", flush=True)
    for judge, count in pools:
        key = f"{judge} {count}"
        print(
            f"  {judge:5}  {count} worker(s)  {medians[key]:6.0f} pairs/s  per worker, of bare (goal {GOALS[judge]}): by wall time "
            f"{medians[f'{key} ratio']:.2f}, by CPU time {medians[f'{key} cpu ratio']:.2f}; right {medians[f'{key} right']:.0%}, bare "
            f"{medians['bare right']:.0%}",
            flush=True,
        )
    return {"rounds": len(parts), "pairs": sum(map(len, parts)), **medians}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", type=Path, help="a JSONL file of gold/prediction pairs to measure as well")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="sizes of the pool")
    arguments.add_argument("--bare", action="store_true", help="be the peer's process")
    args = arguments.parse_args()
    if args.bare:
        bare()
        return 0
    facts, (rounds, size) = machine(), (1, 40) if args.quick else (3, 800)
    figures = {
        "one answer to a gold": compare("one answer to a gold", [generated(size, 1, i) for i in range(rounds)], args.workers),
        "8 answers to a gold": compare(
            "8 answers to a gold", [generated(size // 8, 8, 9 + i) for i in range(rounds)], args.workers
        ),
    }
    if args.cases is not None:
        pairs = from_file(args.cases)
        parts = [pairs[i::rounds][: size if args.quick else None] for i in range(rounds)]
        figures[args.cases.name] = compare(args.cases.name, parts, args.workers)
    finish(args, {"goals": GOALS, "figures": figures}, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
