"""What an actor does with its engine: branches are slices of ids, rows keep their own numbers, prefixes count in the answer."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import virtual_time
from builders import prompt
from chat_support import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.algorithm.anchors import AnchorRule, with_anchors
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.rollout.port import EngineDead, SampleRequest
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts, rollout_seed
from fr3e_async.testing.engine import ScriptedEngine, completion, joined
from fr3e_async.types import Anchor, Completion, Draw, Finish, RolloutId

TOKENIZER = build_tokenizer()
TEXTS = TokenTexts(TOKENIZER)
BYTES = make_tokenizer()
RULE = AnchorRule(name="entropy", count=3, min_gap=2)


def rollout_worker(script, rule=RULE) -> tuple[RolloutWorker, ScriptedEngine]:
    engine = ScriptedEngine(script)
    return RolloutWorker(engine, TEXTS, rule, seed=0), engine


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def bases(count: int) -> list[RolloutId]:
    return [RolloutId("q@0", 0, branch) for branch in range(count)]


@given(st.permutations(range(5)))
def test_anchors_and_entropies_stay_with_their_row_in_any_order(order):
    """Fault 1: each row's profile peaks at a place of its own; the anchors must follow the row, not the place in the batch."""

    def script(request_id):
        branch = int(request_id.split("/")[2])
        entropies = np.full(12, 0.1)
        entropies[1 + 2 * branch] = 2.0
        return completion(ids_of("1) 2+3=5")[:1] * 12, entropies)

    ids = [bases(5)[i] for i in order]
    maker, _ = rollout_worker(script)
    in_order = maker.anchors(asyncio.run(joined(maker.sample([prompt("q")] * 5, bases(5), Draw(max_tokens=40), trunk=True))))
    batch = asyncio.run(joined(maker.sample([prompt("q")] * 5, ids, Draw(max_tokens=40), trunk=True)))
    for row, id in enumerate(ids):
        assert batch.ids[row] == id
        assert int(batch.completion(row).entropies.argmax()) == 1 + 2 * id.branch
    anchors = maker.anchors(batch)
    for branch in range(5):
        best = max((a for a in anchors if a.trunk == branch), key=lambda anchor: anchor.score)
        assert best.position == 1 + 2 * branch
    assert sorted(anchors, key=lambda a: a.node) == list(in_order), "node ids and anchors do not depend on the order"


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=3, max_size=20)


@given(texts, st.data())
def test_a_branch_continues_the_parents_ids_even_inside_a_character(text, data):
    """Fault 7: with a byte-level tokenizer a cut may fall between the bytes of one character; ids know nothing of that."""
    tokens = ids_of(text)
    if len(tokens) < 3:
        return
    entropies = data.draw(st.lists(st.floats(0, 3, width=32), min_size=len(tokens), max_size=len(tokens)))
    maker, engine = rollout_worker(lambda id: completion(tokens, entropies))
    trunk = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=40), trunk=True)))
    engine.requests.clear()
    anchors = maker.anchors(trunk)
    branches = [RolloutId("q@0", anchor.node, m) for anchor in anchors for m in range(2)]
    batch = asyncio.run(joined(maker.branch(with_anchors(trunk, anchors), trunk.ids[0], branches, Draw(max_tokens=40))))
    positions = {anchor.node: anchor.position for anchor in anchors}
    assert sorted(batch.ids) == branches
    for row, (request, id) in enumerate(zip(engine.requests, batch.ids, strict=True)):
        expected = [*prompt("q").token_ids, *tokens[: positions[id.node]]]
        assert request.context.tolist() == expected == batch.context(row).tolist()
        assert request.max_tokens == 40 - positions[id.node], "prefix + branch must fit the budget of a base"
        assert batch.response(row).tolist() == [*tokens[: positions[id.node]], *tokens]


def test_an_answer_in_the_prefix_is_part_of_the_response():
    """The released code scores the continuation alone and loses it."""
    spine = ids_of("\\boxed{7}\n1) 2+3=5")
    entropies = [0.0] * (len(spine) - 2) + [3.0, 0.0]
    script = lambda id: completion(spine, entropies) if "/0/0" in id else completion(ids_of("3=5"))  # noqa: E731
    maker, _ = rollout_worker(script, AnchorRule(name="entropy", count=1, min_gap=1))
    trunk = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=40), trunk=True)))
    assert all(a.position < len(ids_of("\\boxed{7}")) for a in maker.anchors(trunk)), "no anchor after the answer is complete"
    early = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=40))))
    assert "\\boxed{7}" in TOKENIZER.decode(early.response(0))


def test_an_aborted_trunk_has_no_anchors():
    maker, _ = rollout_worker(lambda id: completion([5] * 9, finish=Finish.ABORT))
    batch = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=40), trunk=True)))
    assert maker.anchors(batch) == ()
    assert batch.note(0).finish is Finish.ABORT


def test_a_seed_is_of_the_run_and_the_rollout_alone():
    """The numbers are part of what a reproducible run is: another version of the program must draw the same."""
    assert rollout_seed(0, RolloutId("q@0", 0, 0)) == 5_734_864_886_583_067_436
    ids = [RolloutId(group, node, branch) for group in ("q@0", "q@1", "r@0") for node in range(3) for branch in range(3)]
    seeds = {rollout_seed(run, id) for run in (0, 1) for id in ids}
    assert len(seeds) == 2 * len(ids)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_requests_carry_seeds_only_if_asked_and_the_same_at_every_attempt():
    engine = ScriptedEngine(lambda id: completion([5] * 9))
    for seeded in (False, True, True):
        maker = RolloutWorker(engine, TEXTS, RULE, seed=3, seeded=seeded)
        trunk = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=40), trunk=True)))
        anchors = maker.anchors(trunk)[:1]
        asyncio.run(
            joined(
                maker.branch(
                    with_anchors(trunk, anchors), trunk.ids[0], [RolloutId("q@0", anchors[0].node, 1)], Draw(max_tokens=40)
                )
            )
        )
    seeds = [request.seed for request in engine.requests]
    wanted = [rollout_seed(3, RolloutId("q@0", 0, 0)), rollout_seed(3, RolloutId("q@0", anchors[0].node, 1))]
    assert seeds == [None, None, *wanted, *wanted]


def test_rows_of_one_prompt_share_its_context():
    maker, _ = rollout_worker(lambda id: completion([5, 6]))
    batch = asyncio.run(joined(maker.sample([prompt("a"), prompt("b"), prompt("a")], bases(3), Draw(max_tokens=9))))
    assert len(batch.prompt_lens) == 2
    assert batch.context_of.tolist() == [0, 1, 0]


def test_a_batch_of_trunks_branches_each_from_its_own_row():
    """Several trunks in one batch, in any order: prefixes come from the row that the id names."""
    spines = {branch: [10 + branch] * 9 for branch in range(3)}

    def script(request_id):
        _, node, branch = request_id.split("/")
        return completion(spines[int(branch)] if node == "0" else [5], [0, 0, 0, 1, 0, 0, 0, 0, 0] if node == "0" else None)

    maker, engine = rollout_worker(script, AnchorRule(name="entropy", count=1, min_gap=1))
    ids = [bases(3)[i] for i in (2, 0, 1)]
    batch = asyncio.run(joined(maker.sample([prompt("q")] * 3, ids, Draw(max_tokens=20), trunk=True)))
    anchors = maker.anchors(batch)
    batch = with_anchors(batch, anchors)
    for anchor in anchors:
        engine.requests.clear()
        ids = [RolloutId("q@0", anchor.node, 0)]
        asyncio.run(joined(maker.branch(batch, RolloutId("q@0", 0, anchor.trunk), ids, Draw(max_tokens=20))))
        assert engine.requests[0].context.tolist() == [*prompt("q").token_ids, *spines[anchor.trunk][:3]]


def test_the_rule_newline_takes_line_starts_only():
    tokens = ids_of("1) 2+3=5\n2) 5+1=6\n3) 6*2=12\n\\boxed{12}")
    maker, _ = rollout_worker(lambda id: completion(tokens), AnchorRule(name="newline", count=9, min_gap=1))
    batch = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=60), trunk=True)))
    starts = [i for i in range(1, len(tokens)) if "\n" in TOKENIZER.decode([tokens[i - 1]])]
    assert [anchor.position for anchor in maker.anchors(batch)] == starts
    assert len(starts) == 3


def test_a_rule_gives_the_same_anchors_in_every_engine():
    rule = AnchorRule(name="random", count=3, min_gap=2)
    chosen = []
    for _ in range(2):
        maker, _ = rollout_worker(lambda id: completion([5] * 30), rule)
        batch = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=60), trunk=True)))
        chosen.append(maker.anchors(batch))
    assert chosen[0] == chosen[1]


# ---- stop texts ----

STOPPING = TokenTexts(BYTES, stops=("</a>", "\n\n"))


def bytes_of(text: str) -> list[int]:
    return list(BYTES(text, add_special_tokens=False)["input_ids"])


@given(
    st.text("</a>\nb€", max_size=12), st.text("</a>\nb€", min_size=1, max_size=12),
    st.sampled_from([Finish.STOP, Finish.LENGTH, Finish.ABORT]),
)  # fmt: skip
def test_a_completion_ends_with_the_token_that_makes_a_stop_text_whole(prefix, text, finish):
    """Be it begun in the prefix. A token is a byte here, so the end is that of the text, by hand: the first place where one ends."""
    if any(stop in prefix for stop in ("</a>", "\n\n")):
        return  # its trunk would have ended there
    drawn = completion(bytes_of(text), entropies=np.arange(len(bytes_of(text))), finish=finish)
    found = STOPPING.ended(np.asarray(bytes_of(prefix), dtype=np.int32), drawn)
    ends = [end for end in range(1, len(text) + 1) if (prefix + text[:end]).endswith(("</a>", "\n\n"))]
    if finish is Finish.ABORT or not ends:
        assert found is drawn
        return
    assert found.finish is Finish.STOP
    assert found.tokens.tolist() == bytes_of(text[: ends[0]])
    assert found.entropies.tolist() == list(range(len(found.tokens)))
    assert len(found.logprobs) == len(found.versions) == len(found.tokens)


def test_bases_and_branches_stop_and_the_rest_of_a_completion_is_gone():
    """The branch's prefix ends in "</": the engine, which sees no text of it, continued behind the stop text."""
    script = {"q@0/0/0": "x</b>a</a>zz", "q@0/1/0": "a>zz", "q@0/2/0": "b\n"}
    engine = ScriptedEngine(lambda id: completion(bytes_of(script[id]), finish=Finish.LENGTH))
    maker = RolloutWorker(engine, STOPPING, RULE, seed=0)
    trunk = asyncio.run(joined(maker.sample([prompt("q")], bases(1), Draw(max_tokens=40), trunk=True)))
    assert trunk.completion(0).tokens.tolist() == bytes_of("x</b>a</a>")
    assert (trunk.note(0).finish, trunk.note(0).length, len(trunk.eligible)) == (Finish.STOP, 10, 10)
    anchors = [Anchor(node=n, parent=n - 1, trunk=0, position=p, score=1.0) for n, p in ((1, 3), (2, 6))]
    ids = [RolloutId("q@0", 1, 0), RolloutId("q@0", 2, 0)]
    found = asyncio.run(joined(maker.branch(with_anchors(trunk, anchors), bases(1)[0], ids, Draw(max_tokens=40))))
    rows = {id.node: found.completion(row) for row, id in enumerate(found.ids)}
    assert (rows[1].tokens.tolist(), rows[1].finish) == (bytes_of("a>"), Finish.STOP)
    assert (rows[2].tokens.tolist(), rows[2].finish) == (bytes_of("b\n"), Finish.LENGTH)


# ---- as they end ----


class TimedEngine:
    """Each branch takes its seconds, in virtual time; one of them may fail. Remembers what was cancelled."""

    def __init__(self, seconds: dict[int, float], failing: int = -1) -> None:
        self.seconds, self.failing, self.cancelled = seconds, failing, []

    async def sample(self, request: SampleRequest) -> Completion:
        branch = int(request.request_id.split("#")[0].split("/")[2])
        try:
            await asyncio.sleep(self.seconds[branch])
        except asyncio.CancelledError:
            self.cancelled.append(branch)
            raise
        if branch == self.failing:
            raise EngineDead("gone")
        return completion([5] * (branch + 1))


def delivered(engine: TimedEngine, most: int = 99) -> tuple[list[tuple[float, list[int]]], BaseException | None]:
    """(seconds, branches) of each batch, at most so many, and the error that ended them."""
    found: list[tuple[float, list[int]]] = []

    async def main() -> None:
        ids = bases(len(engine.seconds))
        maker = RolloutWorker(engine, TEXTS, RULE, seed=0)
        batches = maker.sample([prompt("q")] * len(ids), ids, Draw(max_tokens=40), trunk=True)
        async with contextlib.aclosing(batches):
            async for batch in batches:
                found.append((round(virtual_time.now() - virtual_time.START_S, 6), [id.branch for id in batch.ids]))
                if len(found) == most:
                    break

    try:
        virtual_time.restart()
        virtual_time.run(main())
    except EngineDead as error:
        return found, error
    return found, None


def test_rollouts_come_as_they_end_and_those_of_one_moment_together():
    assert delivered(TimedEngine({0: 1.0, 1: 3.0, 2: 1.004, 3: 0.2})) == ([(0.21, [3]), (1.01, [0, 2]), (3.0, [1])], None)


def test_what_had_ended_comes_before_the_error_and_the_rest_is_cancelled():
    engine = TimedEngine({0: 1.0, 1: 2.0, 2: 2.005, 3: 9.0}, failing=1)
    found, error = delivered(engine)
    assert found == [(1.01, [0]), (2.01, [2])]
    assert str(error) == "gone"
    assert engine.cancelled == [3]


def test_nothing_is_left_in_the_engine_when_nobody_listens_any_more():
    engine = TimedEngine({0: 1.0, 1: 2.0, 2: 9.0})
    assert delivered(engine, most=1) == ([(1.01, [0])], None)
    assert sorted(engine.cancelled) == [1, 2]
