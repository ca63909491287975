"""Token rows that share prefixes, as a forest in which every token stands once. Pure numpy.

Rows are put in lexicographic order, where those that share a prefix are neighbours: each row then adds only what comes
after the longest common prefix with its neighbour, as one run of tokens. That layout is a depth-first walk, so the
descendants of a token follow it without a gap, and "j is an ancestor of i or i itself" is two comparisons::

    rows          runs in the layout        token    a  b  c  d  e  f
    a b c d       a b c d                   slot    0  1  2  3  4  5
    a b e         e         (after b)       depth    0  1  2  3  2  0
    f             f                         end      5  5  4  4  5  6        j <= i < end[j]

Knows nothing of prompts, models or attention kernels.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """The tokens that one row adds to the forest: slots ``start`` to ``stop``; they attend to ``path`` up to themselves."""

    start: int
    stop: int
    path: NDArray[np.int64]  # slots of the whole row, from its root to its last token


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """U slots, each a distinct prefix of the rows. Slot i may see slot j if ``j <= i < end[j]``."""

    tokens: NDArray[np.int64]  # [U]
    depth: NDArray[np.int64]  # [U] 0 at a root: the position in its row
    end: NDArray[np.int64]  # [U] one past its last descendant
    paths: tuple[NDArray[np.int64], ...]  # for each row, in the order given, the slot of each of its tokens
    runs: tuple[TokenRun, ...]  # they cover all slots once, in order

    def __len__(self) -> int:
        return len(self.tokens)


def lexicographic(rows: Sequence[NDArray]) -> list[int]:
    """Indices of the rows in the order of their tokens; a prefix comes before what continues it, equal rows as they came."""
    # Big-endian bytes compare like the numbers that they hold, and much faster than tuples.
    keys = [np.ascontiguousarray(row, dtype=">u4").tobytes() for row in rows]
    return sorted(range(len(rows)), key=lambda i: keys[i])


def common_prefix(left: NDArray, right: NDArray) -> int:
    """Number of leading tokens that two rows share."""
    shorter = min(len(left), len(right))
    differ = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differ[0]) if len(differ) else shorter


def build_forest(rows: Sequence[NDArray], *, share: bool = True) -> Forest:
    """Build the forest of these rows, each a non-empty vector of token ids. With ``share`` off every row is a tree of its own.

    Raises:
        ValueError: no rows, or an empty one.
    """
    if not rows or min(len(row) for row in rows) == 0:
        raise ValueError("a forest needs at least one row, and no empty one")
    paths: dict[int, NDArray[np.int64]] = {}
    runs: list[TokenRun] = []
    size = 0
    end = np.zeros(sum(len(row) for row in rows), dtype=np.int64)
    path = np.zeros(0, dtype=np.int64)
    previous: NDArray = np.zeros(0, dtype=np.int64)
    for index in lexicographic(rows) if share else range(len(rows)):
        row = rows[index]
        shared = common_prefix(previous, row) if share else 0
        end[path[shared:]] = size  # nothing of this row or the later ones descends from them
        path = np.concatenate([path[:shared], np.arange(size, size + len(row) - shared)])
        if shared < len(row):
            runs.append(TokenRun(start=size, stop=size + len(row) - shared, path=path))
        size += len(row) - shared
        paths[index], previous = path, row
    end[path] = size
    tokens, depth = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for index, row in enumerate(rows):
        tokens[paths[index]] = row
        depth[paths[index]] = np.arange(len(row))
    return Forest(
        tokens=tokens, depth=depth, end=end[:size], paths=tuple(paths[i] for i in range(len(rows))), runs=tuple(runs)
    )  # fmt: skip


PART_COST = 64  # tokens: what one more forward and backward pass costs beside its tokens


def split_rows(rows: Sequence[NDArray], *, budget: int) -> list[list[int]]:
    """Split the rows into parts whose forests have at most ``budget`` slots each, with few tokens computed twice.

    Neighbours in lexicographic order stay together, so a part is a span of that order; a cut repeats the prefix
    that its two neighbours share, and costs a pass. Dynamic programming over the cuts, in time linear in the rows.

    Raises:
        ValueError: one row alone is above the budget.
    """
    order = lexicographic(rows)
    sizes = [len(rows[i]) for i in order]
    shared = [0, *(common_prefix(rows[a], rows[b]) for a, b in pairwise(order))]
    for size in sizes:
        if size > budget:
            raise ValueError(f"a sample of {size} tokens is above learner.micro_batch_tokens ({budget})")
    added = [0, *accumulate(sizes[i] - shared[i] for i in range(len(order)))]
    best, came_from = [0] * (len(order) + 1), [0] * (len(order) + 1)  # least cost of the first n rows, and its last cut
    # Starts that the next part may begin at, the cheapest first; one after which a cheaper one follows is never needed again.
    starts: deque[int] = deque()
    for stop in range(1, len(order) + 1):
        newest = stop - 1
        while starts and best[starts[-1]] + shared[starts[-1]] >= best[newest] + shared[newest]:
            starts.pop()
        starts.append(newest)
        # The part's first row counts in full, so the forest of rows start..stop-1 has this many slots.
        while added[stop] - added[starts[0]] + shared[starts[0]] > budget:
            starts.popleft()
        came_from[stop] = starts[0]
        best[stop] = best[starts[0]] + shared[starts[0]] + PART_COST
    parts: list[list[int]] = []
    stop = len(order)
    while stop > 0:
        start = came_from[stop]
        parts.append([order[i] for i in range(start, stop)])
        stop = start
    return parts[::-1]
