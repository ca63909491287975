"""One request in vLLM's words, and which weights made each token of its answer. Importing this module imports vllm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from fr3e_async.rollout.port import EngineSpec, SampleRequest


def check_request(request: SampleRequest, spec: EngineSpec) -> None:
    """Raise ``ValueError`` for a request that this engine cannot take."""
    if len(request.context) >= spec.max_model_len:
        raise ValueError(
            f"request {request.request_id}: a context of {len(request.context)} tokens leaves no room in a model length "
            f"of {spec.max_model_len}"
        )
    if request.seed is not None and not spec.seeded:
        raise ValueError(f"request {request.request_id} carries a seed; the engine was started without EngineSpec.seeded")


def sampling_params(request: SampleRequest, spec: EngineSpec, *, logprobs: int) -> SamplingParams:
    """``logprobs``: what the entropy provider asks for."""
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop_token_ids=list(spec.end_token_ids),
        logprobs=logprobs,
        flat_logprobs=True,
        stop=list(spec.stops),
        include_stop_str_in_output=True,
        detokenize=bool(spec.stops),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def versions_of(sampled: CompletionOutput, length: int) -> NDArray[np.int32]:
    """[length] the weight version of each token, from vLLM's spans."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise RuntimeError(f"the engine gave no weight version for {int((versions < 0).sum())} of {length} tokens")
    return versions
