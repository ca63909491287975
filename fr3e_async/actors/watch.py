"""What an actor tells about itself while its own methods are stuck: where each thread stands, and whether it gets on.

Ray runs calls of another concurrency group on a thread of their own. Such a group must be declared where the class is made
remote (``watchable``) and named in the call (``ask``); Ray ends the process of an actor that is asked without the declaration.
A thread that holds Python's lock for ever, in C code, silences this too: whoever asks needs a limit.
"""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import ray

GROUP = "watch"
FRAMES = 12  # innermost, of each thread or task
# Innermost frames (end of the file's path, function) of threads that wait for work: pools, Ray's own.
IDLE = (("concurrent/futures/thread.py", "_worker"), ("ray/_private/worker.py", "main_loop"))
IDLE_THREADS = ("PythonGCThread",)


def watchable(actor_class: type) -> Any:
    """The actor class made remote, ready for ``.options(...)``."""
    return ray.remote(concurrency_groups={GROUP: 1})(actor_class)


def ask(actor: Any, method: str) -> ray.ObjectRef:
    """Call ``stacks`` or ``pulse`` of an actor whose class is ``Watched`` and was made ``watchable``."""
    return getattr(actor, method).options(concurrency_group=GROUP).remote()


class Watched:
    """Base of the actors. One with an event loop sets ``loop``, so that its tasks are told, too."""

    loop: asyncio.AbstractEventLoop | None = None

    def node(self) -> str:
        """Id of the node that this process runs on. Answers as soon as the process is there."""
        return ray.get_runtime_context().get_node_id()

    def stacks(self) -> str:
        """Return the stacks of this process's threads and of its event loop's tasks; the innermost call comes last."""
        parts = [*thread_stacks(), *(task_stacks(self.loop) if self.loop is not None else ())]
        return "\n".join(parts) or "every thread waits for work"

    def pulse(self) -> int:
        """A number that changes when the actor makes progress."""
        raise NotImplementedError


def thread_stacks() -> Iterator[str]:
    """Yield the stack of every thread but the caller's and idle ones, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        name = names.get(ident, "unnamed")
        if ident != threading.get_ident() and not _idle(name, frame):
            yield _told(f"thread {name}:", _of_frame(frame))


def task_stacks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    """Of every task that is not done, alike ones once with their number, from any thread."""
    chains = Counter(tuple(_of_awaits(task.get_coro())) for task in asyncio.all_tasks(loop))
    for chain, count in chains.most_common():
        if chain:
            yield _told(f"{count} task{'s' * (count > 1)}:", list(chain))


def _idle(name: str, frame: FrameType) -> bool:
    code = frame.f_code
    return name in IDLE_THREADS or any(code.co_filename.endswith(file) and code.co_name == called for file, called in IDLE)


def _of_frame(frame: FrameType | None) -> list[str]:
    """List a thread's calls, one line each, outermost first."""
    lines = []
    while frame is not None:
        lines.append(_line(frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return lines[::-1]


def _of_awaits(waiting: Any) -> Iterator[str]:
    """The coroutines that wait for each other, outermost first; the chain ends at a future or an asynchronous generator."""
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        yield _line(frame.f_code, frame.f_lineno)
        waiting = waiting.cr_await


def _line(code: CodeType, number: int) -> str:
    return f"{'/'.join(code.co_filename.rsplit('/', 2)[-2:])}:{number} {code.co_name}"


def _told(title: str, calls: list[str]) -> str:
    return "\n  ".join([title, *calls[-FRAMES:]])
