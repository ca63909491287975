"""Synchronous training as a textbook writes it: one engine, one learner, one thing after another.

    python tests/plain_loop.py OUT config=toy key=value …

No controller, no ledger, no actors, no Ray: of the package it uses the parts that are handed one thing and give one thing back.
It trains twice in one process, with the seeds as they are (``OUT/plain``) and with those of one rollout changed (``OUT/astray``).
Each folder gets ``told.json`` (groups and steps) and ``weights.safetensors`` (the learner's last export).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fr3e_async.algorithm.anchors import with_anchors
from fr3e_async.algorithm.answer_span import THINK
from fr3e_async.algorithm.strategies import Credit, GroupRewards, Strategy, make_strategy
from fr3e_async.config import Config
from fr3e_async.data.model import load_tokenizer, resolve_model
from fr3e_async.data.prompts import Datasets, load_datasets
from fr3e_async.data.stream import PromptStream, group_id
from fr3e_async.data.tokenizer import end_tokens
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.rollout import Engine, EngineSpec, engine_environment, start_engine
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.settings.loader import load_config
from fr3e_async.testing.engine import joined
from fr3e_async.types import Draw, Prompt, RolloutBatch, RolloutId, TrainSample
from fr3e_async.verify import VerifierPool
from fr3e_async.verify.responses import Reader


@dataclass(slots=True)
class Group:
    """A prompt's rollouts, one row each, and what they are worth."""

    name: str
    rows: dict[RolloutId, RolloutBatch] = field(default_factory=dict)
    verdicts: dict[RolloutId, str] = field(default_factory=dict)
    anchors: dict[int, Any] = field(default_factory=dict)  # by node
    credit: Credit | None = None

    def told(self) -> dict[str, Any]:
        """What the system writes of it into groups.jsonl, as far as it does not say when and where."""
        assert self.credit is not None
        return {
            "group": self.name,
            "outcome": f"rejected_{self.credit.rejected}" if self.credit.rejected else "trained",
            "generated": sum(len(row.tokens) for row in self.rows.values()),
            "rollouts": len(self.rows),
            "correct": sum(verdict == "correct" for verdict in self.verdicts.values()),
            "positions": [anchor.position for anchor in self.anchors.values()],
            "scores": [anchor.score for anchor in self.anchors.values()],
            "alphas": [state.alpha for _, state in sorted(self.credit.states.items())],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What lives longer than one training."""

    config: Config
    model: str
    datasets: Datasets
    tokenizer: Any
    reader: Reader
    engine: Engine
    verifier: VerifierPool
    strategy: Strategy

    def rollout_worker(self, seed: int) -> RolloutWorker:
        return RolloutWorker(self.engine, TokenTexts(self.tokenizer), self.strategy.plan.rule, seed=seed, seeded=True)

    @property
    def draw(self) -> Draw:
        sampling = self.config.sampling
        return Draw(
            max_tokens=sampling.max_response, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k
        )


class Loop:
    """One training from the model as it was given. ``astray``: the one rollout that is drawn from another seed."""

    def __init__(self, tools: Tools, astray: RolloutId | None = None) -> None:
        self._tools, self._astray = tools, astray
        self._rollout_worker, self._other_rollout_worker = (tools.rollout_worker(tools.config.run.seed + more) for more in (0, 1))
        self._stream = PromptStream(tools.datasets.train, tools.config.run.seed)
        self.groups: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.samples: dict[RolloutId, TrainSample] = {}

    async def train(self, rank: Any) -> None:
        config = self._tools.config
        for version in range(1, config.run.steps + 1):
            batch = []
            while len(batch) < config.flow.groups_per_step:
                group = await self._group(*self._stream.take())
                self.groups.append({"step": version, **group.told()})
                if not group.credit.rejected:
                    batch.append(group)
            samples = [
                self._sample(group, id, minibatch=place * config.learner.minibatches // len(batch))
                for place, group in enumerate(batch)
                for id in sorted(group.credit.advantages)
            ]
            report = rank.train(samples, version=version)
            self.steps.append({"step": version, "train/tokens": report.tokens, **report.metrics})
            await serve(self._tools.engine, rank, version)

    async def _group(self, prompt: Prompt, epoch: int) -> Group:
        """Bases, anchors of the first one, branches, verdicts, credit."""
        plan, draw = self._tools.strategy.plan, self._tools.draw
        group = Group(group_id(prompt.uid, epoch))
        for branch in range(plan.bases):
            id = RolloutId(group.name, 0, branch)
            group.rows[id] = await joined(self._rollout_worker_of(id).sample([prompt], [id], draw, trunk=True))
        trunk = RolloutId(group.name, 0, 0)
        anchors = self._rollout_worker.anchors(group.rows[trunk])
        published = with_anchors(group.rows[trunk], anchors)
        for anchor in anchors:
            group.anchors[anchor.node] = anchor
            for branch in range(plan.branches):
                id = RolloutId(group.name, anchor.node, branch)
                group.rows[id] = await joined(self._rollout_worker_of(id).branch(published, trunk, [id], draw))
        rewards = {}
        for id, row in group.rows.items():
            (verdict,) = await self._tools.verifier.judge_many(
                [self._tools.reader.read(row, 0).question(prompt.reference, prompt.text, prompt.margins, prompt.columns)]
            )
            group.verdicts[id], rewards[id] = verdict.outcome, verdict.reward
        outcome = GroupRewards(group=group.name, rewards=rewards, anchors=group.anchors, trunks=(trunk,))
        group.credit = self._tools.strategy.credit(outcome)
        return group

    def _rollout_worker_of(self, id: RolloutId) -> RolloutWorker:
        return self._other_rollout_worker if id == self._astray else self._rollout_worker

    def _sample(self, group: Group, id: RolloutId, *, minibatch: int) -> TrainSample:
        row, (span,) = group.rows[id], group.credit.advantages[id]
        assert (span.start, span.weight) == (0, 1.0)
        sample = self.samples[id] = TrainSample(
            tokens=np.concatenate([row.context(0), row.tokens]),
            context_len=len(row.context(0)),
            behaviour_logprobs=row.logprobs,
            versions=row.versions,
            advantages=np.full(len(row.tokens), span.value, dtype=np.float32),
            minibatch=minibatch,
        )
        return sample

    def least_likely(self) -> RolloutId:
        """Of the trained rollouts of the first batch: drawn again it is most certainly another one."""
        first = {id: sample.behaviour_logprobs.sum() for id, sample in self.samples.items() if sample.versions.max() == 0}
        return min(first, key=first.__getitem__)


async def serve(engine: Engine, rank: Any, version: int) -> None:
    from bundles import collect

    await engine.load_weights(collect(rank.export(version)))


async def trained(tools: Tools, folder: Path, astray: RolloutId | None = None) -> Loop:
    from bundles import collect, unpack
    from safetensors.torch import save_file

    from fr3e_async.learner.rank import LearnerRank

    config = tools.config
    spec = LearnerSpec(
        path=tools.model, learner=config.learner, loss=config.loss, temperature=config.sampling.temperature,
        max_staleness=0, seed=config.run.seed,
    )  # fmt: skip
    rank, loop = LearnerRank(spec), Loop(tools, astray)
    rank.setup(0, 1, *rank.address())
    if astray is not None:  # the engine still has the weights of the training before
        await serve(tools.engine, rank, 0)
    await loop.train(rank)
    folder.mkdir(parents=True)
    save_file(dict(unpack(collect(rank.export(None)))), folder / "weights.safetensors")
    (folder / "told.json").write_text(json.dumps({"groups": loop.groups, "steps": loop.steps, "astray": astray}))
    return loop


def engine_spec(config: Config, model: str, end: tuple[int, ...]) -> EngineSpec:
    return EngineSpec(
        model=model, end_token_ids=end, max_model_len=config.context_length, engine=config.engine, seeded=True,
    )  # fmt: skip


async def main(out: Path, config: Config) -> None:
    assert config.algorithm.trunk == "first"
    assert config.verifiers.on_unknown != "zero"
    tokenizer = load_tokenizer(config)
    model = str(resolve_model(config))
    spec = engine_spec(config, model, end_tokens(config, tokenizer))
    os.environ.update(engine_environment(spec))  # before torch
    tools = Tools(
        config=config, model=model, datasets=load_datasets(config, tokenizer), tokenizer=tokenizer,
        reader=Reader(tokenizer, ends=spec.end_token_ids, thoughts=THINK),
        engine=await start_engine(spec), verifier=VerifierPool(config.verifiers), strategy=make_strategy(config.algorithm),
    )  # fmt: skip
    plain = await trained(tools, out / "plain")
    await trained(tools, out / "astray", plain.least_likely())
    await tools.engine.close()
    tools.verifier.close()
    borrowed = [
        name for name in sys.modules if name.startswith(("fr3e_async.control", "fr3e_async.machine", "fr3e_async.actors"))
    ]
    assert not borrowed, borrowed


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), load_config(sys.argv[2:]).config))
