"""TensorBoard events, written by tensorboard's own writer: no torch, no TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoardWriter:
    """Scalars by step. The file appears at once; events reach it within ``flush_s``."""

    def __init__(self, folder: Path, *, first_step: int = 1, flush_s: float = 10.0) -> None:
        """A new file in the folder; readers drop what earlier files hold of ``first_step`` and later."""
        self._writer = EventFileWriter(str(folder), flush_secs=flush_s)
        self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()
