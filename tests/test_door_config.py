"""What a model's config tells is refused before anything is started; a window that no row is longer than is no reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cli_support import TOY, Cli, guarded_cli, make_model
from tree_support import plain_model, sizes

from fr3e_async.errors import ModelError
from fr3e_async.learner.config_check import check_config, wide
from fr3e_async.learner.inputs import Inputs
from fr3e_async.learner.logprobs import HeadOptions
from fr3e_async.learner.packing import Packing, collate, unscored
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.learner.suitability import check_model

CAPPED = {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}
SLIDING = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (CAPPED, ["learner.attention=sdpa ignores this model's attn_logit_softcapping; set learner.attention=eager"]),
        (SLIDING | {"sliding_window": 111}, ["learner.packing=tree does not work", "layers of type sliding_attention"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, ["rope_type=dynamic"]),
        ({"model_type": "unheard-of"}, ["model.path: no config could be loaded", "unheard-of"]),
    ],
)
def test_a_config_that_does_not_fit_is_one_line_before_anything_starts(cli: Cli, config: Any, says: list[str]) -> None:
    model = make_model(cli.folder / "model", **config)
    cli.refused(*TOY, f"model.path={model}", "data.template={problem}", says=says)


@pytest.mark.parametrize(("window", "fits"), [(111, False), (112, True), (4096, True), (None, False)])
@pytest.mark.parametrize("packing", ["tree", "flat", "padded"])
def test_a_window_as_wide_as_the_longest_row_is_none(window: int | None, fits: bool, packing: Packing) -> None:
    config = transformers.Qwen2Config(
        use_sliding_window=True, max_window_layers=1, num_hidden_layers=2, sliding_window=window,
        layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    if packing == "tree" and not fits:
        with pytest.raises(ModelError, match="layers of type sliding_attention"):
            check_config(config, packing=packing, attention="sdpa", context=112)
    else:
        check_config(config, packing=packing, attention="sdpa", context=112)


def test_without_a_longest_row_every_window_counts() -> None:
    assert not wide(4096, 0)


@pytest.mark.parametrize(
    "config",
    [
        ("Qwen2Config", sizes(use_sliding_window=True, sliding_window=9, max_window_layers=1)),
        ("MistralConfig", sizes(sliding_window=9)),
        ("Gemma3TextConfig", sizes(head_dim=8, num_key_value_heads=2, sliding_window=9, pad_token_id=0)),
    ],
)  # fmt: skip
def test_a_wide_window_gives_the_numbers_of_single_rows_in_a_tree(config: tuple[str, dict[str, Any]], monkeypatch: Any) -> None:
    """Rows of nine tokens, one after another by the model itself, and together as a tree."""
    monkeypatch.setattr("tree_support.CONFIGS", {config[0]: config})
    plain = copy.deepcopy(plain_model(config[0], torch.float32))
    rows = [np.asarray(row, dtype=np.int32) for row in ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9, 7, 1, 3], [1, 2, 8])]
    with torch.no_grad():
        want = [torch.log_softmax(plain(torch.from_numpy(row)[None].long()).logits[0, :-1].double(), -1) for row in rows]
    policy = PolicyModel(copy.deepcopy(plain), options=HeadOptions())
    check_model(policy, packing="tree", context=9)
    batch = collate([unscored(row[:1], row[1:]) for row in rows], packing="tree")
    with torch.no_grad():
        found = policy(Inputs.of(batch, torch.device("cpu")))[0][torch.from_numpy(batch.pick)]
    exact = torch.cat(
        [table.gather(-1, torch.from_numpy(row[1:]).long()[:, None])[:, 0] for table, row in zip(want, rows, strict=True)]
    )
    assert float((found.double() - exact).abs().max()) < 1e-4
    with pytest.raises(ModelError):
        check_model(PolicyModel(copy.deepcopy(plain), options=HeadOptions()), packing="tree", context=10)
