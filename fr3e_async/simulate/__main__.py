"""``python -m fr3e_async.simulate``: see ``commands``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fr3e_async.errors import ConfigError
from fr3e_async.simulate.commands import SIMULATE_USAGE, guarded, measure, run


def main(argv: Sequence[str]) -> int:
    return guarded(argv, SIMULATE_USAGE, _command)


def _command(argv: Sequence[str]) -> int:
    commands = {"calibrate": measure, "run": run}
    if not argv or argv[0] not in commands:
        raise ConfigError(f"the first word is one of {', '.join(commands)}; --help says more")
    return commands[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
