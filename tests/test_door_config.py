"""What a model's config tells is refused before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import TOY, Cli, guarded_cli, make_model

CAPPED = {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}
CHUNKED = {
    "model_type": "gemma2",
    "attn_logit_softcapping": None,
    "layer_types": ["chunked_attention"] * 2,
    "num_hidden_layers": 2,
}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


@pytest.mark.parametrize(
    ("config", "packing", "says"),
    [
        (CAPPED, "flat", ["learner.attention=sdpa ignores this model's attn_logit_softcapping; set learner.attention=eager"]),
        (CHUNKED, "tree", ["learner.packing=tree does not work", "layers of type chunked_attention"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "tree", ["rope_type=dynamic"]),
        ({"model_type": "unheard-of"}, "tree", ["model.path: no config could be loaded", "unheard-of"]),
    ],
)
def test_a_config_that_does_not_fit_is_one_line_before_anything_starts(
    cli: Cli, config: Any, packing: str, says: list[str]
) -> None:
    model = make_model(cli.folder / "model", **config)
    cli.refused(*TOY, f"model.path={model}", "data.template={problem}", f"learner.packing={packing}", says=says)
