"""Tables and curves of the comparison. (being written)"""

from typing import Any

Row = dict[str, Any]


def write_results(rows, out, *, arms, tasks): ...
