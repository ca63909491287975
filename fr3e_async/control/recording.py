"""What happened is written before what follows from it is begun: journal, books, rows of groups and batches. Decides nothing."""

from __future__ import annotations

from dataclasses import asdict

from fr3e_async.clock import Clock
from fr3e_async.control.hands import Shelf
from fr3e_async.control.journal import Journal
from fr3e_async.control.ledger import StarvedError
from fr3e_async.control.machine import Machine
from fr3e_async.control.messages import Command, Event, Retire, Trained
from fr3e_async.control.ports import Reporter
from fr3e_async.control.progress import Progress
from fr3e_async.control.telling import Teller
from fr3e_async.control.trees import TreeKeeper
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import RunFailed
from fr3e_async.observe.books import Books


class Records:
    """The machine with a memory on disk: ``take`` gives it an event."""

    def __init__(
        self,
        machine: Machine,
        *,
        books: Books,
        journal: Journal | None,
        trees: TreeKeeper | None,
        teller: Teller,
        progress: Progress,
        reporter: Reporter,
        stream: PromptStream,
        shelf: Shelf,
        clock: Clock,
    ) -> None:
        self._machine, self.books, self._journal, self.trees = machine, books, journal, trees
        self._teller, self._progress, self._reporter = teller, progress, reporter
        self._stream, self._shelf, self._clock = stream, shelf, clock
        self._settled = machine.ledger.settled  # groups, over the whole run

    def begin(self, session: int) -> None:
        state = self._machine.ledger.state()
        self.books.begin(
            session=session,
            version=state.version,
            admitted=state.admitted,
            settled=state.settled,
            open=[group.name for group in state.groups],
            time_s=self._clock(),
        )

    def take(self, event: Event) -> list[Command]:
        """One event through the machine; what is to be done now. Raises ``RunFailed`` kinds, after they are written down."""
        try:
            commands = self._machine.handle(event)
        except RunFailed as error:
            if self._journal is not None:
                self._journal.refused(event, error, self._clock())
            if isinstance(error, StarvedError):
                self._retire(error.retired)
            raise
        if self._journal is not None:
            self._journal.write(event, commands, self._clock())
        if isinstance(event, Trained):
            self.books.trained(event.version)
        for command in commands:
            if isinstance(command, Retire):
                self._retire(command)
        if isinstance(event, Trained):
            self._teller.step(event.version)
        return commands

    def _retire(self, group: Retire) -> None:
        if group.fate != "trained":
            self.books.settled(group.group, fate=group.fate)
        self._teller.retired(group)
        self._progress.retired(group)
        self._reporter.group(asdict(group))
        self._stream.mark_consumed(group.group)
        self._settled += 1
        if self.trees is not None:
            whole = next(its for its, retired in self._machine.ledger.departed if retired is group)
            self.trees.offer(whole, group, self._shelf.__getitem__, step=self._machine.ledger.version, settled=self._settled)
        self._shelf.release(group.group)

    def flush(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    async def finish(self) -> None:
        """A run that ends well waits for the trees that are being written."""
        if self.trees is not None:
            await self.trees.finish()

    def close(self) -> None:
        """Whatever way the session ends."""
        if self.trees is not None:
            self.trees.stop()
        if self._journal is not None:
            self._journal.close()
