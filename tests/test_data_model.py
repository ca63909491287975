"""Which ids end a response."""

from __future__ import annotations

import json

from builders import small_config
from cli_support import make_model

from fr3e_async.data.model import load_tokenizer
from fr3e_async.data.tokenizer import end_tokens


def test_end_tokens_are_the_tokenizers_and_those_of_the_generation_config(tmp_path):
    folder = make_model(tmp_path / "model")
    config = small_config(model={"path": str(folder)})
    tokenizer = load_tokenizer(config, folder)
    own = int(tokenizer.eos_token_id)
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert end_tokens(config, tokenizer) == (own,)
    for listed, expected in ((3, (own, 3)), ([3, own], (own, 3)), (own, (own,))):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
        assert end_tokens(config, tokenizer) == expected
