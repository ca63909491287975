"""What happened is written before what follows from it is begun: journal, books, rows of groups and batches. Decides nothing."""

from __future__ import annotations

import msgspec

from fr3e_async.clock import Clock
from fr3e_async.control.heartbeat import Teller
from fr3e_async.control.payload_table import PayloadTable
from fr3e_async.control.ports import Reporter
from fr3e_async.control.progress import Progress
from fr3e_async.control.trees import TreeKeeper
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import RunFailed
from fr3e_async.machine.events import Event, Trained
from fr3e_async.machine.ledger_state import StarvedError
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Command, Retire
from fr3e_async.store.journal import Journal
from fr3e_async.store.ledger_log import BeginRecord, LedgerLog, records_of


class Records:
    """The machine with a memory on disk: ``take`` gives it an event."""

    def __init__(
        self,
        machine: Machine,
        *,
        ledger_log: LedgerLog,
        journal: Journal | None,
        trees: TreeKeeper | None,
        teller: Teller,
        progress: Progress,
        reporter: Reporter,
        stream: PromptStream,
        table: PayloadTable,
        clock: Clock,
    ) -> None:
        self._machine, self.ledger_log, self._journal, self.trees = machine, ledger_log, journal, trees
        self._teller, self._progress, self._reporter = teller, progress, reporter
        self._stream, self._table, self._clock = stream, table, clock
        self._settled = machine.ledger.settled  # groups, over the whole run

    def begin(self, session: int) -> list[Command]:
        """The machine starts; what the groups that came with a checkpoint need now."""
        state = self._machine.ledger.state()
        self.ledger_log.write(
            BeginRecord(
                session=session,
                version=state.version,
                admitted=state.admitted,
                settled=state.settled,
                open=tuple(group.name for group in state.groups),
                time_s=self._clock(),
            )
        )
        commands = self._machine.start()
        self._log(None, commands)
        return commands

    def take(self, event: Event) -> list[Command]:
        """One event through the machine; what is to be done now. Raises ``RunFailed`` kinds, after they are written down."""
        try:
            commands = self._machine.handle(event)
        except RunFailed as error:
            if self._journal is not None:
                self._journal.refused(event, error, self._clock())
            if isinstance(error, StarvedError):
                self._log(event, [error.retired])
                self._retire(error.retired)
            raise
        if self._journal is not None:
            self._journal.write(event, commands, self._clock())
        self._log(event, commands)
        for command in commands:
            if isinstance(command, Retire):
                self._retire(command)
        if isinstance(event, Trained):
            self._teller.step(event.version)
        return commands

    def _log(self, event: Event | None, commands: list[Command]) -> None:
        for record in records_of(event, commands, live=self._machine.ledger.live):
            self.ledger_log.write(record)

    def _retire(self, group: Retire) -> None:
        self._teller.retired(group)
        self._progress.retired(group)
        self._reporter.group(msgspec.to_builtins(group))
        self._stream.mark_consumed(group.group)
        self._settled += 1
        if self.trees is not None:
            whole = next(its for its, retired in self._machine.ledger.departed if retired is group)
            self.trees.offer(
                whole,
                group,
                self._stream.prompt(group.group),
                self._table.__getitem__,
                step=self._machine.ledger.version,
                settled=self._settled,
            )
        self._table.release(group.group)

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
