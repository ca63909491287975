"""A tiny model, ragged samples, and an update written out in plain torch, for the learner's tests."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fr3e_async.config import LearnerConfig, LossConfig
from fr3e_async.learner.spec import LearnerSpec, rank_environment
from fr3e_async.types import TrainSample

VOCABULARY = 64
TEMPERATURE = 0.8
LEARNER = LearnerConfig(
    lr=1e-3, weight_decay=0.01, grad_clip=0.5, minibatches=2, epochs=2, micro_batch_tokens=80,
    stop_above_mismatch=0.0,  # behaviour log-probs are made up
)  # fmt: skip
LOSS = LossConfig(dual_clip=3.0, kl_coef=0.01, entropy_coef=0.01, reference_coef=0.05, reference_reset=2)


def build_model(folder: Path, *, tied: bool = True, head_dim: int = 8) -> Path:
    """A Qwen2 model of 2 layers with a tokenizer of ``VOCABULARY`` entries."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head_dim, max_position_embeddings=128, tie_word_embeddings=tied, attention_dropout=0.1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w0").save_pretrained(folder)
    return folder


def make_spec(path: Path, *, loss: LossConfig = LOSS, **learner: Any) -> LearnerSpec:
    return LearnerSpec(path=str(path), learner=replace(LEARNER, **learner), loss=loss, temperature=TEMPERATURE, batches=2, seed=3)


def make_samples(seed: int, *, count: int = 11, version: int = 0) -> list[TrainSample]:
    """Ragged samples of 3 to 39 tokens in minibatches 0 and 1 by turns, their tokens 0 or 1 versions old.

    Every other one continues a sample of its minibatch: its context is cut out of it, as a branch's is out of its trunk.
    """
    rng = np.random.default_rng(seed)
    samples: list[TrainSample] = []
    for i in range(count):
        context, completion = int(rng.integers(1, 16)), int(rng.integers(2, 25))
        tokens = rng.integers(2, VOCABULARY, context + completion).astype(np.int32)
        if i >= 2 and i // 2 % 2:
            trunk = samples[i - 2].tokens
            context = min(context, len(trunk) - 1)
            tokens = np.concatenate([trunk[:context], tokens[-completion:]])
        samples.append(
            TrainSample(
                tokens=tokens,
                context_len=context,
                behaviour_logprobs=rng.normal(-4.2, 0.4, completion).astype(np.float32),
                versions=rng.integers(max(0, version - 1), version + 1, completion).astype(np.int32),
                advantages=rng.normal(size=completion).astype(np.float32),
                minibatch=i % 2,
            )
        )
    return samples


def start_rank(spec: LearnerSpec) -> Any:
    """A group of one, in this process."""
    os.environ.update(rank_environment(spec))
    from fr3e_async.learner.rank import LearnerRank

    rank = LearnerRank(spec)
    rank.setup(0, 1, *rank.address())
    return rank


def exported(rank: Any, version: int, **settings: Any) -> Any:
    """The bundle that ``LearnerRank.export`` sends, copied; None if it sends nothing."""
    from bundles import collect

    stream = rank.export(version, **settings)
    return collect(stream) if rank.rank == 0 else next(stream, None)


def weights_of(sent: Any) -> dict[str, torch.Tensor]:
    """Copies of the tensors of a bundle, or of what ``LearnerRank.export`` sends."""
    from bundles import collect, unpack

    from fr3e_async.weights.manifest import WeightBundle

    return dict(unpack(sent if isinstance(sent, WeightBundle) else collect(sent)))


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    # torch's max passes NaN on; Python's would drop it
    return float(torch.stack([(left[name] - right[name]).detach().abs().max() for name in left]).max())


def kl_estimate(kind: str, x: torch.Tensor) -> torch.Tensor:
    """KL(p || q) from x = log q - log p of tokens drawn from p."""
    return {"k1": -x, "k2": x * x / 2, "k3": torch.exp(x) - 1 - x}[kind]


class PlainLearner:
    """The same update, one unpadded sequence at a time, with transformers and torch alone."""

    def __init__(self, spec: LearnerSpec) -> None:
        from transformers import AutoModelForCausalLM

        self.spec = spec
        self.model = AutoModelForCausalLM.from_pretrained(spec.path, dtype=torch.float32, attn_implementation="eager").eval()
        self.reference, self.version = copy.deepcopy(self.model), 0
        c = spec.learner
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=c.lr, betas=(c.betas[0], c.betas[1]), weight_decay=c.weight_decay
        )

    def log_p(self, model: Any, sample: TrainSample) -> torch.Tensor:
        """[completion, vocabulary]"""
        logits = model(input_ids=torch.from_numpy(sample.tokens.astype(np.int64))[None]).logits[0]
        return torch.log_softmax(logits[sample.context_len - 1 : -1] / self.spec.temperature, dim=-1)

    def loss(self, sample: TrainSample, prox_model: Any) -> torch.Tensor:
        config, a = self.spec.loss, torch.from_numpy(sample.advantages)
        targets = torch.from_numpy(sample.tokens[sample.context_len :].astype(np.int64))[:, None]
        log_p = self.log_p(self.model, sample)
        current = log_p.gather(1, targets)[:, 0]
        behaviour = torch.from_numpy(sample.behaviour_logprobs)
        with torch.no_grad():
            prox = behaviour if config.prox == "behaviour" else self.log_p(prox_model, sample).gather(1, targets)[:, 0]
            weight = torch.exp(prox - behaviour).clamp(max=config.importance_cap)
            reference = self.log_p(self.reference, sample).gather(1, targets)[:, 0]
            if config.reference_in != "loss":
                costs = config.reference_coef * kl_estimate(config.reference_kl, reference - prox)
                a = a - (costs.sum() if config.reference_in == "sequence_reward" else costs.flip(0).cumsum(0).flip(0))
        ratio = torch.exp(current - prox)
        gain = torch.minimum(ratio * a, torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high) * a)
        if config.dual_clip:
            gain = torch.where(a < 0, torch.maximum(gain, config.dual_clip * a), gain)
        if config.objective == "cispo":
            gain = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high).detach() * a * current
        kl = torch.exp(prox - current) - (prox - current) - 1
        entropy = -(log_p.exp() * log_p).sum(-1)
        losses = -weight * gain + config.kl_coef * kl - config.entropy_coef * entropy
        if config.reference_in == "loss":
            losses = losses + config.reference_coef * kl_estimate(config.reference_kl, reference - current)
        return losses.sum()

    def train(self, samples: list[TrainSample]) -> list[float]:
        """Gradient norms of the optimiser steps."""
        prox_model, norms, config = copy.deepcopy(self.model), [], self.spec.learner
        for _ in range(config.epochs):
            for index in range(config.minibatches):
                part = [s for s in samples if s.minibatch == index]
                total = sum(len(s.tokens) - s.context_len for s in part)
                self.optimiser.zero_grad()
                for sample in part:
                    length = {"sequence": len(sample.versions), "constant": self.spec.loss.mean_length}.get(self.spec.loss.mean)
                    (self.loss(sample, prox_model) / (len(part) * length if length else total)).backward()
                norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)))
                self.optimiser.step()
        self.version += 1
        if self.spec.loss.reference_reset and self.version % self.spec.loss.reference_reset == 0:
            self.reference = copy.deepcopy(self.model)
        return norms

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach() for name, weight in self.model.named_parameters()}


class PlainCritic:
    """A critic beside a ``PlainLearner``: hidden states of transformers' own model, one sequence at a time, and GAE as it is defined."""

    def __init__(self, spec: LearnerSpec) -> None:
        from transformers import AutoModelForCausalLM

        assert spec.critic is not None
        self.spec, self.config = spec, spec.critic
        self.body = AutoModelForCausalLM.from_pretrained(spec.path, dtype=torch.float32, attn_implementation="eager").eval().model
        self.head = torch.nn.Linear(self.body.config.hidden_size, 1)
        for parameter in self.head.parameters():
            torch.nn.init.zeros_(parameter)
        c = spec.learner
        self.optimiser = torch.optim.AdamW(
            [*self.body.parameters(), *self.head.parameters()], lr=self.config.lr, betas=(c.betas[0], c.betas[1]),
            weight_decay=c.weight_decay,
        )  # fmt: skip

    def values(self, sample: TrainSample) -> torch.Tensor:
        """[completion] of the states before its tokens."""
        hidden = self.body(input_ids=torch.from_numpy(sample.tokens.astype(np.int64))[None]).last_hidden_state[0]
        return self.head(hidden[sample.context_len - 1 : -1])[:, 0]

    def advantages(self, reward: float, values: np.ndarray, decay: float) -> np.ndarray:
        deltas = np.append(values[1:], reward) - values
        return np.array([sum(decay ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))])

    def train(self, samples: list[TrainSample]) -> list[TrainSample]:
        """All optimiser steps of a batch; returns its samples with the policy's advantages, made before the first step."""
        c, credited, targets = self.config, [], []
        for sample in samples:
            values, length = self.values(sample).detach().double().numpy(), len(sample.versions)
            decay = max(0.0, 1 - 1 / (c.length_alpha * length)) if c.length_alpha else c.policy_lambda
            reward = float(sample.advantages[-1])
            own = self.advantages(reward, values, decay).astype(np.float32)
            credited.append(replace(sample, advantages=own))
            targets.append((values, values + self.advantages(reward, values, c.value_lambda)))
        for _ in range(self.spec.learner.epochs):
            for index in range(self.spec.learner.minibatches):
                part = [(s, *t) for s, t in zip(samples, targets, strict=True) if s.minibatch == index]
                self.optimiser.zero_grad()
                for sample, former, returns in part:
                    now, old, goal = self.values(sample), torch.from_numpy(former).float(), torch.from_numpy(returns).float()
                    held = old + (now - old).clamp(-c.value_clip, c.value_clip)
                    loss = torch.maximum((now - goal) ** 2, (held - goal) ** 2).sum() / 2
                    (loss / sum(len(s.versions) for s, *_ in part)).backward()
                parameters = [*self.body.parameters(), *self.head.parameters()]
                torch.nn.utils.clip_grad_norm_(parameters, c.grad_clip)
                self.optimiser.step()
        return credited

    def weights(self) -> dict[str, torch.Tensor]:
        body = {f"model.{name}": weight.detach() for name, weight in self.body.named_parameters()}
        return body | {f"lm_head.{name}": weight.detach() for name, weight in self.head.named_parameters()}


def rewarded(samples: list[TrainSample]) -> list[TrainSample]:
    """The samples as a strategy with a critic has them: the reward, 0 or 1, in place of advantages."""
    return [replace(s, advantages=np.full(len(s.versions), i % 3 % 2, dtype=np.float32)) for i, s in enumerate(samples)]


def critic_weights(rank: Any) -> dict[str, torch.Tensor]:
    """Copies; all ranks."""
    return {name: weight.float().cpu().clone() for name, weight in rank.critic.engine.weights()}
