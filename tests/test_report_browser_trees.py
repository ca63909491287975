"""The viewer of trees in a real Chromium: walked with the keyboard alone, with nothing lost and nothing covered on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import browser_support
import pytest
from browser_support import TITLE, expect, open_view, watched
from report_support import tree_row, write_rows, write_run

from fr3e_async.report.page import write_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(browser_support.missing()), reason=browser_support.missing() or "there is a browser"),
]

# Is the row with the focus in sight: below the bar at the top, above the words about a token at the bottom, inside the window?
SEEN = """() => {
  const row = document.activeElement.querySelector(".item-row").getBoundingClientRect(), said = document.querySelector(".token-said");
  const top = document.querySelector("body > header").getBoundingClientRect().bottom;
  const bottom = said.offsetHeight ? Math.min(innerHeight, said.getBoundingClientRect().top) : innerHeight;
  return row.top >= top && row.bottom <= bottom;
}"""


def test_a_tree_is_walked_with_the_keyboard_alone(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page)
        press = shown.keyboard.press
        press("6")
        shown.wait_for_selector(".tree")
        expect(shown, TITLE).to_have_text("task/0@0")
        assert shown.locator(".tree-row").first.get_attribute("aria-selected") == "true"
        expect(shown, ".tree-list:focus").to_have_count(1)
        press("ArrowDown")
        expect(shown, TITLE).to_have_text("task/1@0")
        press("p")
        expect(shown, TITLE).to_have_text("task/0@0")
        press("/")
        shown.keyboard.type("outcome:trained correct>2 task/5@")
        expect(shown, ".tree-row").to_have_count(2)  # one of each run
        press("ArrowDown")
        expect(shown, TITLE).to_have_text("task/5@0")
        press("Enter")
        here = "document.activeElement.querySelector('.label')?.innerText.replace(/\\s+/g, ' ')"
        expect(shown, "[role=treeitem]:focus").to_have_count(1)
        assert shown.evaluate(here).startswith("S0 the prompt V 0.5")
        assert "[0.15, 0.85]" in shown.evaluate(here)
        press("ArrowDown")
        assert shown.evaluate(here).startswith("✗ wrong base 0 trunk A′ −0.5")
        folded = "document.activeElement.getAttribute('aria-expanded')"
        press("ArrowRight")
        assert shown.evaluate(folded) == "true"
        assert shown.locator(".rollout .anchor").all_inner_texts() == ["S1", "S2", "S3"]
        press("]")
        press("]")
        said = shown.inner_text(".token-said")
        assert said.startswith("token 1 · “12” · entropy 0.011 nats")
        assert said.endswith("weights v3 · advantage -0.5")
        press("ArrowLeft")
        assert shown.evaluate(folded) == "false"
        press("ArrowLeft")
        assert shown.evaluate(here).startswith("S0")
        press("End")
        assert shown.evaluate(here).startswith("✓ correct branch 3")
        press("Escape")
        assert shown.evaluate("document.activeElement.getAttribute('role')") == "listbox"
        press("?")
        assert "unfold, then go inside" in shown.inner_text("#dialog")
        assert seen.harm == []


def test_outcomes_folding_and_links_into_the_page(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "trees/7")
        shown.wait_for_selector(".tree")
        expect(shown, TITLE).to_have_text("task/7@0")
        assert shown.locator(".trunk .anchor").count() == 3
        shown.click("text=unfold all")
        assert shown.locator(".tree .tokens").count() == 16
        shown.click('text="fold all"')
        assert shown.locator(".tree .tokens").count() == 0
        shown.select_option("select[aria-label=Outcome]", "rejected_all_wrong")
        expect(shown, ".tree-side .readout").to_have_text("8 of 40 trees")
        shown.select_option("select[aria-label=Outcome]", "")
        shown.fill(".tree-side .search", "no such words")
        expect(shown, ".tree-row").to_have_count(0)
        shown.click(".trunk .anchor >> nth=1")
        assert shown.evaluate("document.activeElement.dataset.node") == "2"
        assert seen.harm == []


def test_no_row_with_the_focus_lies_under_a_bar(browser: Any, page: Path) -> None:
    with watched(browser, width=320, height=600) as seen:
        shown = open_view(seen, page, "trees/0")
        expect(shown, TITLE).to_have_text("task/0@0")
        shown.keyboard.press("e")
        shown.focus(".tree [role=treeitem]")
        for key, times in (("ArrowDown", 19), ("ArrowUp", 19), ("End", 1), (".", 5), ("ArrowUp", 12), ("ArrowDown", 6)):
            for _ in range(times):
                shown.keyboard.press(key)
                assert shown.evaluate(SEEN), (key, shown.evaluate("document.activeElement.innerText.slice(0, 40)"))
        shown.keyboard.press("1")
        shown.evaluate("location.hash = 'evaluations'")
        shown.wait_for_function("() => scrollY > 0 || document.documentElement.scrollHeight <= innerHeight")
        place = "document.querySelector('#evaluations').getBoundingClientRect().top"
        assert shown.evaluate(place) >= shown.evaluate("document.querySelector('header').offsetHeight")
        assert seen.harm == []


def test_another_shade_changes_colours_and_nothing_else(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "trees/0")
        expect(shown, TITLE).to_have_text("task/0@0")
        shown.keyboard.press("e")
        shown.focus(".tree [role=treeitem] >> nth=3")
        shown.keyboard.press(".")
        unfolded = shown.locator(".tree [aria-expanded=true]").count()
        assert unfolded == 20
        here = "[document.activeElement.querySelector('.label').innerText, document.querySelector('.here').dataset.i]"
        before = shown.evaluate(here)
        shades = "[...new Set([...document.querySelectorAll('.tree .tokens:not(.trunk *)')].map((box) => box.className))]"
        assert shown.evaluate(shades) == ["tokens heat"]
        for kind in ("heat", "sign", "version", "none", "heat"):
            shown.keyboard.press("s")
            assert shown.evaluate(shades) == [f"tokens {kind}"]
            assert shown.evaluate(here) == before
            assert shown.locator(".tree [aria-expanded=true]").count() == unfolded
        shown.select_option("select[aria-label='Shade tokens by']", "advantage")
        assert shown.locator(".legend.shades.sign li").count() == 8
        known = "document.querySelectorAll('.tree .tokens [data-i].t5').length"
        assert shown.evaluate(known) == 184 / 2  # half of all tokens have an advantage of 0.5
        assert seen.harm == []


def test_tokens_are_walked_on_every_keyboard(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "trees/0")
        expect(shown, TITLE).to_have_text("task/0@0")
        shown.focus(".tree .rollout")
        said = lambda: shown.inner_text(".token-said").split(" · ")[0]  # noqa: E731
        for key, token in ((".", 0), (".", 1), (",", 0), (">", 10), ("<", 0), (":", 10), (";", 0), ("}", 10), ("{", 0)):
            shown.keyboard.press(key)
            assert said() == f"token {token}", key
        shown.evaluate("""() => document.activeElement.dispatchEvent(new KeyboardEvent("keydown",
            { key: "]", ctrlKey: true, altKey: true, modifierAltGraph: true, bubbles: true, cancelable: true }))""")
        assert said() == "token 1"
        shown.keyboard.press("Control+.")
        assert said() == "token 1"


def test_what_is_on_the_right_follows_the_list_and_the_address(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "trees/3")
        expect(shown, TITLE).to_have_text("task/3@0")
        shown.evaluate("location.hash = 'trees/12'")
        expect(shown, TITLE).to_have_text("task/12@0")
        shown.click("#runs button >> nth=0")
        expect(shown, ".tree-title .run-name").to_have_text("second")
        assert shown.evaluate("location.hash") == "#trees/20"
        shown.click("#runs button >> nth=1")
        expect(shown, ".tree-detail .empty").to_have_text("No tree of the runs shown fits.")
        shown.click("#runs button >> nth=0")
        expect(shown, ".tree-title .run-name").to_have_text("first")
        named = "document.querySelector('.tree-list').getAttribute('aria-activedescendant')"
        assert shown.evaluate(named) == "tree-0"
        shown.evaluate("document.querySelector('.tree-list').style.flex = '0 0 120px'")
        shown.evaluate("document.querySelector('.tree-list').scrollTop = 1e6")
        expect(shown, "#tree-0").to_have_count(0)
        assert shown.evaluate(named) is None
        shown.keyboard.press("2")
        expect(shown, "#view-curves").to_be_visible()
        assert shown.evaluate("location.hash") == "#curves"
        shown.go_back()
        expect(shown, "#view-trees").to_be_visible()
        assert seen.harm == []


def test_a_tree_with_nothing_judged_is_not_the_most_evenly_judged(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2, trees=0)
    trees = [tree_row(index) for index in range(3)]
    for tree, outcomes in zip(trees, (["unknown"], ["correct", "correct", "wrong"], ["correct", "wrong"]), strict=True):
        tree["rollouts"] = tree["rollouts"][: len(outcomes)]
        for rollout, outcome in zip(tree["rollouts"], outcomes, strict=True):
            rollout["outcome"] = outcome
    write_rows(run / "trees.jsonl", trees)
    write_page([run], tmp_path / "page.html", trees=10)
    with watched(browser) as seen:
        shown = open_view(seen, tmp_path / "page.html", "trees")
        shown.select_option("select[aria-label=Order]", "spread")
        assert shown.locator(".tree-group").all_inner_texts() == ["task/2@0", "task/1@0", "task/0@0"]


def test_answers_that_are_right_by_a_policy_are_a_click_away(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trees=3)
    trees = [tree_row(index, str) for index in range(3)]
    trees[1]["rollouts"][0]["reason"] = "policy: unit not named"
    write_rows(run / "trees.jsonl", trees)
    groups = [json.loads(line) for line in (run / "groups.jsonl").read_text(encoding="utf-8").splitlines()]
    groups[0]["reasons"] = {"policy: unit not named": 1}
    write_rows(run / "groups.jsonl", groups)
    write_page([run], tmp_path / "page.html", trees=10)
    with watched(browser) as seen:
        shown = open_view(seen, tmp_path / "page.html", "verdicts")
        shown.click("text=policy: unit not named")
        expect(shown, TITLE).to_have_text("task/1@0")
        expect(shown, ".tree-row").to_have_count(1)
        assert shown.input_value(".tree-side input") == "reason:policy:_unit_not_named"
        shown.evaluate("location.hash = '#trees/reason:policy'")
        expect(shown, ".tree-row").to_have_count(1)
