"""The run's page in a real Chromium, from a file: it opens quietly and quickly, can be read and used by all, and runs nothing foreign."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser_support
import pytest
from browser_support import TITLE, expect, open_view, watched
from PIL import Image
from report_support import HOSTILE, evaluation, metrics_row, tree_row, write_rows, write_run

from fr3e_async.report.page import write_page
from fr3e_async.report.trees import clean_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(browser_support.missing()), reason=browser_support.missing() or "there is a browser"),
]

VIEWS = ("overview", "curves", "timeline", "tokens", "verdicts", "trees", "settings", "metrics")
MANY = 10_000
LIMIT_S = 3.0  # to open so many trees

# Texts whose contrast with what lies behind them is too low, as "ratio text". 4.5, or 3 where the text is large (WCAG 2.2, 1.4.3).
PALE = """() => {
  const parse = (s) => { const v = s.match(/[\\d.]+/g).map(Number); return { rgb: v.slice(0, 3), a: v.length > 3 ? v[3] : 1 }; };
  const light = (rgb) => { const [r, g, b] = rgb.map((c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a > 0.99) return c.rgb; } return [255, 255, 255]; };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(e.tagName) || !e.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(e), [a, b] = [light(parse(style.color).rgb), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5)) found.push(ratio.toFixed(2) + " " + e.className + ": " + text.slice(0, 30));
  }
  return [seen, [...new Set(found)]];
}"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (320, True)])
def test_every_view_is_quiet_readable_and_fits(browser: Any, page: Path, width: int, dark: bool) -> None:
    with watched(browser, width=width, dark=dark) as seen:
        open_view(seen, page)
        for view in VIEWS:
            shown = open_view(seen, page, view)
            if view == "trees":
                shown.wait_for_selector(".tree")
                shown.keyboard.press("e")  # all unfolded: all kinds of text are there
            shown.wait_for_timeout(120)
            assert shown.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{view} scrolls sideways"
            texts, pale = shown.evaluate(PALE)
            assert texts > 20
            assert pale == [], view
            assert (
                shown.evaluate(
                    "[...document.querySelectorAll('button, input, select, [role=img]')].filter((e) => !(e.ariaLabel || e.title || e.labels?.length || e.textContent.trim())).length"
                )
                == 0
            )
        assert seen.harm == []


@pytest.mark.parametrize("dark", [False, True])
def test_every_shade_leaves_its_token_readable(browser: Any, page: Path, dark: bool) -> None:
    with watched(browser, dark=dark) as seen:
        shown = open_view(seen, page, "trees")
        shown.wait_for_selector(".tree")
        shown.evaluate("""() => { for (const kind of ["heat", "sign", "version"]) for (let i = 0; i < 7; i += 1) {
          const box = document.createElement("div"), token = document.createElement("span");
          box.className = "tokens " + kind; token.className = "t" + i; token.textContent = kind + i; box.append(token); document.querySelector(".trunk").append(box); } }""")
        assert shown.evaluate(PALE)[1] == []
        colours = shown.evaluate(
            "[...document.querySelectorAll('.tokens.heat .t0, .tokens.heat .t3, .tokens.heat .t6')].map((e) => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(colours)) >= 3


def test_the_switch_overrides_the_system_and_motion_is_kept_low(browser: Any, page: Path) -> None:
    with watched(browser, dark=True, still=True) as seen:
        shown = open_view(seen, page)
        paper = "getComputedStyle(document.querySelector('header')).backgroundColor"
        dark = shown.evaluate(paper)
        shown.keyboard.press("d")
        assert shown.inner_text("#theme") == "☀ light"
        assert shown.evaluate(paper) == "rgb(255, 255, 255)"
        shown.keyboard.press("d")
        assert (shown.inner_text("#theme"), shown.evaluate(paper)) == ("☾ dark", dark)
        shown.keyboard.press("?")
        assert shown.evaluate("document.getAnimations().length") == 0
        assert shown.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"


def test_curves_change_their_axis_and_runs_can_be_hidden(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "curves")
        card = "#view-curves article:has(code:text-is('reward/accuracy'))"
        shown.wait_for_selector(f"{card} .uplot")
        assert shown.locator(f"{card} .chip").count() == 2
        shown.select_option("#view-curves select", "generated")
        shown.wait_for_selector(f"{card} [aria-label='reward/accuracy over generated tokens'], {card} .uplot")
        shown.fill("#view-curves .search", "clip low")
        expect(shown, "#view-curves .card").to_have_count(1)
        assert shown.inner_text("#view-curves .card code") == "train/clip_low_fraction"
        shown.click("#runs button >> nth=1")
        assert shown.get_attribute("#runs button >> nth=1", "aria-pressed") == "false"
        expect(shown, "#view-curves .card .chip").to_have_count(1)
        colour = "getComputedStyle(document.querySelector('#view-curves .card .swatch')).backgroundColor"
        assert shown.evaluate(colour) == shown.evaluate(
            "getComputedStyle(document.querySelector('#runs .swatch')).backgroundColor"
        )
        assert seen.harm == []


def test_a_log_scale_leaves_gaps_where_it_has_no_place_and_says_so(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=6, trees=0)
    wrong = (0, 4, 0, 2, 1, -1)
    rows = [{**metrics_row(step), "groups/all_wrong": wrong[step - 1], "groups/all_correct": 0} for step in range(1, 7)]
    write_rows(run / "metrics.jsonl", rows)
    write_page([run], tmp_path / "page.html", trees=0)
    with watched(browser) as seen:
        shown = open_view(seen, tmp_path / "page.html", "curves")
        card = "#view-curves article:has(code:text-is('groups/all_wrong'))"
        shown.wait_for_selector(f"{card} .uplot")
        assert shown.locator(f"{card} .card-foot .note").inner_text() == ""
        shown.check("text=log scale")
        expect(shown, f"{card} .card-foot .note").to_have_text("3 values of 0 or less not drawn (log scale)")
        assert shown.locator(f"{card} .readout .chip").all_inner_texts() == ["-1\u202fgroups"]  # what was measured, drawn or not
        none = "#view-curves article:has(code:text-is('groups/all_correct'))"
        expect(shown, f"{none} .plot .empty").to_have_text("no value above 0, so none on a log scale")
        assert seen.harm == []


def test_a_reader_goes_from_a_metric_to_its_code(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "metrics")
        shown.fill("#view-metrics .search", "lower clip train")
        expect(shown, "#view-metrics .metric").to_have_count(1)
        shown.click("#view-metrics .code-link")
        said = shown.inner_text("#dialog")
        assert "fr3e_async/learner/metrics.py:" in said
        assert "fr3e_async/algorithm/losses.py:" in said
        assert "clip_low" in shown.inner_text("#dialog mark >> nth=0")
        shown.keyboard.press("Escape")
        assert not shown.is_visible("#dialog")


def test_the_timeline_moves_with_keys_and_says_what_it_shows(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page, "timeline")
        first = "#view-timeline section:first-child"
        assert shown.locator(f"{first} tbody tr").count() >= 4
        assert shown.inner_text(f"{first} tbody tr >> nth=1").split() == [
            "generator-0",
            "18.3",
            "%",
            "4",
            "s",
            "17.9",
            "s",
            "4",
            "s",
        ]
        shown.focus(f"{first} canvas")
        shown.keyboard.press("+")
        expect(shown, f"{first} .readout").to_have_text("5.47\u202fs to 16.4\u202fs")
        shown.keyboard.press("0")
        expect(shown, f"{first} .readout").to_have_text("0\u202fs to 21.9\u202fs")
        assert shown.locator("#view-timeline .event-text").count() == 0
        shown.click(f"{first} summary")
        expect(shown, f"{first} .event-text").to_have_count(4)  # made when they are asked for
        drawn = "(c) => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 === 0)).size"
        assert shown.locator(f"{first} canvas").evaluate(drawn) > 10
        assert seen.harm == []


def test_hostile_texts_do_nothing_but_stand_there(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "evil", steps=2, trees=3, say=lambda said: said + HOSTILE)
    write_page([run], tmp_path / "page.html", trees=10)
    with watched(browser) as seen:
        for view in VIEWS:
            shown = open_view(seen, tmp_path / "page.html", view)
            if view == "trees":
                shown.wait_for_selector(".tree")
                shown.click("text=unfold all")
                assert "</script><img src=x" in shown.inner_text(".prompt dd >> nth=0")
                assert "\\u202e" in shown.inner_text(".tokens >> nth=0")  # spelt out: it turns nothing
            shown.wait_for_timeout(80)
            assert shown.evaluate("document.querySelectorAll('main img, main svg, main script').length") == 0
            assert shown.evaluate("window.harm") is None
        assert seen.harm == []


def test_the_policy_stops_what_would_slip_through(browser: Any, page: Path) -> None:
    with watched(browser) as seen:
        shown = open_view(seen, page)
        shown.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.org/x.png\" onerror=\"window.harm=1\">')"
        )
        shown.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.harm = 2' }))"
        )
        assert shown.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
        shown.wait_for_timeout(100)
        assert shown.evaluate("window.harm") is None
        assert any("Content Security Policy" in error for error in seen.errors)


def test_ten_thousand_trees_open_in_three_seconds(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = [
        clean_tree(tree_row(index)) for index in range(40)
    ]  # each taken often: to read them all again is another test's matter

    def many(run: Path, *, limit: int) -> Iterator[dict[str, Any]]:
        for index in range(limit):
            yield {**forms[index % len(forms)], "group": f"task/{index}@0", "prompt": f"Start with {index}.\n1) +6\n2) *3"}

    monkeypatch.setattr("fr3e_async.report.page.read_trees", many)
    write_page([write_run(tmp_path / "many", steps=2, trees=0)], tmp_path / "page.html", trees=MANY)
    assert (tmp_path / "page.html").stat().st_size > 8e6
    took = []
    while not took or (took[-1] >= LIMIT_S and len(took) < 3):  # a busy machine may be slow once
        with watched(browser) as seen:
            begin = time.monotonic()
            shown = open_view(seen, tmp_path / "page.html", "trees")
            shown.wait_for_selector(".tree")
            took.append(time.monotonic() - begin)
            assert shown.inner_text(".tree-side .readout") == "10\u202f000 of 10\u202f000 trees"
            assert shown.locator(".tree-row").count() < 60
            shown.focus(".tree-list")
            shown.keyboard.press("End")
            expect(shown, TITLE).to_have_text("task/9999@0")
            shown.fill(".tree-side .search", "task/7775@0")
            expect(shown, ".tree-row").to_have_count(1)
            assert seen.harm == []
    assert min(took) < LIMIT_S


def test_the_overview_opens_with_what_the_run_was_and_what_is_wrong_with_it(browser: Any, tmp_path: Path) -> None:
    settings = {
        "model": {"path": "Qwen/Qwen3-4B"},
        "data": {"train": "sources", "train_sources": [{"name": "gsm"}, {"path": "x.jsonl"}]},
    }
    run = write_run(tmp_path / "run", steps=4, trees=0, config=settings | {"run": {"steps": 8}})
    rows = [
        {**metrics_row(step), "groups/trained": 2, "verify/correct": 80, "verify/wrong": 10, "verify/unknown": 10}
        for step in (1, 2, 3, 4)
    ]
    write_rows(run / "metrics.jsonl", rows)
    with open(run / "logs" / "events.jsonl", "a") as file:
        file.write(
            '{"time_s": 1, "level": "warning", "event": "reward_failed", "text": "reward=mine:score: reward raised ValueError"}\n'
        )
        file.write('{"time_s": 2, "level": "error", "event": "run_failed", "text": "groups in a row taught nothing\\nmore"}\n')
    write_page([run], tmp_path / "page.html", trees=0)
    with watched(browser) as seen:
        shown = open_view(seen, tmp_path / "page.html")
        said = shown.inner_text("#view-overview section >> nth=0").replace("\u202f", " ").split("\n")
        assert [line for line in said if line] == [
            "The run",
            "run", "model Qwen/Qwen3-4B", "data gsm + x.jsonl", "strategy fr3e",
            "0.40 → 0.80 held-out accuracy",
            "4 of 8 batches in 31 s; failed: groups in a row taught nothing",
            "⚠ 69.2 % of the groups of the newest 4 batches were rejected: 10 all correct, 8 all wrong",
            "⚠ 10 % of the verdicts of the newest 4 batches are unknown",
            "⚠ reward=mine:score: reward raised ValueError",
        ]  # fmt: skip
        assert seen.harm == []


def test_a_narrow_page_shows_every_value_of_the_settings_and_of_the_result(browser: Any, page: Path) -> None:
    with watched(browser, width=320) as seen:
        for view, kind in (("settings", "config"), ("overview", "result")):
            shown = open_view(seen, page, view)
            if view == "settings":
                shown.select_option("#view-settings select", "all")
            ends = shown.evaluate(
                f"[...document.querySelectorAll('table.{kind} td')].map((e) => e.getBoundingClientRect().right)"
            )
            assert len(ends) > 40
            assert max(ends) <= 320
            before = "(e) => getComputedStyle(e, '::before').content"
            assert shown.locator(f"table.{kind} td").first.evaluate(before) == '"first: "'


def test_a_table_that_scrolls_shows_it_at_the_edge_where_there_is_more(browser: Any, page: Path) -> None:
    with watched(browser, width=320) as seen:
        shown = open_view(seen, page)
        table = shown.locator("#evaluations .scroll").first
        assert table.evaluate("(e) => e.scrollWidth > e.clientWidth")
        table.scroll_into_view_if_needed()

        def edges() -> tuple[bool, bool]:
            """Is the left, the right one in shadow?"""
            picture = Image.open(io.BytesIO(table.screenshot())).convert("L")
            low = picture.height - 4
            return tuple(picture.getpixel((x, low)) < 240 for x in (2, picture.width - 3))  # type: ignore[return-value]

        assert edges() == (False, True)
        table.evaluate("(e) => { e.scrollLeft = 40; }")
        assert edges() == (True, True)
        table.evaluate("(e) => { e.scrollLeft = 1e6; }")
        assert edges() == (True, False)


def test_verdicts_and_what_became_of_groups_share_their_colours(browser: Any, page: Path) -> None:
    """What is right is green wherever it stands, what is wrong orange, and what is trained has the learner's colour."""
    with watched(browser) as seen:
        shown = open_view(seen, page, "verdicts")
        shades = shown.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#view-verdicts .legend li')].map((e) => "
            "[e.firstChild.nextSibling.textContent, getComputedStyle(e.querySelector('.swatch')).backgroundColor]))"
        )
        assert shades["✓ correct"] == shades["all correct"]
        assert shades["✗ wrong"] == shades["all wrong"]
        assert len({shades[name] for name in ("✓ correct", "✗ wrong", "? unknown", "– failed", "trained", "no spread")}) == 6
        shown = open_view(seen, page, "timeline")
        train = shown.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--work-train')")
        assert train.startswith("light-dark(#8e3fa8")
        assert shades["trained"] == "rgb(142, 63, 168)"


def test_graded_rewards_have_a_curve_and_stand_beside_the_accuracy(browser: Any, tmp_path: Path) -> None:
    """In their own numbers, not in percent; a run whose mean reward is its accuracy has no second curve."""
    run = write_run(tmp_path / "graded", steps=6, trees=2)
    reward = {"value": 1.25, "low": -0.5, "high": 2.5}
    rows = [{**evaluation("after", 6, 0.5), "reward": reward, "unanswered": {"value": 0.996, "low": 0.98, "high": 1.0}}]
    write_rows(run / "evaluations.jsonl", rows)
    said = json.loads((run / "summary.json").read_text()) | {"reward_after": 1.25, "reward_intervals": {"after": [-0.5, 2.5]}}
    (run / "summary.json").write_text(json.dumps(said))
    write_page([run], tmp_path / "page.html", trees=2)
    with watched(browser) as seen:
        shown = open_view(seen, tmp_path / "page.html", "overview")
        head, line = (
            shown.locator(f"#evaluations table {part} tr").first.locator("th, td").all_inner_texts()
            for part in ("thead", "tbody")
        )
        expect(shown, "article.headline").to_contain_text("1.25 held-out mean reward")
        assert head[2:6] == ["avg@k", "95 % interval", "mean reward", "no box"]
        assert [text.replace("\u202f", "").replace("\xa0", "") for text in line[4:6]] == ["1.25 [-0.5, 2.5]", "99.6% [98%, 100%]"]
        expect(shown, "table.result").to_contain_text("1.25 [-0.5, 2.5]")
        shown = open_view(seen, tmp_path / "page.html", "curves")
        expect(shown, ".card h4 code >> text=heldout/reward").to_have_count(1)
