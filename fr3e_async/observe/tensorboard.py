"""TensorBoard events (scalars and texts), in tensorboard's own records: no torch, no TensorFlow, and no thread, so that an error comes where it belongs."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from fr3e_async.clock import Clock
from fr3e_async.files.durable import storage_errors


class TensorBoardWriter:
    """Scalars and texts by step. Each event is handed to the system before ``write`` returns."""

    def __init__(self, folder: Path, *, clock: Clock, first_step: int = 1) -> None:
        """A new file in the folder, stamped by ``clock``, which must not go back from one session to the next; readers drop what
        earlier files hold of ``first_step`` and later. Raises ``StorageError``."""
        self._folder, self._clock = folder, clock
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Readers take files in the order of their names, and of two sessions within a second both are wanted.
            name = f"{clock():010.0f}.{socket.gethostname()}.{os.getpid()}.{len(list(folder.iterdir()))}"
            self._file = open(folder / f"events.out.tfevents.{name}", "wb")  # noqa: SIM115 - open as long as the writer
        self.records = RecordWriter(self._file)
        self._add(Event(wall_time=clock(), file_version="brain.Event:2"))
        self._add(Event(wall_time=clock(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics as scalars to the event file. Raises ``StorageError`` on a full disk."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(Event(wall_time=self._clock(), step=step, summary=Summary(value=values)))

    def text(self, step: int, name: str, rows: Sequence[Sequence[str]]) -> None:
        """A table of texts, the first row being its head; all rows are as long. Raises ``StorageError``."""
        cells = [cell.encode() for row in rows for cell in row]
        dims = [TensorShapeProto.Dim(size=size) for size in (len(rows), len(rows[0]))]
        table = TensorProto(dtype=DT_STRING, string_val=cells, tensor_shape=TensorShapeProto(dim=dims))
        shown_as = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=name, tensor=table, metadata=shown_as)
        self._add(Event(wall_time=self._clock(), step=step, summary=Summary(value=[value])))

    def close(self) -> None:
        """Flush and close the event file; a second call does nothing. Raises ``StorageError``."""
        with storage_errors(self._folder):
            self._file.close()

    def _add(self, event: Event) -> None:
        with storage_errors(self._folder):
            self.records.write(event.SerializeToString())
            self._file.flush()
