r"""The judge on pairs made from the references of public benchmarks: one token mutated, or written in another harmless way.

    python benchmarks/verifier_mutations.py DATA [--pairs 2000] [--seed 1] [--json OUT]

mutated   one token of the reference dropped, changed or added. A mutation may well leave the meaning as it is (+5 for 5, 1x for x, a brace that
          is never closed), so a right verdict is not yet a false one: ``suspects`` are those that neither bare math-verify confirms nor a
          policy explains, and each is printed, to be looked at by a person
harmless  the same reference with other spaces, sizes, fonts, delimiters or words in front: each that is not right is a miss

Bare math-verify judges the same pairs, in processes under limits like the judge's. DATA: the folder that has gsm8k, deepmath, college_math and so on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections import Counter
from pathlib import Path

from common import finish, machine, parser
from verifier import Pairs

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of each time-out that is off
FILES = (
    "gsm8k/test.jsonl", "olympiadbench/test.jsonl", "deepmath/train.jsonl", "college_math/test.jsonl", "theoremqa/test.jsonl",
    "imo_answerbench/test.jsonl",
)  # fmt: skip
COMMANDS = [r"\pi", r"\le", r"\cup", r"\sqrt", r"\alpha", r"\sin", r"\ln"]
ADDED = ["x", "2", "-", "1", "+", "!", "'", "n", r"\pi", "^", "_"]


def references(data: Path) -> list[str]:
    """Distinct answers of the benchmarks, plain integers among them, without long ones."""
    found: set[str] = set()
    for name in FILES:
        for line in (data / name).read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)["answer"]
            for text in answer if isinstance(answer, list) else [answer]:
                found.add(str(text).rpartition("#### ")[2])
    return sorted(text for text in found if 0 < len(text) < 80)


def mutated(source: random.Random, tokens: tuple[str, ...]) -> tuple[str, ...]:
    """With one token dropped, changed for one of its kind, or added."""
    at, kind = source.randrange(len(tokens)), source.choice(["drop", "change", "add"])
    if kind == "add":
        return (*tokens[:at], source.choice(ADDED), *tokens[at:])
    new = () if kind == "drop" else (changed(source, tokens[at]),)
    return (*tokens[:at], *new, *tokens[at + 1 :])


def changed(source: random.Random, token: str) -> str:
    pairs = {"+": "-", "-": "+", "<": ">", ">": "<", "(": "[", "[": "(", ")": "]", "]": ")"}
    if token.isdigit():
        return str(int(token) + source.choice([1, 2, 10]))
    if len(token) == 1 and token.isalpha():
        return source.choice([letter for letter in "abcnxyzk" if letter != token])
    return pairs.get(token) or source.choice(COMMANDS if token.startswith("\\") else ["x", "2", "-"])


def harmless(source: random.Random, text: str) -> str:
    """Another way to write it that says the same."""
    ways = [
        lambda t: f"${t.strip('$. ')}$",
        lambda t: rf"\displaystyle {t}",
        lambda t: rf"\text{{The answer is }} {t}",
        lambda t: t.replace(r"\frac", r"\dfrac"),
        lambda t: t.replace("(", r"\left(").replace(")", r"\right)") if r"\left" not in t else t,
        lambda t: t.replace(r"\pi", "π").replace(r"\le ", "≤").replace("-", "−"),
        lambda t: t.replace("+", r"\, + \,").replace("=", r"\;=\;"),
        lambda t: rf"{t.strip('. ')}.",
        lambda t: t.replace(r"\cdot", r"\times"),
        lambda t: rf"\boldsymbol{{{t.strip('$. ')}}}",
    ]
    return source.choice(ways)(text)


def pairs_of(data: Path, count: int, seed: int) -> tuple[Pairs, Pairs]:
    from fr3e_async.verify.tokens import render, tokenise

    source, known = random.Random(seed), references(data)
    wrong: Pairs = []
    while len(wrong) < count:
        gold = source.choice(known)
        tokens = tokenise(gold)
        other = mutated(source, tokens) if tokens else tokens
        if other != tokens:
            wrong.append((render(other), gold))
    texts = [source.choice(known) for _ in range(count)]
    return wrong, [(harmless(source, text), text) for text in texts]


def judged(pairs: Pairs, reward: str, workers: int) -> list[tuple[str, str]]:
    """(outcome, reason) of each pair, through a pool."""
    from fr3e_async.config import VerifierPoolConfig
    from fr3e_async.verify import VerifierPool

    config = VerifierPoolConfig(workers=workers, exact_integers=False)
    asked = pairs if reward != "math" else [(f"\\boxed{{{answer}}}", gold) for answer, gold in pairs]
    with VerifierPool(config, reward) as pool:
        if reward != "math":
            return [(v.outcome.value, v.reason) for v in asyncio.run(pool.judge_many(asked))]
        (math,) = pool.functions
        verdicts = [math.tasks.submit([pair]) for pair in pairs]  # a mutated answer may well break a box
        return [(v.result()[0].judgement.outcome, v.result()[0].judgement.reason) for v in verdicts]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--pairs", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--workers", type=int, default=2)
    args = arguments.parse_args()
    facts, count = machine(), 100 if args.quick else args.pairs
    wrong, same = pairs_of(args.data, count, args.seed)
    ours, bare = judged(wrong, "math", args.workers), judged(wrong, "verifier:equal", args.workers)
    rights = [(pair, mine, peer) for pair, mine, peer in zip(wrong, ours, bare, strict=True) if mine[0] == "correct"]
    suspects = [(pair, mine) for pair, mine, peer in rights if peer[0] != "correct" and not mine[1].startswith("policy")]
    rewrites, peers = judged(same, "math", args.workers), judged(same, "verifier:equal", args.workers)
    misses = [(pair, mine) for pair, mine in zip(same, rewrites, strict=True) if mine[0] != "correct"]
    figures = {
        "pairs": count,
        "mutated": dict(Counter(outcome for outcome, _ in ours)),
        "mutated, right by policy": sum(mine[1].startswith("policy") for _, mine, _ in rights),
        "mutated, suspects": len(suspects),
        "mutated, bare math-verify": dict(Counter(outcome for outcome, _ in bare)),
        "harmless": dict(Counter(outcome for outcome, _ in rewrites)),
        "harmless, bare math-verify": dict(Counter(outcome for outcome, _ in peers)),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    for title, rows in (("suspect", suspects), ("miss", misses)):
        for (answer, gold), decision in rows:
            print(f"{title}: {gold!r} <- {answer!r}: {decision[0]} ({decision[1]})")
    finish(args, {"figures": figures}, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
