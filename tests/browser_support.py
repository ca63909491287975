"""A real Chromium for browser tests, with what must not happen counted: requests, console errors, dialogs.

``python tests/browser_support.py PAGE FOLDER`` takes the documentation's pictures of a run's page.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report_support import write_run

from fr3e_async.report.page import write_page

TITLE = ".tree-title h3"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip


def missing() -> str:
    """Why no browser can be had; empty if one can."""
    try:
        import playwright.sync_api  # noqa: F401 - only whether it is there
    except ImportError:
        return "the package playwright is not installed"
    return "" if CHROMIUM else "Chromium is not installed"


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page in a browser and what it did that it should not."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # besides the file itself
    dialogs: list[str] = field(default_factory=list)

    @property
    def harm(self) -> list[str]:
        return [*self.errors, *self.requests, *self.dialogs]


@contextmanager
def watched(browser: Any, *, width: int = 1280, height: int = 900, dark: bool = False, still: bool = False) -> Iterator[Watched]:
    """A fresh page of this size; ``still``: of a reader who wants no motion."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce" if still else "no-preference",
    )
    seen = Watched(context.new_page())
    seen.page.on("console", lambda message: seen.errors.append(message.text) if message.type in ("error", "warning") else None)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url) if _foreign(request) else None)
    seen.page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    try:
        yield seen
    finally:
        context.close()


def _foreign(request: Any) -> bool:
    return not (
        request.url.startswith(("data:", "blob:")) or (request.url.startswith("file:") and request.is_navigation_request())
    )


def open_view(seen: Watched, file: Path, view: str = "overview") -> Any:
    """Open the page at one of its views and wait until that is drawn."""
    seen.page.goto(f"{file.as_uri()}#{view}")
    seen.page.wait_for_selector(f"#view-{view.split('/')[0]}[data-ready]")
    return seen.page


def two_small_runs(folder: Path) -> Path:
    """The page of two runs with 20 trees each."""
    runs = [write_run(folder / name, steps=4, trees=20, seed=seed) for seed, name in enumerate(("first", "second"))]
    write_page(runs, folder / "page.html", trees=100)
    return folder / "page.html"


def expect(shown: Any, selector: str) -> Any:
    """What Playwright waits for without evaluating texts in the page, which its policy forbids."""
    from playwright.sync_api import expect as wait

    return wait(shown.locator(selector))


def take_pictures(file: Path, folder: Path) -> None:
    """``report.png`` and others of a page with at least one run and some trees."""
    shots = (
        ("report.png", "curves", 1280, 900, False),
        ("report-timeline.png", "timeline", 1280, 620, False),
        ("report-trees.png", "trees/4", 1280, 900, True),
        ("report-narrow.png", "trees/4", 320, 720, False),
    )
    with chromium() as browser:
        for name, view, width, height, dark in shots:
            with watched(browser, width=width, height=height, dark=dark) as seen:
                shown = open_view(seen, file, view)
                shown.wait_for_timeout(400)
                if view.startswith("trees"):
                    shown.click(".tree .rollout .item-row >> nth=1")
                    shown.hover(".rollout-body [data-i='2']")
                if width < 400:
                    shown.evaluate("document.querySelector('.tree-title').scrollIntoView()")
                shown.screenshot(path=str(folder / name))


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
