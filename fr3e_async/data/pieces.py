"""Token ids as pieces of text, one for each token, for people to look at. Knows tokenizers, not what the text is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spell = Callable[[NDArray], list[str]]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that a decoder leaves out if it is asked to: those that have a role, and those that the vocabulary merely calls special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}


def speller(tokenizer: PreTrainedTokenizerBase) -> Spell:
    """Pieces that joined are the text, special tokens included. A character that several tokens make up stands with the last one.
    An id that the tokenizer does not have, of a padded vocabulary, is written as such: ``<id 151700>``.

    A tokenizer of the slow kind has each token decoded alone, where such a character becomes replacement characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda tokens: [str(tokenizer.decode([int(token)])) for token in tokens]
    from tokenizers.decoders import DecodeStream

    def spell(tokens: NDArray) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        return [
            f"<id {token}>" if backend.id_to_token(int(token)) is None else stream.step(backend, int(token)) or ""
            for token in tokens
        ]

    return spell
