"""Repeat an optimiser step that a run refused to take, from its dump (``fr3e replay_step DUMP``).

One process, transformers and torch; no DeepSpeed, Ray or vLLM, and no need for the run's number of ranks.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError

from fr3e_async.algorithm.losses import LossSums
from fr3e_async.config import LearnerConfig
from fr3e_async.errors import ConfigError, ModelError, StorageError, printable
from fr3e_async.learner.dump import DumpedSample, FailedStep, read_dump
from fr3e_async.learner.packing import collate, plan
from fr3e_async.learner.policy import PolicyModel, load_policy
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.learner.suitability import set_attention
from fr3e_async.learner.update import LoadedBatch, unsound, unsound_norm

CLOSE = 1e-3  # relative: another order of sums, another number of ranks
CPU_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One trained token of the step."""

    sample: int
    position: int  # in the completion
    token: int
    logprob: float
    prox: float
    behaviour: float
    advantage: float

    @property
    def alarm(self) -> float:
        """How far it is from ordinary: infinite if a number is broken, else its distance from both other policies."""
        distance = abs(self.logprob - self.prox) + abs(self.prox - self.behaviour)
        return distance if math.isfinite(distance) and math.isfinite(self.advantage) else math.inf

    def __str__(self) -> str:
        return (
            f"  sample {self.sample:4d} token {self.position:5d} (id {self.token}): log-prob {self.logprob:.4f}, proximal "
            f"{self.prox:.4f}, behaviour {self.behaviour:.4f}, advantage {self.advantage:.4f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The step as it is found now."""

    loss: float
    grad_norm: float
    cause: str  # empty: nothing is wrong with it
    tokens: tuple[Token, ...]


def replay(folder: Path, *, device: str = "cpu", trust_remote_code: bool = False) -> tuple[FailedStep, Replay]:
    """Run a dumped step again, forward and backward: what was recorded, and what is found now.

    Raises ``ConfigError``, ``StorageError`` or ``ModelError`` if the device, the dump or its model cannot be used.
    """
    where = _device(device)
    step, spec = read_dump(folder)
    learner = _settings(spec.learner, where)
    if spec.trust_remote_code and not trust_remote_code:
        raise ConfigError(f"the run had model.trust_remote_code: give --trust-remote-code to run the Python code in {spec.path}")
    spec = replace(spec, learner=learner, trust_remote_code=trust_remote_code)
    model = _load(folder, spec).to(where)
    sums: list[LossSums] = []
    tokens: list[Token] = []
    for part in plan([measured.sample for measured in step.share], packing=learner.packing, budget=learner.micro_batch_tokens):
        found, seen = _pass(model, step, part, spec)
        sums.append(found)
        tokens += seen
    total = reduce(LossSums.__add__, sums)
    squares = [float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(squares)) if all(map(math.isfinite, squares)) else math.nan
    cause = unsound(total, learner, prox=spec.loss.prox) or unsound_norm(norm, limit=learner.stop_above_grad_norm)
    return step, Replay(loss=total.total("loss") / step.total_tokens, grad_norm=norm, cause=cause, tokens=tuple(tokens))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device must be cpu or cuda, got {name}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device={name}: torch finds {torch.cuda.device_count()} CUDA devices here")
    return device


def _settings(learner: LearnerConfig, device: torch.device) -> LearnerConfig:
    """The run's, but that kernels made for GPUs alone give way to ones that any device has."""
    if device.type == "cuda":
        return replace(learner, gpus=1)
    attention = learner.attention if learner.attention in CPU_ATTENTION else "eager"
    return replace(learner, gpus=0, tree_attention="auto", attention=attention)


def _load(folder: Path, spec: LearnerSpec) -> PolicyModel:
    """The dumped model, without the checks of a start: its weights may be what is broken."""
    if not (Path(spec.path) / "config.json").is_file():
        raise StorageError(f"{folder} holds no whole dump of a failed step: {spec.path} is no model folder")
    try:
        model = load_policy(spec)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{spec.path} cannot be loaded with learner.attention={spec.learner.attention}: {reason}") from error
    set_attention(model, spec.learner.packing)
    return model


def _pass(model: PolicyModel, step: FailedStep, part: list[int], spec: LearnerSpec) -> tuple[LossSums, list[Token]]:
    """One micro-batch: its gradient is added to the model's, its sums and tokens are returned."""
    members = [step.share[i] for i in part]
    device = next(model.parameters()).device
    samples = collate([measured.sample for measured in members], packing=spec.learner.packing)
    batch = LoadedBatch(samples, version=step.version, device=device, kernel=spec.learner.tree_attention)
    logprobs, entropies = batch.measured(model)
    # A first minibatch that failed before its proximal log-probs were known is measured against itself, as it was.
    prox = torch.cat([torch.from_numpy(measured.prox) for measured in members]).to(device)
    batch.prox = torch.where(prox.isnan(), logprobs.detach(), prox)
    if spec.loss.reference_coef:
        batch.reference = torch.cat([torch.from_numpy(measured.reference) for measured in members]).to(device)
    imitation = torch.cat([torch.from_numpy(measured.imitation) for measured in members]).to(device)
    batch.imitation = imitation if imitation.any() else None
    loss, sums = batch.loss(spec.loss, logprobs, entropies, total_tokens=step.total_tokens, total_completions=len(step.share))
    loss.backward()
    return sums, _tokens(members, part, logprobs.detach().cpu(), batch.prox.cpu())


def _tokens(members: list[DumpedSample], part: list[int], logprobs: torch.Tensor, prox: torch.Tensor) -> list[Token]:
    found, at = [], 0
    for number, measured in zip(part, members, strict=True):
        sample = measured.sample
        for position, token in enumerate(sample.tokens[sample.context_len :]):
            found.append(
                Token(
                    sample=number, position=position, token=int(token), logprob=float(logprobs[at]), prox=float(prox[at]),
                    behaviour=float(sample.behaviour_logprobs[position]), advantage=float(sample.advantages[position]),
                )
            )  # fmt: skip
            at += 1
    return found


def same(recorded: float | None, found: float) -> bool:
    """Two numbers as far as another order of sums can tell; what was not recorded agrees with anything."""
    if recorded is None:
        return True
    if not math.isfinite(recorded) or not math.isfinite(found):
        return math.isfinite(recorded) == math.isfinite(found)
    return math.isclose(recorded, found, rel_tol=CLOSE, abs_tol=1e-6)


def comparison(step: FailedStep, found: Replay, *, tokens: int) -> tuple[bool, str]:
    """(whether it happened again, what was recorded beside what is found now, and the ``tokens`` that matter most)."""
    # A ratio beyond its limit may be clipped out of the loss: that the numbers agree is not enough.
    again = bool(found.cause) and same(step.loss, found.loss) and same(step.grad_norm, found.grad_norm)
    norm = "" if step.grad_norm is None else format(step.grad_norm, ".6g")
    lines = [
        printable(f"{step.where}\n  {step.cause}"),
        f"  {'':12}{'recorded':>14}{'now':>14}",
        f"  {'loss':12}{step.loss:14.6g}{found.loss:14.6g}",
        f"  {'grad norm':12}{norm:>14}{found.grad_norm:14.6g}",
        "now: " + (found.cause or "every number is finite and within the limits"),
        *map(str, sorted(found.tokens, key=lambda token: -token.alarm)[:tokens]),
        "it happened again" if again else "it did not happen again: the cause was not in the samples or the weights",
    ]
    return again, "\n".join(lines)
