"""The command line as a person meets it: in process with everything that must not happen guarded, or as a real process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from fr3e_async.cli.main import run

POSITIONS = 128  # of the model that ``make_model`` makes
# The embedded default with the lengths that tests count on, and few problems to read.
TOY = (
    "config=toy", "data.max_prompt=48", "sampling.max_response=64", "toy.train_problems=20", "toy.heldout_problems=5",
)  # fmt: skip
ROWS = tuple(f'{{"problem": "{i}+1", "answer": "{i + 1}"}}' for i in range(3))


def make_model(folder: Path, **changes: Any) -> Path:
    """A model folder that passes all checks; nothing reads its weights, and its tokens are characters.

    ``changes`` go into config.json; None takes an entry out.
    """
    characters = "0123456789+\n" + "".join(chr(i) for i in range(32, 127) if chr(i) not in "0123456789+")
    vocabulary = {"<end>": 0, "<unknown>": 1} | {character: i for i, character in enumerate(characters, start=2)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"},
    }
    config = {"model_type": "llama", "max_position_embeddings": POSITIONS, "vocab_size": len(vocabulary)} | changes
    contents = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"},
        "config.json": {name: value for name, value in config.items() if value is not None},
    }
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_rows(path: Path, *rows: str | bytes) -> Path:
    path.write_bytes(b"".join((row.encode() if isinstance(row, str) else row) + b"\n" for row in rows))
    return path


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Relative path → content (None: a folder)."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def forbid(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    def forbidden(*_: object, **__: object) -> NoReturn:
        pytest.fail(f"{target} was called")

    monkeypatch.setattr(target, forbidden)


class Cli:
    """``fr3e train`` in a folder of its own, an empty home beside it; no Ray, no toy model may be started or built."""

    def __init__(self, folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.home, self._capsys = folder, home, capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        self._capsys.readouterr()
        code = run(["train", *argv])
        return code, *self._capsys.readouterr()

    def refused(self, *argv: str, says: Sequence[str]) -> str:
        """Bad input: exit code 2, one line on stderr with all of ``says``, nothing on stdout, no file made or changed."""
        before = everything_below(self.folder)
        code, out, err = self(*argv)
        assert_one_line(err, says)
        assert (code, out) == (2, "")
        assert everything_below(self.folder) == before
        assert everything_below(self.home) == {}
        return err


@contextlib.contextmanager
def guarded_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    for name in ("folder", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    forbid(monkeypatch, "ray.init")
    forbid(monkeypatch, "fr3e_async.data.toy.cache.build")
    handlers = logging.root.handlers[:]
    with mock.patch.dict(os.environ, {"HOME": str(tmp_path / "home")}):
        yield Cli(tmp_path / "folder", tmp_path / "home", capsys)
    logging.root.handlers[:] = handlers  # a session that came as far as its run directory has replaced them
    logging.captureWarnings(False)


def assert_one_line(err: str, says: Sequence[str]) -> None:
    assert err.startswith("error: "), err
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert [part for part in says if part not in err] == [], err


def process(*argv: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m fr3e_async.main`` for real, with an empty home; Ray, should it start, would leave ``ray-was-here``."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")}
    home = {"HOME": str(folder), "RAY_TMPDIR": str(folder / "ray-was-here")}
    command = [sys.executable, "-m", "fr3e_async.main", *argv]
    return subprocess.run(command, cwd=folder, env=clean | home | environment, capture_output=True, text=True, timeout=600)
