"""Where the payloads of open groups lie: key and group to handle."""

from __future__ import annotations

from collections.abc import Mapping

from fr3e_async.control.ports import Payload, PayloadStore
from fr3e_async.control.process import run_in_daemon_thread

SHELTER_S = 30.0  # for rollouts on a node that goes to be fetched


class PayloadTable:
    """Handles of rollout batches by key, each held until its group retires."""

    def __init__(self, payloads: Mapping[int, tuple[str, Payload]] | None = None) -> None:
        """``payloads``: what a run resumes with, by key: (group, handle)."""
        self._payloads: dict[int, Payload] = {}
        self._of: dict[str, list[int]] = {}
        self._next = 0
        self._sheltering = False
        for key, (group, payload) in (payloads or {}).items():
            self.open(group)
            self.keep(group, payload, key=key)

    def __len__(self) -> int:
        return len(self._payloads)

    def __getitem__(self, key: int) -> Payload:
        return self._payloads[key]

    def __contains__(self, key: int) -> bool:
        return key in self._payloads

    async def shelter(self, store: PayloadStore) -> None:
        """Have copies of all on this node, as far as that can be done in ``SHELTER_S``; once for all workers of a node that goes."""
        if not self._sheltering:
            self._sheltering, payloads = True, list(self._payloads.values())
            await run_in_daemon_thread(lambda: store.fetch(payloads, timeout_s=SHELTER_S))
            self._sheltering = False

    def open(self, group: str) -> None:
        self._of.setdefault(group, [])

    def keep(self, group: str, payload: Payload, *, key: int = 0) -> int:
        """The key of a payload. One that comes after its group has retired (a late duplicate) is not held at all.

        ``key``: that it had before a restart.
        """
        self._next = max(self._next + (key == 0), key)
        key = key or self._next
        if group in self._of:
            self._payloads[key] = payload
            self._of[group].append(key)
        return key

    def release(self, group: str) -> None:
        for key in self._of.pop(group, []):
            del self._payloads[key]
