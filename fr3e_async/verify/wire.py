"""Messages between a pool and its worker: JSON values over a stream socket, each with its length in front.

JSON and never pickle, because what comes back was made next to a model's output. Both directions can have a time limit: a
worker that is stopped must not hold up the thread that writes to it.
"""

import json
import socket
import struct
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self

_LENGTH = struct.Struct("!I")
_CHUNK = 65536  # bytes asked of the kernel at once


class Channel:
    """Sends and receives messages over one end of a socket pair. Not thread-safe."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = bytearray()

    def send(self, value: Any, *, limit_s: float | None = None) -> None:
        """Send a JSON value. Raises ``TimeoutError`` (a part may have been sent) and ``BrokenPipeError``."""
        data = json.dumps(value).encode()
        self._socket.settimeout(limit_s)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, *, limit_s: float | None = None) -> Any:
        """The next value. Raises ``TimeoutError``, ``EOFError`` if the other end has closed, ``ConnectionResetError``."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            if len(self._received) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
                if len(self._received) >= end:
                    data = bytes(self._received[_LENGTH.size : end])
                    del self._received[:end]
                    return json.loads(data)
            if deadline is None:
                self._socket.settimeout(None)
            else:
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            chunk = self._socket.recv(_CHUNK)
            if not chunk:
                raise EOFError
            self._received += chunk

    def close(self) -> None:
        self._socket.close()


# ---- What a fork server is told when it starts: the job of its workers and the limits of one task ----
# Apart from ``worker`` because the parent must not load math-verify, and a worker must not load our configuration.


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Processor seconds and address space (bytes) that one task may use."""

    cpu_s: float
    memory_bytes: int  # address space of the process


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that the workers of one fork server have in common."""

    job: str  # "math", "references" or package.module:function; see ``jobs``
    limits: Limits
    sys_path: tuple[str, ...]  # where modules are looked for: the parent's, so that a user's function is found
    options: dict[str, Any] = field(default_factory=dict)  # of the job

    @property
    def built_in(self) -> bool:
        """Whether the job is one of the package's own, so that no code of a user runs."""
        return ":" not in self.job

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        return cls(**values | {"limits": Limits(**values["limits"]), "sys_path": tuple(values["sys_path"])})
