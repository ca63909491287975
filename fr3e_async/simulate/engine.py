"""An inference engine with continuous batching, as a fluid: n running requests share decode steps of a + b·n seconds.

A step gives every running request one token. Context tokens that are not in the prefix cache cost c seconds each, and while
they are computed nobody decodes. The engine counts steps; a request that begins at step s with L tokens to go ends at
s + L, whatever the load does meanwhile. So one event costs O(log n). Fractions of a step are allowed.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fr3e_async.simulate.clock import Cores, VirtualClock
from fr3e_async.simulate.service import EngineTimes

NEAR = 1e-6  # steps or seconds: what floating point leaves of a request that is done
HEADROOM = 16  # tokens that must be free in the cache for each running request before one more begins: a block


@dataclass(slots=True, eq=False)
class Request:
    """One rollout in a simulated engine; lengths and progress are in tokens."""

    job: Any  # the task that it is of
    length: int  # to be generated
    fresh: int  # context that the prefix cache did not have
    done: float = 0.0  # generated before it was evicted
    start: float = 0.0  # step at which it began, had it not been evicted
    version: int = -1  # weights that made its first token
    entry: int = 0  # number of its entry in the heap; 0: it does not run
    row: Any = None  # the rollout, for who asked for it


class SimulatedEngine:
    """See the module's docstring. ``ended(request)`` is called when its last token is made."""

    def __init__(
        self, clock: VirtualClock, cores: Cores, times: EngineTimes, *, max_running: int, threads: int,
        ended: Callable[[Request], None],
    ) -> None:  # fmt: skip
        self._clock, self._cores, self._times, self._ended = clock, cores, times, ended
        self._max_running, self._threads = max_running, threads
        self.version = 0
        self.cache = 0  # it is emptied by new weights: then this number grows
        self.preempted = 0  # evictions since ``pressure`` was read
        self._waiting: deque[Request] = deque()
        self._running: dict[Request, None] = {}  # in order of admission
        self._ends: list[tuple[float, int, Request]] = []
        self._steps, self._at, self._speed = 0.0, clock.now, 1.0
        self._owed = self._paid = 0.0  # seconds of work before the next step: prefill, loading
        self._loads: deque[tuple[float, Callable[[Any], None], Any]] = deque()  # by the work paid when it is done
        self._base = 0.0  # tokens in the cache = base + running requests · steps
        self._entries = 0
        self._stamp = 0
        self._dead = False

    # ---- what the world does with it ----

    def add(self, requests: Iterable[Request]) -> None:
        self._advance()
        self._waiting.extend(requests)
        self._settle()

    def load(self, seconds: float, *, clear_cache: bool, call: Callable[[Any], None], argument: Any) -> None:
        """Stand still for new weights; with ``clear_cache`` what the running requests have in the cache is computed again."""
        self._advance()
        self._owed += seconds
        self._loads.append((self._owed, call, argument))
        if clear_cache:
            self.cache += 1
            self._owed += self._times.prefill_s * self._tokens
        self._settle()

    def withdraw(self, jobs: set[Any]) -> None:
        """Stop the running requests of these jobs and remove their waiting ones."""
        self._advance()
        self._waiting = deque(r for r in self._waiting if r.job not in jobs)
        for request in [r for r in self._running if r.job in jobs]:
            self._stop(request)
        self._settle()

    def kill(self) -> None:
        """Stop the engine for good: pending events are ignored and its cores become free."""
        self._dead = True
        self._stamp += 1
        self._cores.occupy(self, 0)

    def pressure(self) -> tuple[float, int, int]:
        """(part of the key-value cache in use, requests waiting, evictions since the last call)."""
        self._advance()
        size, preempted = self._times.kv_tokens, self.preempted
        self.preempted = 0
        return (min(1.0, self._tokens / size) if size else 0.0), len(self._waiting), preempted

    def set_speed(self, speed: float) -> None:
        self._advance()
        self._speed = speed
        self._plan()

    # ---- inside ----

    @property
    def _step_s(self) -> float:
        return self._times.step_s + self._times.request_s * len(self._running)

    @property
    def _tokens(self) -> float:
        """In the key-value cache: of a prefix that is shared, only what the first one brought."""
        return self._base + len(self._running) * self._steps

    def _advance(self) -> None:
        now = self._clock.now
        work = (now - self._at) * self._speed
        self._at = now
        debt = self._owed - self._paid
        if debt > 0:
            paid = min(debt, work)
            self._paid = self._owed if paid == debt else self._paid + paid
            work -= paid
        if self._running and work > 0:
            self._steps += work / self._step_s

    def _settle(self) -> None:
        """Admit the requests that fit, tell the shared cores whether the engine is at work, and schedule its next event."""
        while self._waiting and len(self._running) < self._max_running and self._fits(self._waiting[0]):
            self._start(self._waiting.popleft())
        self._cores.occupy(self, self._threads if self._running or self._loads else 0)
        self._plan()

    def _fits(self, request: Request) -> bool:
        size = self._times.kv_tokens
        if not size or not self._running:
            return True
        return self._tokens + request.fresh + request.done + HEADROOM * (len(self._running) + 1) <= size

    def _start(self, request: Request) -> None:
        self._owed += self._times.prefill_s * (request.fresh + request.done)
        request.start = self._steps - request.done
        if request.version < 0:
            request.version = self.version
        self._entries += 1
        request.entry = self._entries
        self._running[request] = None
        self._base += request.fresh - request.start
        heapq.heappush(self._ends, (request.start + request.length, request.entry, request))

    def _stop(self, request: Request) -> None:
        del self._running[request]
        self._base -= request.fresh - request.start
        request.entry = 0

    def _plan(self) -> None:
        self._stamp += 1
        if self._dead:
            return
        ends = self._ends
        while ends and ends[0][2].entry != ends[0][1]:
            heapq.heappop(ends)
        if self._loads:
            wait = max(0.0, self._loads[0][0] - self._paid)
        elif ends:
            steps = ends[0][0] - self._steps
            if self._times.kv_tokens and len(self._running) > 1:
                steps = min(steps, max(0.0, self._times.kv_tokens - self._tokens) / len(self._running))
            wait = self._owed - self._paid + max(0.0, steps) * self._step_s
        else:
            return
        self._clock.after(wait / self._speed, self._wake, self._stamp)

    def _wake(self, stamp: int) -> None:
        if stamp != self._stamp:
            return
        self._advance()
        loaded = []
        while self._loads and self._loads[0][0] <= self._paid + NEAR:
            loaded.append(self._loads.popleft())
        done = []
        while self._ends and self._ends[0][0] <= self._steps + NEAR:
            _, entry, request = heapq.heappop(self._ends)
            if request.entry == entry:
                self._stop(request)
                done.append(request)
        if not done and not loaded:
            self._evict()
        self._settle()
        for _, call, argument in loaded:
            call(argument)
        for request in done:
            self._ended(request)

    def _evict(self) -> None:
        """The cache is full: the newest request waits, and will compute again what it had."""
        size = self._times.kv_tokens
        if not size or len(self._running) < 2 or self._tokens < size - NEAR * len(self._running):
            return
        request = next(reversed(self._running))
        request.done = self._steps - request.start
        self._stop(request)
        self._waiting.appendleft(request)
        self.preempted += 1
