"""vLLM alone on exported folders: its own start and its own ``reload_weights``, beside transformers. Run in a fresh process.

``families.py`` starts it (``ask_alone``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from family_models import LONGEST, reference, requests_of


def alone(folders: list[Path]) -> list[list[float]]:
    """Log-prob errors of vLLM as it comes: the first folder, then the others by its own ``reload_weights``. In a fresh process."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model=str(folders[0]), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=LONGEST,
        kv_cache_memory_bytes=50 << 20, block_size=32, max_num_seqs=8,
    )  # fmt: skip
    errors = []
    for number, folder in enumerate(folders):
        if number:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            llm.reset_prefix_cache()
        worst, model = 0.0, reference(folder)
        for request in requests_of("alone"):
            prompt = TokensPrompt(prompt_token_ids=request.context.tolist())
            settings = SamplingParams(max_tokens=24, logprobs=0, detokenize=False, temperature=1.0)
            (out,) = llm.generate(prompt, settings, use_tqdm=False)[0].outputs
            ids = torch.tensor([*request.context.tolist(), *out.token_ids])
            with torch.no_grad():
                want = torch.log_softmax(model(ids[None], use_cache=False).logits[0], -1)[len(request.context) - 1 : -1]
            mine = torch.tensor([chosen[token].logprob for chosen, token in zip(out.logprobs, out.token_ids, strict=True)])
            worst = max(worst, float((want.gather(-1, ids[len(request.context) :, None])[:, 0] - mine).abs().max()))
        errors.append([worst])
    return errors


def ask_alone(folders: list[Path]) -> dict[str, Any]:
    """The same in a process of its own: errors, or what it died of."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "errors.json"
        command = [sys.executable, "-c", "import family_alone; family_alone.write()", str(out), *map(str, folders)]
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=400,
            cwd=Path(__file__).parent,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        )
        if out.exists():
            return {"alone": json.loads(out.read_text())}
        return {"alone": [], "alone_error": last_error(ended.stderr)}


def last_error(text: str) -> str:
    named = [line.strip() for line in text.splitlines() if "Error" in line]
    return named[-1][:120] if named else "it ended without a word"


def write() -> None:
    """In the process of its own: the errors as JSON."""
    Path(sys.argv[1]).write_text(json.dumps(alone([Path(name) for name in sys.argv[2:]])))
