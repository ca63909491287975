"""Which model folder a run uses, and its tokenizer: found, checked and loaded, or refused with the setting's name.

Knows file names, config.json and transformers' tokenizers; loads no weights and knows nothing of problems.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr3e_async.config import Config
from fr3e_async.config.vllm_options import config_overrides
from fr3e_async.data.toy import ensure_toy
from fr3e_async.errors import ModelError
from fr3e_async.files.durable import leads_outside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")  # "name" or "owner/name"
INDEX = "model.safetensors.index.json"  # lists the files of weights that are stored in several
SHARD = re.compile(r"[^/\\]+\.safetensors")  # what the index may list: files of the folder itself
COPIED = (".json", ".txt", ".model", ".jinja", ".py")  # endings of the small files that checkpoints and exports take along
TOY_POSITIONS = 4096  # the toy model's max_position_embeddings, known before it is built
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")


def check_model(config: Config) -> None:
    """Refuse a ``model.path`` that cannot work, without building, downloading or loading anything. ``ModelError``."""
    path = config.model.path
    if path == "toy":
        return
    folder = model_folder(config)
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise ModelError(f"model.path: {path} is a file; a model folder was expected")
        if not HUB_ID.fullmatch(path):
            raise ModelError(f"model.path: there is no folder {path}, and it is not a hub id (owner/name)")
        return
    if not os.path.isfile(folder / "config.json"):
        raise ModelError(f"model.path: {path} has no config.json; it is not a Hugging Face model folder")
    if not any(os.path.isfile(folder / name) for name in TOKENIZER_FILES):
        raise ModelError(f"model.path: {path} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model.path: {path} has no weights (*.safetensors; other formats can carry code and are not read)")
    if os.path.isfile(folder / INDEX):
        listed = read_json(folder / INDEX, path).get("weight_map") or {}
        names = set(map(str, listed.values())) if isinstance(listed, dict) else {str(listed)}
        strange = sorted(name for name in names if not SHARD.fullmatch(name))
        if strange:
            raise ModelError(f"model.path: {INDEX} of {path} lists {strange[0]!r}, which is no *.safetensors file of that folder")
        missing = sorted(name for name in names if not os.path.isfile(folder / name))
        if missing:
            raise ModelError(f"model.path: {path} lacks weights: {missing[0]} of {INDEX} is not there ({len(missing)} missing)")
    for file in sorted(folder.iterdir()):
        if file.suffix in COPIED and leads_outside(file, folder):
            raise ModelError(
                f"model.path: {file.name} of {path} is a link to a file outside of that folder, and would be copied into every "
                "checkpoint; put the file itself there"
            )


def check_context(config: Config) -> None:
    """Refuse quantised weights, and sequences longer than the model's positions. ``ModelError``.

    Fetches config.json of a hub model. Models whose rope is stretched by a factor are left to the engine, which knows the kinds.
    """
    whole = _model_config(config)
    overrides = config_overrides(config.engine.options)
    if whole.get("quantization_config"):
        raise ModelError(
            f"model.path: the weights of {config.model.path} are quantised (quantization_config), which cannot be trained"
        )
    if overrides and isinstance(whole.get("text_config"), dict):
        raise ModelError(
            f"engine.options.hf_overrides does not reach the text_config of model.path={config.model.path}; "
            "change config.json in a copy of its folder"
        )
    raw = _text_part(whole) | overrides
    stretched = any('"factor"' in json.dumps(raw.get(key)) for key in ("rope_scaling", "rope_parameters"))
    limit = raw.get("max_position_embeddings") or raw.get("n_positions")
    if isinstance(limit, int) and not stretched and config.context_length > limit:
        raise ModelError(
            f"data.max_prompt + sampling.max_response = {config.context_length} tokens, "
            f"but model.path={config.model.path} has {limit} positions (max_position_embeddings in its config.json)"
        )


def _model_config(config: Config) -> dict[str, Any]:
    """Return the language model's part of config.json."""
    path, folder = config.model.path, model_folder(config)
    if path == "toy":
        return {"max_position_embeddings": TOY_POSITIONS}
    if os.path.isdir(folder):
        return read_json(folder / "config.json", path)
    from transformers import PreTrainedConfig

    try:
        return dict(PreTrainedConfig.get_config_dict(path, revision=config.model.revision or "main")[0])
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: no config.json could be loaded from {path}: {_brief(error)}") from error


def transformers_config(config: Config) -> Any:
    """Load transformers' config of the model, with ``engine.options.hf_overrides``; None for the toy. ``ModelError`` on failure."""
    path = config.model.path
    if path == "toy":
        return None
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(_source(config), **_options(config))
        for name, value in config_overrides(config.engine.options).items():
            setattr(found, name, value)
        return found
    except Exception as error:  # any fault of the config, or of the code shipped with it
        raise ModelError(f"model.path: no config could be loaded from {path}: {_brief(error)}") from error


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
    """Copy the config; for a multimodal model, copy its text part."""
    text = raw.get("text_config")
    return dict(text if isinstance(text, dict) else raw)


def read_json(file: Path, path: str) -> dict[str, Any]:
    """Read a JSON file of the model ``path``. ``ModelError`` if it holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.path: {file.name} of {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path: {file.name} of {path} holds no JSON object")
    return content


def model_folder(config: Config) -> Path:
    """The folder of a local model; for a hub id it does not exist."""
    return Path(os.path.expanduser(config.model.path))


def _source(config: Config) -> str:
    """The local folder, or the hub id."""
    folder = model_folder(config)
    return str(folder) if os.path.isdir(folder) else config.model.path


def _options(config: Config) -> dict[str, Any]:
    """Return the further arguments of every ``from_pretrained``."""
    return {"revision": config.model.revision or "main", "trust_remote_code": config.model.trust_remote_code}


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), width=300, placeholder=" …")


def resolve_model(config: Config, say: Callable[[str], None] = lambda text: None) -> Path | str:
    """Check the model and return its local folder, or its hub id. Builds the toy model for ``model.path=toy`` if it is not cached.

    ``say`` is called with a line while the toy model is built.
    """
    check_model(config)
    if config.model.path == "toy":
        return ensure_toy(config, say)
    source = _source(config)
    return Path(source).resolve() if os.path.isdir(source) else source


def load_tokenizer(config: Config, model_dir: Path | str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of ``model_dir``; without it that of ``model.path``, where the toy's needs no built model.

    ``ModelError`` if there is none, it cannot be loaded, or it has no end token (no response would ever end).
    """
    if model_dir is None and config.model.path == "toy":
        from fr3e_async.data.toy.tokenizer import build_tokenizer

        return build_tokenizer()
    check_model(config)
    from transformers import AutoTokenizer

    source = str(model_dir) if model_dir is not None and os.path.isdir(model_dir) else _source(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_options(config))
    except Exception as error:  # whatever is wrong with its files; the Rust library raises no narrower class
        wants_code = "trust_remote_code" in str(error) and not config.model.trust_remote_code
        hint = " (code is run with model.trust_remote_code=true, if you trust its source)" if wants_code else ""
        raise ModelError(f"model.path: no tokenizer could be loaded from {source}: {_brief(error)}{hint}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path: the tokenizer of {source} has no end token (eos_token), so no response would end")
    vocabulary = _text_part(_model_config(config)).get("vocab_size")
    if isinstance(vocabulary, int) and tokenizer.eos_token_id >= vocabulary:  # a tokenizer class has made up its default
        raise ModelError(
            f"model.path: the end token {tokenizer.eos_token!r} of {source} is none of the model's: its id is "
            f"{tokenizer.eos_token_id}, vocab_size in config.json is {vocabulary}"
        )
    return tokenizer
