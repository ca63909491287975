"""``VerifierPool``: verdicts on responses, from any thread or from an asyncio actor, whatever the responses contain.

Plain integers are compared here and now; everything else goes to one of ``workers`` killable processes, which are made
when they are first needed. Knows nothing of rollouts, Ray or what is done with an unknown verdict.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.types import Outcome, Verdict
from fr3e_async.verify import answers
from fr3e_async.verify.limits import Limits
from fr3e_async.verify.process import Nursery, NurseryGone, Reply, Worker, WorkerGone, start_failed


class VerifierPool:
    """Judges answers in killable processes. Close it, or use it in a ``with`` block.

    Example: ``pool.judge("so \\\\boxed{0.50}", "1/2")`` is right with the reason "math-verify".
    """

    def __init__(self, config: VerifierPoolConfig) -> None:
        """Starts nothing; see ``warm``."""
        self._config = config
        self._limits = Limits(cpu_s=config.cpu_limit_s, memory_bytes=int(config.memory_gib * 2**30))
        self._nursery: Nursery | None = None
        self._nursery_lock = threading.Lock()
        self._closed = False
        # None stands for a worker still to be made. Last in, first out: made ones are used before another is made.
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(config.workers):
            self._free.put(None)
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="verify")
        self.replaced = 0  # workers that were ended by a limit or died, ever

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm(self) -> None:
        """Start the process that holds math-verify, in the background; without this the first answer that needs it waits."""
        self._threads.submit(self._running_nursery)

    def judge(self, response: str, gold: str) -> Verdict:
        """The verdict on one response; once a worker is free it takes at most about ``verifiers.wall_limit_s``.

        Questions wait for a worker in the order in which they came. Raises ``RunFailed`` if no worker can be started.
        """
        return self._judge_quickly(response, gold) or self._threads.submit(self._judge_slowly, response, gold).result()

    async def judge_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (response, gold) pairs, in their order, without blocking the event loop on a worker."""
        loop = asyncio.get_running_loop()

        async def judge(response: str, gold: str) -> Verdict:
            quick = self._judge_quickly(response, gold)
            if quick is not None:
                return quick
            return await loop.run_in_executor(self._threads, self._judge_slowly, response, gold)

        return await asyncio.gather(*(judge(response, gold) for response, gold in items))

    def close(self) -> None:
        """Finish what is being judged and end all processes. Idempotent."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._nursery_lock:
            nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.close()

    def _judge_quickly(self, response: str, gold: str) -> Verdict | None:
        """The verdict if it takes no process, else None."""
        config = self._config
        answer, gold = _stripped(response, gold)
        return answers.quick_verdict(answer, gold, max_chars=config.max_answer_chars, exact_integers=config.exact_integers)

    def _judge_slowly(self, response: str, gold: str) -> Verdict:
        answer, gold = _stripped(response, gold)
        reply = self._ask(answer or "", gold)
        return Verdict(outcome=Outcome(reply.outcome), reason=reply.reason)

    def _ask(self, answer: str, gold: str) -> Reply:
        """Put the question to a free worker; to another if that one turns out to be dead."""
        worker = self._free.get()
        kept: Worker | None = None
        try:
            while True:
                worker = worker or self._new_worker()
                try:
                    reply = worker.ask(answer, gold, wall_limit_s=self._config.wall_limit_s)
                except WorkerGone:  # killed while idle, e.g. by the kernel for memory
                    worker = None
                    self.replaced += 1
                    continue
                if reply.usable:
                    kept = worker
                else:
                    self.replaced += 1
                return reply
        finally:
            self._free.put(kept)

    def _new_worker(self) -> Worker:
        for _ in range(2):  # the nursery itself may have been killed since it was last used
            try:
                return self._running_nursery().fork()
            except NurseryGone:
                continue
        raise start_failed()

    def _running_nursery(self) -> Nursery:
        with self._nursery_lock:
            if self._closed:
                raise RuntimeError("verifier pool: used after close")
            if self._nursery is None or not self._nursery.alive:
                if self._nursery is not None:
                    self._nursery.close()
                self._nursery = Nursery(self._limits)
            return self._nursery


def _stripped(response: str, gold: str) -> tuple[str | None, str]:
    """(answer, gold), both without box and dollar signs; the answer is None if the response has none."""
    answer = answers.final_answer(response)
    meant = answers.final_answer(gold) or gold
    return answer if answer is None else answers.strip_dollars(answer), answers.strip_dollars(meant)
