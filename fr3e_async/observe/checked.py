"""JSON files that carry the checksum of what they say, so that damage shows before anything is believed. Nothing else."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from fr3e_async.errors import StorageError


def checked_json(content: Any) -> str:
    """The text of such a file."""
    body = json.dumps(content, sort_keys=True)
    return f'{{"crc32": {zlib.crc32(body.encode())},\n"content": {body}}}\n'


def read_checked_json(path: Path) -> Any:
    """What ``checked_json`` was given. Raises ``StorageError``: not there, cut off, or changed since."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        content, expected = whole["content"], whole["crc32"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is not readable ({error})") from error
    if zlib.crc32(json.dumps(content, sort_keys=True).encode()) != expected:
        raise StorageError(f"{path} is damaged: it does not have the checksum it was written with")
    return content
