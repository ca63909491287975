"""The toy model and its supervised warm start: plain torch, one process, the same bytes for the same seed.

It learns the arithmetic, and to go wrong where the task's solutions go wrong. Knows nothing of caches and configs other
than the toy's. Hidden matrices are trained with orthogonalised momentum (Muon): five times fewer steps than AdamW here.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from fr3e_async.clock import steady
from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.task import ToyProblem, draw_problem, write_lesson
from fr3e_async.data.toy.tokenizer import build_tokenizer, encode_example
from fr3e_async.files.durable import writing_tensors

THREADS = 1  # more would split sums by thread (other bytes), and crawl when other processes want the cores
BATCH = 64  # solutions in one optimiser step
MATRIX_LR, OTHER_LR, RAMP_STEPS = 0.035, 0.01, 20
SAY_S = 15.0
IGNORED = -100  # label of a token without loss


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 of 0.9 M weights, drawn from torch's global generator. Few layers: a CPU engine pays for each of them."""
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],  # engines select the model code by this name
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def warm_start(
    config: ToyConfig, *, seed: int, heldout: list[ToyProblem], say: Callable[[str], None] = lambda text: None
) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:  # fmt: skip
    """Train a new model on ``config.warm_start_steps`` batches of fresh problems, none of them in ``heldout``.

    ``say`` receives progress lines. torch's thread count and global random state are as before when it returns.
    """
    tokenizer, threads = build_tokenizer(), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(tokenizer)
        _train(model, tokenizer, config, random.Random(f"fr3e toy warm start {seed}"), {problem.text for problem in heldout}, say)
    finally:
        torch.set_num_threads(threads)
    return model.eval(), tokenizer


def save_model(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """A Hugging Face folder: config, generation config, tokenizer, float32 ``model.safetensors``. No progress bars."""
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with writing_tensors(folder / "model.safetensors"):
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def _train(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    config: ToyConfig,
    rng: random.Random,
    excluded: set[str],
    say: Callable[[str], None],
) -> None:
    model.train()
    matrices = [weight for name, weight in model.model.layers.named_parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    muon = Muon(matrices)
    adam = torch.optim.AdamW(
        [weight for weight in model.parameters() if id(weight) not in chosen], lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0
    )
    steps = config.warm_start_steps
    told = steady()
    for step in range(steps):
        if steady() - told > SAY_S:
            told = steady()
            say(f"building the toy model: {step} of {steps} steps")
        tokens, labels = _batch(tokenizer, config, rng, excluded)
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        trained = labels[:, 1:] != IGNORED
        loss = nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[:, 1:][trained])
        model.zero_grad(set_to_none=True)
        loss.backward()
        scale = min(1.0, (step + 1) / RAMP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
        muon.step(MATRIX_LR * scale)
        adam.param_groups[0]["lr"] = OTHER_LR * scale
        adam.step()


def _batch(tokenizer: Qwen2Tokenizer, config: ToyConfig, rng: random.Random, excluded: set[str]) -> tuple[Tensor, Tensor]:
    """Tokens and labels, int64 [BATCH, T], padded on the right; loss on the solution and its end token only."""
    examples: list[tuple[list[int], list[int]]] = []
    while len(examples) < BATCH:
        problem = draw_problem(config, rng)
        if problem.text not in excluded:
            examples.append(encode_example(tokenizer, problem.text, write_lesson(problem, config, rng)))
    width = max(len(prompt) + len(solution) for prompt, solution in examples)
    tokens = torch.full((BATCH, width), tokenizer.pad_token_id)
    labels = torch.full((BATCH, width), IGNORED)
    for row, (prompt, solution) in enumerate(examples):
        end = len(prompt) + len(solution)
        tokens[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return tokens, labels


class Muon:
    """Nesterov momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al. 2024), in float32.

    torch's own needs bfloat16 matrix products, which are very slow on CPUs without instructions for them.
    """

    MOMENTUM = 0.95
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic whose iteration drives singular values to about 1
    ITERATIONS = 5

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        self._matrices = matrices
        self._momenta = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for matrix, momentum in zip(self._matrices, self._momenta, strict=True):
            assert matrix.grad is not None, "every hidden matrix takes part in the loss"
            momentum.lerp_(matrix.grad, 1 - self.MOMENTUM)
            update = self._orthogonal(matrix.grad.lerp(momentum, self.MOMENTUM))
            rows, columns = matrix.shape
            matrix.sub_(update, alpha=lr * math.sqrt(max(1.0, rows / columns)))

    @classmethod
    def _orthogonal(cls, gradient: Tensor) -> Tensor:
        a, b, c = cls.NEWTON_SCHULZ
        tall = gradient.shape[0] > gradient.shape[1]
        x = gradient.T if tall else gradient
        x = x / (x.norm() + 1e-7)
        for _ in range(cls.ITERATIONS):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x
