// The list of all trees: found by words and conditions, sorted, of which only the rows in sight exist.

const ROW = 58; // px, as in trees.css
const ORDERS = {
  order: ["as they ended", (i, t) => i],
  entropy: ["entropy, highest first", (i, t) => -(t.entropy[i] ?? -1)],
  value: ["V of the prompt, lowest first", (i, t) => t.value[i] ?? 2],
  spread: ["most evenly correct and wrong", (i, t) => (t.correct[i] + t.wrong[i] ? Math.abs(t.correct[i] - t.wrong[i]) / (t.correct[i] + t.wrong[i]) : 2)],
  anchors: ["most anchors", (i, t) => -t.anchors[i]],
  unknown: ["most unknown", (i, t) => -(t.unknown[i] + t.failed[i])],
  tokens: ["longest", (i, t) => -t.tokens[i]],
  latest: ["latest first", (i, t) => -(t.step[i] ?? 0)],
};
const NUMBERS = ["step", "correct", "wrong", "unknown", "failed", "anchors", "tokens", "entropy", "value", "rollouts"];

let trees = null; // the index: a column a name, see trees.py

/** A reason as one word of a search. */
const spelt = (reason) => reason.toLowerCase().replaceAll(" ", "_");

/** A search as tests of a row. Words must all occur; name:word, name<number, name>=number, name:3-8 and -word are conditions. */
function treeTests(search, text) {
  return search.split(/\s+/).filter(Boolean).map((word) => {
    const compared = /^(\w+)(<=|>=|<|>|=)(-?[\d.]+)$/.exec(word);
    if (compared && NUMBERS.includes(compared[1])) return comparison(...compared.slice(1));
    const [, name, wanted] = /^(\w+):(.+)$/.exec(word) ?? [];
    if (name && NUMBERS.includes(name)) {
      const [low, high] = wanted.split("-").map(Number);
      return (i) => trees[name][i] !== null && trees[name][i] >= low && trees[name][i] <= (high ?? low);
    }
    if (name === "outcome" || name === "fate") return (i) => trees.outcome[i].toLowerCase().includes(wanted.toLowerCase());
    if (name === "group") return (i) => trees.group[i].toLowerCase().includes(wanted.toLowerCase());
    if (name === "reason") return (i) => spelt(trees.reasons[i]).includes(spelt(wanted));
    if (name === "run") return (i) => data.runs[trees.run[i]].name.toLowerCase().includes(wanted.toLowerCase());
    if (word.startsWith("-") && word.length > 1) { const not = word.slice(1).toLowerCase(); return (i) => !text(i).includes(not); }
    const low = word.toLowerCase();
    return (i) => text(i).includes(low);
  });
}

function comparison(name, sign, bound) {
  const limit = Number(bound), column = trees[name];
  const test = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit, ">=": (v) => v >= limit, "=": (v) => v === limit }[sign];
  return (i) => column[i] !== null && test(column[i]);
}

/** `call(index)` when a tree is chosen. Returns {box, fill, move, choose, list, found, chosen}. */
function treeList(call) {
  const search = searchBox("Search prompts, groups, outcomes", () => fill());
  const counts = new Map();
  for (const outcome of trees.outcome) counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
  const outcomes = h("select", { "aria-label": "Outcome", onchange: () => fill() }, h("option", { value: "" }, "every outcome"),
    [...counts].map(([outcome, count]) => h("option", { value: outcome }, `${outcomeName(outcome)} (${num(count)})`)));
  const order = h("select", { "aria-label": "Order", onchange: () => fill() },
    Object.entries(ORDERS).map(([name, [said]]) => h("option", { value: name }, said)));
  const count = h("p.readout", {});
  const inner = h("div.rows");
  const list = h("div.tree-list", { role: "listbox", tabindex: "0", "aria-label": "Trees" }, inner);
  const texts = trees.group.map((group, i) => [group, trees.outcome[i], trees.outcome[i].replaceAll("_", " "), trees.prompt[i]].join("\n").toLowerCase());
  let found = [], now = -1;

  function fill() {
    const tests = treeTests(search.value, (i) => texts[i]);
    const key = ORDERS[order.value][1];
    const fits = (i) => !hiddenRuns.has(trees.run[i]) && (!outcomes.value || trees.outcome[i] === outcomes.value) && tests.every((test) => test(i));
    found = texts.map((_, i) => i).filter(fits);
    if (order.value !== "order") { const keys = trees.group.map((_, i) => key(i, trees)); found.sort((a, b) => keys[a] - keys[b] || a - b); }
    replace(count, `${num(found.length)} of ${num(texts.length)} trees`);
    tell(`${found.length} trees`);
    inner.style.height = `${found.length * ROW}px`;
    list.scrollTop = 0;
    paint();
  }
  function paint() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(found.length, first + Math.ceil(list.clientHeight / ROW) + 9);
    replace(inner, found.slice(first, last).map((i, n) => treeRow(i, first + n, found.length, i === now, () => choose(i))));
    const at = found.indexOf(now), painted = at >= first && at < last; // a row that does not exist cannot be named
    if (painted) list.setAttribute("aria-activedescendant", `tree-${now}`); else list.removeAttribute("aria-activedescendant");
  }
  function choose(i, focus = true) {
    now = i;
    const at = found.indexOf(i);
    const outside = at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight;
    if (at >= 0 && outside) list.scrollTop = Math.max(0, at * ROW - list.clientHeight / 3);
    paint();
    call(i, focus);
  }
  function move(by) {
    if (!found.length) return;
    const at = found.indexOf(now);
    choose(found[at < 0 ? 0 : Math.max(0, Math.min(found.length - 1, at + by))], false);
  }
  const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const keys = { ArrowDown: () => move(1), ArrowUp: () => move(-1), PageDown: () => move(page()), PageUp: () => move(-page()),
    Home: () => move(-found.length), End: () => move(found.length), Enter: () => { if (now >= 0) call(now, true); } };
  list.addEventListener("keydown", (event) => { if (keys[event.key] && !commanded(event)) { keys[event.key](); event.preventDefault(); } });
  list.addEventListener("scroll", framed(paint));
  new ResizeObserver(framed(paint)).observe(list);
  search.input.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    list.focus();
    move(now < 0 ? 0 : 1);
    event.preventDefault();
  });
  const hint = h("p.note", {}, "Also: ", h("code", {}, "outcome:wrong"), " ", h("code", {}, "step:3-8"), " ", h("code", {}, "correct>2"), " ",
    h("code", {}, "entropy>0.5"), " ", h("code", {}, "reason:policy"), " ", h("code", {}, "-word"));
  const box = h("div.tree-side", {}, search.box, h("div.controls", {}, outcomes, order), hint, count, list);
  const seek = (words) => { search.input.value = words; fill(); };
  return { box, fill, seek, move, choose, list, get found() { return found; }, get chosen() { return now; } };
}

function treeRow(i, at, size, chosen, call) {
  const t = trees;
  return h("div.tree-row", { id: `tree-${i}`, role: "option", "aria-selected": String(chosen), "aria-setsize": size, "aria-posinset": at + 1,
    style: { top: `${at * ROW}px` }, onclick: call },
    h("span.tree-head", {}, data.runs.length > 1 ? swatch(t.run[i]) : null, h("span.dot", { style: { background: outcomeFill(t.outcome[i]) } }),
      h("span.tree-group", {}, visible(t.group[i])), h("span.unit", {}, `step ${num(t.step[i], 6)}`)),
    h("span.tree-prompt", {}, visible(t.prompt[i].slice(0, 160))),
    h("span.tree-foot", {}, h("span", {}, outcomeName(t.outcome[i])),
      h("span.score", {}, `✓${t.correct[i]} ✗${t.wrong[i]}`, t.unknown[i] + t.failed[i] ? ` ?${t.unknown[i] + t.failed[i]}` : ""),
      h("span", {}, `${t.anchors[i]} anchors`), t.entropy[i] === null ? null : h("span", {}, `H ${num(t.entropy[i], 2)}`)));
}
