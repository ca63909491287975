"""Which model folder a run uses, and its tokenizer: found, checked and loaded, or refused with the setting's name.

Knows file names, config.json and transformers' tokenizers; loads no weights and knows nothing of problems.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr3e_async.config import Config
from fr3e_async.config.templates import template_of
from fr3e_async.data.toy import ensure_toy
from fr3e_async.errors import ModelError
from fr3e_async.observe.storage import leads_outside

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
    folder = _folder(config)
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
        listed = _json(folder / INDEX, path).get("weight_map") or {}
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
    """Refuse sequences that are longer than the model has positions. Of a hub model it fetches config.json. ``ModelError``.

    Models whose rope is stretched by a factor are left to the engine, which knows the kinds.
    """
    raw = _model_config(config)
    overrides = config.engine.options.get("hf_overrides")  # vLLM's own way to change a model's config
    raw |= _text_part(overrides) if isinstance(overrides, dict) else {}
    stretched = any('"factor"' in json.dumps(raw.get(key)) for key in ("rope_scaling", "rope_parameters"))
    limit = raw.get("max_position_embeddings") or raw.get("n_positions")
    if isinstance(limit, int) and not stretched and config.context_length > limit:
        raise ModelError(
            f"data.max_prompt + sampling.max_response = {config.context_length} tokens, "
            f"but model.path={config.model.path} has {limit} positions (max_position_embeddings in its config.json)"
        )


def end_tokens(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's end token, and those that the model's generation config and the template add.

    Chat models often have two, one for the turn and one for the text; without both, responses run into their budget.
    """
    listed: Any = None
    if config.model.path != "toy":
        from transformers.utils import cached_file

        try:
            file = cached_file(config.model.path, "generation_config.json", revision=config.model.revision or None)
        except OSError:
            file = None  # a model need not have one
        if file is not None:
            listed = _json(Path(file), config.model.path).get("eos_token_id")
    more = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(isinstance(token, int) and token >= 0 for token in more):
        raise ModelError(f"model.path: eos_token_id in the generation_config.json of {config.model.path} must be token ids")
    vocabulary = tokenizer.get_vocab()
    ends = template_of(config.data.template, chat=True).ends
    turns = [vocabulary[text] for text in ends if text in vocabulary]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *(int(token) for token in (*more, *turns))]))


def _model_config(config: Config) -> dict[str, Any]:
    """What config.json says of the language model."""
    path, folder = config.model.path, _folder(config)
    if path == "toy":
        return {"max_position_embeddings": TOY_POSITIONS}
    if os.path.isdir(folder):
        raw = _json(folder / "config.json", path)
    else:
        from transformers import PreTrainedConfig

        try:
            raw, _ = PreTrainedConfig.get_config_dict(path, revision=config.model.revision or "main")
        except (OSError, ValueError) as error:
            raise ModelError(f"model.path: no config.json could be loaded from {path}: {_brief(error)}") from error
    return _text_part(raw)


def transformers_config(config: Config) -> Any:
    """transformers' config of the model; None for the toy. ``ModelError`` if it cannot be loaded."""
    path = config.model.path
    if path == "toy":
        return None
    from transformers import AutoConfig

    source = str(_folder(config)) if os.path.isdir(_folder(config)) else path
    try:
        return AutoConfig.from_pretrained(
            source, revision=config.model.revision or "main", trust_remote_code=config.model.trust_remote_code
        )
    except Exception as error:  # whatever is wrong with it, or with code that came along
        raise ModelError(f"model.path: no config could be loaded from {path}: {_brief(error)}") from error


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
    """A copy of the part for text, of a model that has others."""
    text = raw.get("text_config")
    return dict(text if isinstance(text, dict) else raw)


def _json(file: Path, path: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.path: {file.name} of {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path: {file.name} of {path} holds no JSON object")
    return content


def _folder(config: Config) -> Path:
    return Path(os.path.expanduser(config.model.path))


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), width=300, placeholder=" …")


def resolve_model(config: Config) -> Path | str:
    """The checked local folder, or the hub id as it is. ``model.path=toy`` builds the toy model if it is not cached."""
    check_model(config)
    if config.model.path == "toy":
        return ensure_toy(config)
    folder = _folder(config)
    return folder.resolve() if os.path.isdir(folder) else config.model.path


def load_tokenizer(config: Config, model_dir: Path | str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of ``model_dir``; without it that of ``model.path``, where the toy's needs no built model.

    ``ModelError`` if there is none, it cannot be loaded, or it has no end token (no response would ever end).
    """
    if model_dir is None and config.model.path == "toy":
        from fr3e_async.data.toy.tokenizer import build_tokenizer

        return build_tokenizer()
    check_model(config)
    from transformers import AutoTokenizer

    source = str(_folder(config) if model_dir is None else model_dir)
    source = source if os.path.isdir(source) else config.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=config.model.revision or "main", trust_remote_code=config.model.trust_remote_code
        )
    except Exception as error:  # whatever is wrong with its files; the Rust library raises no narrower class
        wants_code = "trust_remote_code" in str(error) and not config.model.trust_remote_code
        hint = " (code is run with model.trust_remote_code=true, if you trust its source)" if wants_code else ""
        raise ModelError(f"model.path: no tokenizer could be loaded from {source}: {_brief(error)}{hint}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path: the tokenizer of {source} has no end token (eos_token), so no response would end")
    vocabulary = _model_config(config).get("vocab_size")
    if isinstance(vocabulary, int) and tokenizer.eos_token_id >= vocabulary:  # a tokenizer class has made up its default
        raise ModelError(
            f"model.path: the end token {tokenizer.eos_token!r} of {source} is none of the model's: its id is "
            f"{tokenizer.eos_token_id}, vocab_size in config.json is {vocabulary}"
        )
    return tokenizer
