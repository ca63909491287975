"""What happened is written before what follows from it is begun: journal, ledger log, rows of groups and batches. Decides nothing."""

from collections.abc import Sequence

from fr3e_async.control.context import RunContext
from fr3e_async.control.heartbeat import Teller
from fr3e_async.errors import RunFailed
from fr3e_async.machine.events import Event, Trained
from fr3e_async.machine.ledger_state import StarvedError
from fr3e_async.machine.messages import Command, Retire
from fr3e_async.store.ledger_log import BeginRecord, records_of


class Records:
    """Records what the machine does: ``take`` passes it an event and writes the event and its commands to disk."""

    def __init__(self, context: RunContext, teller: Teller) -> None:
        self._context, self._machine, self._teller, self._clock = context, context.machine, teller, context.clock
        self._journal, self.trees, self._ledger_log = context.files.journal, context.files.trees, context.files.ledger_log
        self._settled = self._machine.ledger.settled  # groups, over the whole run

    def begin(self, session: int) -> list[Command]:
        """Start the machine. Returns the commands that groups from a checkpoint need."""
        state = self._machine.ledger.state()
        self._ledger_log.write(
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
        """Pass one event to the machine and record both; returns its commands. Raises ``RunFailed`` kinds, recorded first."""
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

    def _log(self, event: Event | None, commands: Sequence[Command]) -> None:
        for record in records_of(event, commands, live=self._machine.ledger.live):
            self._ledger_log.write(record)

    def _retire(self, group: Retire) -> None:
        self._teller.retired(group)
        self._context.progress.retired(group)
        self._context.reporter.group(group.row())
        self._context.stream.mark_consumed(group.group)
        self._settled += 1
        if self.trees is not None:
            prompt, handle = self._context.stream.prompt(group.group), self._context.table.__getitem__
            self.trees.offer(group, prompt, handle, step=self._machine.ledger.version, settled=self._settled)
        self._context.table.release(group.group)

    def flush(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    async def finish(self) -> None:
        """Wait for the trees that are being written; for a session that ends well."""
        if self.trees is not None:
            await self.trees.finish()

    def close(self) -> None:
        """Discard trees that are not written yet and close the journal, however the session ends."""
        if self.trees is not None:
            self.trees.stop()
        if self._journal is not None:
            self._journal.close()
