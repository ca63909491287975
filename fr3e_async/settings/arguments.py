"""Arguments of the commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fr3e_async.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Raises ``ConfigError`` where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")
