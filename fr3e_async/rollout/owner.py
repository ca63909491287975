"""Ends a process as soon as its owner is gone. vLLM's core process would wait for its next request for ever.

Knows nothing of engines. Linux only (process file descriptors).
"""

from __future__ import annotations

import os
import select
import threading

OWNER_VARIABLE = "FR3E_ENGINE_OWNER"  # process id of the owner, inherited by the processes that vLLM starts


def claim_children() -> None:
    """Make this process the owner of the engine processes that it starts from now on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def die_with_owner() -> None:
    """End this process, at once and without clean-up, when the owner ends. Without an owner nothing happens."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None or int(owner) == os.getpid():
        return
    try:
        handle = os.pidfd_open(int(owner))
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_wait, args=(handle,), name="owner-watch", daemon=True).start()


def _wait(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)  # readable once the process has ended
    poll.poll()
    os._exit(1)
