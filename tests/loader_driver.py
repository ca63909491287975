"""Loads into vLLM's own models and proofs of them, without an engine, as JSON lines. A process of its own.

python tests/loader_driver.py FOLDER
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip

import msgspec
import torch
import transformers
from bundles import pack_tensors, unpack
from torch import nn
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GPT2Config,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from fr3e_async.learner.export import on_disk
from fr3e_async.learner.spec import free_address
from fr3e_async.rollout import worker_extension
from fr3e_async.rollout.held_weights import HeldWeights
from fr3e_async.rollout.load_trace import LoadLayout
from fr3e_async.rollout.loaded_weights import EVERY, Unproven, prove
from fr3e_async.rollout.port import in_hand
from fr3e_async.weights.manifest import WeightBundle

FOLDER = Path(sys.argv[1])
RANK, WORLD = (int(sys.argv[2]), 2) if len(sys.argv) > 2 else (0, 1)
PORT = int(sys.argv[3]) if len(sys.argv) > 2 else free_address("127.0.0.1")[1]
SHAPE: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
CONFIGS: dict[str, Any] = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=32, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
}


LATENT = SHAPE | EXPERTS | {
    "num_key_value_heads": 2, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
CONFIGS |= {
    "deepseek_v2": DeepseekV2Config(**LATENT, q_lora_rank=None),
    "deepseek_v3": DeepseekV3Config(**LATENT, q_lora_rank=32, topk_method="noaux_tc"),
}
LARGE = {
    "vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8,
    "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
TIMED = {  # 34 and 38 million parameters
    "dense": Qwen2Config(**LARGE, num_hidden_layers=8),
    "mixture": Qwen3MoeConfig(
        **LARGE, num_hidden_layers=4, head_dim=64, moe_intermediate_size=256, num_experts=16, num_experts_per_tok=2
    ),
}


class Loaded(worker_extension.WorkerExtension):
    """A worker with a model as vLLM serves it, the engine's records of it, and the model that a learner would train."""

    def __init__(self, folder: Path, config: Any) -> None:
        torch.manual_seed(0)
        self.learner = transformers.AutoModelForCausalLM.from_config(config).float()
        self.learner.save_pretrained(folder)
        args = EngineArgs(
            model=str(folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
            load_format="safetensors", tensor_parallel_size=WORLD,
            attention_backend="CPU_MLA" if hasattr(config, "kv_lora_rank") else None,  # a CPU with AMX would take one without float32
        )  # fmt: skip
        self.vllm_config = args.create_engine_config()
        self.model_config = self.vllm_config.model_config
        with set_current_vllm_config(self.vllm_config):
            if not torch.distributed.is_initialized():
                os.environ["VLLM_DIST_IDENT"] = str(PORT)
                init_distributed_environment(WORLD, RANK, f"tcp://127.0.0.1:{PORT}", RANK, backend="gloo")
                initialize_model_parallel(WORLD, 1)  # with a group for experts, since the first model has some
            self.model = get_model(vllm_config=self.vllm_config)
        self.model_runner = SimpleNamespace(get_model=lambda: self.model)
        self.held = HeldWeights()
        self.seconds: list[tuple[float, float]] = []  # of CPU time, for each load: loading, proving
        worker_extension.LAYOUT = LoadLayout()

    def changed(self, part: str) -> WeightBundle:
        """The learner's next version: the tensors with ``part`` in their names have changed."""
        with torch.no_grad():
            for name, parameter in self.learner.named_parameters():
                if part in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        weights = dict(self.learner.named_parameters())
        stored = {
            name: tensor for name, tensor in self.learner.state_dict().items() if name in dict(self.learner.named_buffers())
        }
        return pack_tensors(on_disk(self.learner, weights | stored).items(), version=1)

    def load(self, turn: int, *, part: str = "", spoil: Callable[[nn.Module], None] = lambda model: None) -> str:
        """Load a version as an engine does, spoilt before it is proven. What came of it, in short."""
        bundle = self.changed(part)
        asyncio.run(self.held.receive(bundle, in_hand))
        return self._told(bundle, spoil, lambda: self.fr3e_load_weights(*self.held.load_call(bundle.manifest), turn < 2, turn))

    def hand_over(self, turn: int, *, lost: str = "") -> str:
        """The same by vLLM's own transfer, on whose way a tensor may change."""
        bundle = self.changed("")
        manifest = bundle.manifest

        def arrive() -> dict[str, Any]:
            self.fr3e_expect_weights()
            initialize_layerwise_reload(self.model)
            with torch.no_grad(), set_current_vllm_config(self.vllm_config):
                self.model.load_weights((name, tensor + (name == lost)) for name, tensor in unpack(bundle))
                finalize_layerwise_reload(self.model, self.model_config)
            return self.fr3e_prove_weights(list(manifest.names), [list(shape) for shape in manifest.shapes], turn < 2, turn)

        return self._told(bundle, lambda model: None, arrive)

    def experts_error(self) -> float:
        """Largest error of what the layers of experts make of random input, over the largest value that transformers has."""
        hidden, errors = torch.randn(7, 64), []
        with torch.no_grad(), set_current_vllm_config(self.vllm_config), set_forward_context(None, self.vllm_config):
            for ours, theirs in zip(self.model.model.layers, self.learner.model.layers, strict=True):
                wanted = theirs.mlp(hidden[None])[0]
                found = getattr(ours, "block_sparse_moe", getattr(ours, "mlp", None))(hidden)
                errors.append(float((found - wanted).abs().max() / wanted.abs().max()))
        return max(errors)

    def _told(self, bundle: WeightBundle, spoil: Callable[[nn.Module], None], act: Callable[[], dict[str, Any]]) -> str:
        started = time.process_time()

        def proving(*args: Any, **options: Any) -> Any:
            spoil(self.model)
            loaded = time.process_time()
            proof = prove(*args, **options)
            self.seconds.append((loaded - started, time.process_time() - loaded))
            return proof

        worker_extension.prove = proving
        try:
            reply = msgspec.msgpack.decode(msgspec.msgpack.encode(act()))
            replies = [reply] * WORLD
            if WORLD > 1:
                torch.distributed.all_gather_object(replies, reply)
            self.held.proven(bundle.manifest, replies)
        except Unproven as error:
            return str(error)
        same = "same" if self.held.checksum(bundle.manifest) == bundle.checksum else "another"
        return f"{len(reply['exact'])} exact, {len(reply['probed'])} probed, {same} checksum"


def transposed(model: nn.Module) -> None:
    layer = model.get_submodule("model.layers.1.self_attn.o_proj")
    kept = layer.cpu_linear(torch.eye(64), layer.weight, None)  # [K, N], the transpose of the weight
    layer.cpu_linear = lambda x, weight, bias: nn.functional.linear(x, kept, bias)


def one_expert(model: nn.Module) -> None:
    experts = [layer for layer in model.get_submodule("model.layers.0").modules() if "w2_weight" in layer._parameters]
    experts[0].w2_weight.data[2] *= 1.01


def spoilt(found: Loaded) -> Iterator[tuple[str, str]]:
    """(how a load was spoilt, what came of it), on a mixture with a tied head."""
    yield "transposed", found.load(0, spoil=transposed)
    yield "one expert", found.load(0, spoil=one_expert)
    stale = found.model.lm_head.cpu_linear
    yield "stale head", found.load(0, spoil=lambda model: setattr(model.lm_head, "cpu_linear", stale))
    repack, worker_extension.repack = worker_extension.repack, lambda layers: None
    yield "head not packed again", found.load(0)
    worker_extension.repack = repack
    again, worker_extension.unpack_experts = worker_extension.unpack_experts, lambda layers: None
    yield "experts as vLLM reloads them", f"{found.load(0)}; off by {found.experts_error():.0%}"
    worker_extension.unpack_experts = again
    found.model.load_weights = lambda weights: type(found.model).load_weights(
        found.model, ((name, tensor) for name, tensor in weights if "0.self_attn.k_proj.weight" not in name)
    )
    yield "skipped", found.load(0)
    del found.model.load_weights
    yield "changed on the way", found.hand_over(0, lost="model.norm.weight")
    yield "mended", found.load(0)


def shard_of_the_other(model: nn.Module) -> None:
    """From the next load on this worker takes what the first one takes."""
    for layer in model.modules():
        formed = get_layerwise_info(layer).restore_metadata[0].values()
        for kept in (layer, *formed, *layer.parameters(recurse=False)):
            if "tp_rank" in kept.__dict__:
                kept.tp_rank = 0


def one_of_two() -> None:
    found = Loaded(FOLDER / f"mixtral-{RANK}", CONFIGS["mixtral"])
    loads = [found.load(turn) for turn in range(3)] + [found.hand_over(0)]
    if RANK == 1:
        shard_of_the_other(found.model)
    print(json.dumps({"model": f"rank {RANK}", "loads": loads, "wrong": found.load(0)}), flush=True)


def alone() -> None:
    for name, config in CONFIGS.items():
        found = Loaded(FOLDER / name, config)
        loads = [found.load(turn) for turn in range(3)] + [found.load(3, part=".1."), found.hand_over(0), found.hand_over(4)]
        error = found.experts_error() if name.endswith(("moe", "mixtral")) else 0.0
        print(json.dumps({"model": name, "loads": loads, "error": error}), flush=True)
        if name == "qwen3_moe":
            print(json.dumps({"model": "spoilt"} | dict(spoilt(found))), flush=True)
    for name, config in TIMED.items():
        found = Loaded(FOLDER / name, config)
        for turn in range(2 + EVERY):
            found.load(turn)
        load, whole, part = (statistics.median(times) for times in (
            [load for load, _ in found.seconds], [proof for _, proof in found.seconds[:2]], [proof for _, proof in found.seconds[2:]]
        ))  # fmt: skip
        print(json.dumps({"model": name, "load_s": load, "whole_s": whole, "part_s": part}), flush=True)


if __name__ == "__main__":
    torch.accelerator.empty_cache = lambda: None  # vLLM's worker does so too, where there is no accelerator
    if WORLD > 1:
        one_of_two()
    else:
        alone()
