"""Draws docs/images/tree_mask.svg: a small prompt group as a tree, its layout, and who sees whom.

    python scripts/draw_tree_mask.py [OUT]

The mask is the one that training uses: it is asked of ``build_forest``, cell by cell.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fr3e_async.algorithm.trees import build_forest

OUT = Path(__file__).parent.parent / "docs" / "images" / "tree_mask.svg"
CELL = 26
# Prompt, trunk, a second base, and two branches from an anchor of the trunk. Letters sort as the rows shall stand.
ROWS = ("PQabcde", "PQabfg", "PQabh", "PQijk")
NAMES = ("trunk (base 0)", "branch 1", "branch 2", "base 1")
COLOURS = ("#64748b", "#2563eb", "#d97706", "#b45309", "#059669")  # prompt, trunk, branches, base
GREY, INK = "#94a3b8", "#1e293b"


def owner(slot: int, paths: tuple[np.ndarray, ...]) -> int:
    """Index into COLOURS: the prompt, or the first row that has this slot."""
    row = next(i for i, path in enumerate(paths) if slot in path)
    return 0 if slot < 2 else row + 1


def text(
    x: float, y: float, said: str, *, size: int = 13, colour: str = INK, anchor: str = "middle", weight: str = "normal"
) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">{said}</text>'


def box(x: float, y: float, fill: str, *, opacity: float = 1.0, stroke: str = "white") -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" rx="4" fill="{fill}" fill-opacity="{opacity:g}" '
        f'stroke="{stroke}"/>'
    )


def draw() -> str:
    forest = build_forest([np.asarray([ord(c) for c in row]) for row in ROWS])
    colours = [COLOURS[owner(i, forest.paths)] for i in range(len(forest))]
    parts = [*rows_as_sampled(), *mask(forest, colours), *legend(forest)]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 480" font-family="system-ui, sans-serif" role="img" '
        'aria-label="A prompt group of four rows that share prefixes, and the attention mask of its tree">\n'
        '<rect width="900" height="480" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def rows_as_sampled() -> list[str]:
    """Left: the rows, with what is computed once in full colour and what a flat batch would repeat pale."""
    parts = [text(20, 36, "Rows of a group", size=16, anchor="start", weight="bold")]
    parts.append(text(20, 58, "pale: shared, computed once, in a row above", size=12, colour=GREY, anchor="start"))
    seen: set[str] = set()
    for i, (row, name) in enumerate(zip(ROWS, NAMES, strict=True)):
        y = 78 + i * (CELL + 24)
        parts.append(text(20, y + 10, name, size=12, anchor="start"))
        for depth, letter in enumerate(row):
            prefix = row[: depth + 1]
            first = next(j for j, other in enumerate(ROWS) if other.startswith(prefix))
            colour = COLOURS[0] if depth < 2 else COLOURS[first + 1]
            x = 130 + depth * CELL
            parts.append(box(x, y - 8, colour, opacity=0.18 if prefix in seen else 1.0))
            parts.append(text(x + CELL / 2, y + 10, letter, colour=GREY if prefix in seen else "white"))
            seen.add(prefix)
    total, unique = sum(map(len, ROWS)), len(seen)
    parts.append(text(20, 292, f"{total} tokens in rows, {unique} in the tree", size=13, anchor="start"))
    return parts


def mask(forest: object, colours: list[str]) -> list[str]:
    """Right: slot i (row) sees slot j (column) iff j <= i < end[j]."""
    from fr3e_async.algorithm.trees import Forest

    assert isinstance(forest, Forest)
    left, top = 430, 96
    letters = [chr(token) for token in forest.tokens]
    parts = [text(left, 36, "Who sees whom", size=16, anchor="start", weight="bold")]
    parts.append(text(left, 58, "slot i (row) sees slot j (column) if j ≤ i &lt; end[j]", size=12, colour=GREY, anchor="start"))
    for j, letter in enumerate(letters):
        parts.append(text(left + j * CELL + CELL / 2, top - 10, letter, colour=colours[j], weight="bold"))
    for i, letter in enumerate(letters):
        y = top + i * CELL
        parts.append(text(left - 12, y + 18, letter, colour=colours[i], weight="bold"))
        for j in range(len(letters)):
            sees = j <= i < forest.end[j]
            parts.append(box(left + j * CELL, y, colours[j] if sees else "#f1f5f9"))
        parts.append(text(left + len(letters) * CELL + 22, y + 18, str(forest.depth[i]), size=12))
    parts.append(text(left + len(letters) * CELL + 22, top - 10, "position", size=11, colour=GREY))
    y = top + len(letters) * CELL
    parts.append(text(left - 12, y + 20, "end", size=11, colour=GREY, anchor="end"))
    for j in range(len(letters)):
        parts.append(text(left + j * CELL + CELL / 2, y + 20, str(forest.end[j]), size=12))
    return parts


def legend(forest: object) -> list[str]:
    lines = (
        "The layout is a depth-first walk: what descends from a",
        "token follows it without a gap, up to end[j].",
        "Positions count along a row, so a branch continues where",
        "its anchor stood. The token after the anchor’s prefix is",
        "predicted by b for the trunk (c) and for both branches",
        "(f, h): one slot, three log-probs.",
    )
    return [text(20, 330 + 20 * i, line, size=13, anchor="start") for i, line in enumerate(lines)]


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else OUT).write_text(draw(), encoding="utf-8")
