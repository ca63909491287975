// One tree: its prompt, the trunk with anchors, and states and rollouts as a tree that folds (the keys of the WAI-ARIA tree pattern).

let openTree = null; // {index, tree, items}

async function drawTrees(root) {
  if (!trees) trees = await opened($("index"));
  if (!trees.group.length) {
    replace(root, section("Trees", h("p.empty", {}, "No tree was kept: trees.jsonl is missing or empty in these runs.")));
    return null;
  }
  const detail = h("div.tree-detail", { "aria-label": "The chosen tree" },
    h("p.empty", {}, "Choose a tree. Up and down move in the list, Enter goes into the tree, ? shows all keys."));
  const list = treeList((index, focus) => showTree(detail, list, index, focus));
  replace(root, h("section.tree-page", {}, h("h2.visually-hidden", {}, "Trees"), list.box, detail));
  list.seek(linkedSearch());
  list.choose(linkedTree() ?? list.found[0] ?? 0, false);
  root.treeList = list;
  return () => {
    list.fill();
    if (openTree && !hiddenRuns.has(trees.run[openTree.index])) return;
    if (list.found.length) list.choose(list.found[0], false);
    else { openTree = showTree.latest = null; replace(detail, h("p.empty", {}, "No tree of the runs shown fits.")); }
  };
}

/** The tree that the page's address names, as #trees/7; null if it names none. */
function linkedTree() {
  const [name, text] = location.hash.slice(1).split("/");
  return name === "trees" && /^\d+$/.test(text ?? "") && Number(text) < trees.group.length ? Number(text) : null;
}

/** The search that the page's address names, as #trees/reason:policy; "" if it names none. */
function linkedSearch() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  return name === "trees" && !/^\d*$/.test(rest.join("/")) ? new URLSearchParams(`words=${rest.join("/")}`).get("words") : "";
}

/** The address has been changed by hand or by a link while the list is there. */
function followLink(list) {
  const wanted = linkedTree(), words = linkedSearch();
  if (words) { list.seek(words); if (list.found.length) list.choose(list.found[0], false); }
  if (wanted !== null && wanted !== list.chosen) list.choose(wanted, false);
}

async function showTree(detail, list, index, focus) {
  const request = showTree.latest = index;
  const tree = await treeAt(trees.part[index], trees.index[index]);
  if (request !== showTree.latest) return;
  if (now === "trees") history.replaceState(null, "", `#trees/${index}`);
  const said = h("p.token-said", { role: "status" });
  const say = (words) => { said.textContent = words; measure("said", said); };
  const jump = (node) => { const item = body.querySelector(`[data-node="${node}"]`); if (item) { unfold(item, true); focusItem(item); } };
  const shades = h("select", { "aria-label": "Shade tokens by",
    onchange: (event) => { shade = event.target.value; reshade(detail); replace(legend, shadeLegend()); } },
    Object.entries(SHADES).map(([name, item]) => h("option", { value: name, selected: name === shade }, item.name)));
  const legend = h("div", {}, shadeLegend());
  const nodes = nodesOf(tree);
  const body = h("ul.tree", { role: "tree", "aria-label": "States and rollouts" }, stateItem(tree, nodes, nodes[0], 1, { say, jump }));
  const tool = (name, title, call) => h("button", { type: "button", title, onclick: call }, name);
  replace(detail,
    h("header.tree-title", {}, h("h3", {}, visible(tree.group)),
      h("span.chip", {}, h("span.dot", { style: { background: outcomeFill(tree.outcome) } }), outcomeName(tree.outcome)),
      h("span.chip", {}, `step ${num(tree.step, 6)}`), data.runs.length > 1 ? h("span.chip", {}, runName(trees.run[index])) : null,
      h("span.tools", {}, tool("‹", "Tree before (p)", () => list.move(-1)), tool("›", "Next tree (n)", () => list.move(1)))),
    h("dl.prompt", {}, h("dt", {}, "prompt"), h("dd", { tabindex: "0" }, visible(tree.prompt)),
      h("dt", {}, "reference answer"), h("dd", {}, visible(tree.gold) || "none")),
    h("div.controls", {}, h("label", {}, "Shade ", shades), tool("unfold all", "Unfold all (e)", () => foldAll(body, true)),
      tool("fold all", "Fold all (c)", () => foldAll(body, false)), legend),
    trunksOf(tree, nodes, { say, jump }), body, said);
  measure("said", said);
  openTree = { index, tree, body };
  body.addEventListener("keydown", (event) => treeKey(event, body, list, say));
  body.addEventListener("focusin", (event) => { const item = event.target.closest("[role=treeitem]"); if (item) rove(body, item); });
  const first = body.querySelector("[role=treeitem]");
  rove(body, first);
  tell(`${tree.group}, ${outcomeName(tree.outcome)}`);
  if (focus) { focusItem(first); if (matchMedia("(max-width: 859px)").matches) detail.scrollIntoView({ block: "start" }); }
}

// ---- what a tree consists of ----

/** States by node, with their rollouts and child anchors; a node that only rollouts name gets a state without values. */
function nodesOf(tree) {
  const nodes = {};
  const add = (node) => (nodes[node] ??= { node, parent: node ? 0 : null, trunk: null, position: null, score: null, value: null, alpha: null,
    dropped: "", scored: 0, rollouts: [], children: [] });
  add(0);
  for (const state of tree.states) if (state.node !== null) Object.assign(add(state.node), state);
  for (const rollout of tree.rollouts) add(rollout.node).rollouts.push(rollout);
  for (const state of Object.values(nodes)) {
    if (!state.node) continue;
    const parent = nodes[state.parent] && state.parent < state.node ? nodes[state.parent] : nodes[0]; // no cycle, whatever a file says
    parent.children.push(state);
  }
  for (const state of Object.values(nodes)) state.children.sort((a, b) => (a.position ?? 0) - (b.position ?? 0));
  return nodes;
}

/** Token of a base → nodes whose anchor stands before it. */
function marksOf(nodes, branch) {
  const marks = new Map();
  for (const state of Object.values(nodes)) {
    if (!state.node || state.trunk !== branch || state.position === null) continue;
    marks.set(state.position, [...(marks.get(state.position) ?? []), state.node]);
  }
  return marks;
}

const baseOf = (nodes, branch) => nodes[0].rollouts.find((rollout) => rollout.branch === branch);

function trunksOf(tree, nodes, tools) {
  const branches = [...new Set(Object.values(nodes).filter((state) => state.node && state.trunk !== null).map((state) => state.trunk))].sort((a, b) => a - b);
  return branches.map((branch) => {
    const rollout = baseOf(nodes, branch);
    return rollout ? h("div.trunk", {}, h("h4", {}, `Trunk: base ${branch} `, outcome(rollout)),
      tokenRun(rollout, { marks: marksOf(nodes, branch), ...tools })) : null;
  });
}

// ---- rows ----

const outcome = (rollout) => h("span.outcome", { "data-outcome": rollout.outcome },
  `${MARKS[rollout.outcome] ?? "?"} ${visible(rollout.outcome) || "not scored"}`);

function item(level, label, kind, fold, build) {
  const row = h("div.item-row", {}, h("span.fold", { "aria-hidden": "true" }), label);
  const li = h("li", { role: "treeitem", tabindex: "-1", "aria-level": level, "aria-expanded": "false", class: kind }, row);
  li.build = build;
  row.addEventListener("click", () => { unfold(li, li.getAttribute("aria-expanded") !== "true"); focusItem(li); });
  if (fold) unfold(li, true);
  return li;
}

function stateItem(tree, nodes, state, level, tools) {
  const counts = data.outcomes.rollouts.map((name) => [name, state.rollouts.filter((rollout) => rollout.outcome === name).length]).filter(([, count]) => count);
  const label = h("span.label", {},
    h("span.state-name", {}, `S${state.node}`), h("span", {}, state.node ? `at token ${num(state.position, 6)} of base ${num(state.trunk, 6)}` : "the prompt"),
    value(state),
    state.alpha === null ? null : h("span.fact", { title: "factor of this state's advantages: exp(−(V − V of the state before))" }, `α ${num(state.alpha)}`),
    state.score === null ? null : h("span.fact", { title: "what the anchor rule ranked by: nats for entropy and surprisal" }, `score ${num(state.score)}`),
    counts.map(([name, count]) => h("span.outcome", { "data-outcome": name, title: name }, `${MARKS[name]} ${count}`)),
    state.dropped ? h("span.dropped", {}, `dropped: ${visible(state.dropped.replaceAll("_", " "))}`) : null);
  const made = item(level, label, "state", true, () => h("ul", { role: "group" },
    state.rollouts.map((rollout) => rolloutItem(tree, nodes, state, rollout, level + 1, tools)),
    state.children.map((child) => stateItem(tree, nodes, child, level + 1, tools))));
  made.dataset.node = state.node;
  return made;
}

/** V as a point on its 95 % interval, from 0 to 1, and in numbers. */
function value(state) {
  if (state.value === null) return h("span.fact", {}, "V unknown");
  const whole = typeof state.low === "number" && typeof state.high === "number";
  const bar = h("span.interval", { "aria-hidden": "true" },
    whole ? h("span.reach", { style: { left: `${100 * state.low}%`, width: `${100 * (state.high - state.low)}%` } }) : null,
    h("span.point", { style: { left: `${100 * state.value}%` } }));
  return h("span.fact", { title: `V(S${state.node}): ${num(state.reward_sum)} in rewards of ${num(state.scored)} scored, with its 95 % Wilson interval` },
    `V ${num(state.value)} `, bar, whole ? ` [${num(state.low, 2)}, ${num(state.high, 2)}]` : "");
}

function rolloutItem(tree, nodes, state, rollout, level, tools) {
  const first = spanAt(rollout.advantage, 0), many = (rollout.advantage ?? []).length > 1;
  const trunk = state.node === 0 && Object.values(nodes).some((other) => other.node && other.trunk === rollout.branch);
  const label = h("span.label", {}, outcome(rollout), h("span", {}, `${state.node ? "branch" : "base"} ${num(rollout.branch, 6)}`),
    trunk ? h("span.chip", {}, "trunk") : null,
    rollout.advantage ? h("span.fact", { title: "advantage, as trained" }, `A′ ${many ? `${rollout.advantage.length} spans` : signedNum(first)}`)
      : tree.outcome === "trained" ? h("span.fact", {}, "not trained") : null,
    rollout.reward === null || rollout.reward === { correct: 1, wrong: 0 }[rollout.outcome] ? null
      : h("span.fact", { title: "reward" }, `r ${num(rollout.reward)}`),
    rollout.reason ? h("span.fact", { title: "the verifier's reason" }, visible(rollout.reason)) : null,
    h("span.fact", {}, `${num(rollout.pieces.length)} tokens${rollout.finish && rollout.finish !== "stop" ? `, ${visible(rollout.finish)}` : ""}`),
    h("span.preview", {}, visible(rollout.pieces.slice(-40).join("").replace(/\s+/g, " ")).slice(-90)));
  const made = item(level, label, "rollout", false, () => {
    const prefix = prefixOf(nodes, state);
    const tokens = tokenRun(rollout, { marks: state.node ? new Map() : marksOf(nodes, rollout.branch), offset: state.position ?? 0, ...tools });
    if (prefix) tokens.prepend(prefix);
    return h("div.rollout-body", {}, tokens);
  });
  made.tokens = { rollout, offset: state.position ?? 0 };
  return made;
}

const signedNum = (value) => (value === null ? "–" : (value > 0 ? "+" : value < 0 ? "−" : "") + num(Math.abs(value)));

/** The end of the trunk that a branch continues from, which is not its own. */
function prefixOf(nodes, state) {
  const trunk = state.node && state.position ? baseOf(nodes, state.trunk) : null;
  if (!trunk) return null;
  const from = Math.max(0, state.position - 24);
  return h("span.prefix", { title: "prefix of the trunk, not drawn again" }, from ? "… " : "", visible(trunk.pieces.slice(from, state.position).join("")));
}

// ---- folding, and the keys ----

function unfold(li, open) {
  const is = li.getAttribute("aria-expanded") === "true";
  if (open && !is) { const part = li.build(); part.classList.add("inside"); li.append(part); }
  if (!open && is) li.querySelector(":scope > .inside")?.remove();
  li.setAttribute("aria-expanded", String(open));
}

function foldAll(body, open) {
  const items = () => [...body.querySelectorAll("[role=treeitem]")];
  const folded = () => items().filter((li) => li.getAttribute("aria-expanded") !== "true");
  if (open) for (let left = folded(); left.length; left = folded()) left.forEach((li) => unfold(li, true));
  else for (const li of items()) if (li.classList.contains("rollout")) unfold(li, false);
  const now = body.querySelector('[role=treeitem][tabindex="0"]') ?? items()[0];
  rove(body, now);
}

function rove(body, li) {
  for (const other of body.querySelectorAll('[role=treeitem][tabindex="0"]')) other.tabIndex = -1;
  if (li) li.tabIndex = 0;
}

function focusItem(li) {
  rove(li.closest("[role=tree]"), li);
  li.focus({ preventScroll: true });
  li.querySelector(".item-row").scrollIntoView({ block: "nearest" });
}

function treeKey(event, body, list, say) {
  if (commanded(event)) return;
  const li = event.target.closest("[role=treeitem]");
  if (!li || event.target.closest("button, select, input")) return;
  const shown = [...body.querySelectorAll("[role=treeitem]")], at = shown.indexOf(li), open = li.getAttribute("aria-expanded") === "true";
  const token = (by) => { if (!li.tokens) return; unfold(li, true); moveToken(li.querySelector(".tokens"), li.tokens.rollout, li.tokens.offset, by, say); };
  const keys = {
    ArrowDown: () => shown[at + 1] && focusItem(shown[at + 1]),
    ArrowUp: () => shown[at - 1] && focusItem(shown[at - 1]),
    ArrowRight: () => { if (!open) unfold(li, true); else if (li.querySelector("[role=treeitem]")) focusItem(li.querySelector("[role=treeitem]")); },
    ArrowLeft: () => { if (open) unfold(li, false); else { const parent = li.parentElement.closest("[role=treeitem]"); if (parent) focusItem(parent); } },
    Home: () => focusItem(shown[0]),
    End: () => focusItem(shown[shown.length - 1]),
    Enter: () => unfold(li, !open),
    " ": () => unfold(li, !open),
    "]": () => token(1), ".": () => token(1),
    "[": () => token(-1), ",": () => token(-1),
    "}": () => token(10), ">": () => token(10), ":": () => token(10), // with Shift the key of the dot has one or the other
    "{": () => token(-10), "<": () => token(-10), ";": () => token(-10),
    Escape: () => list.list.focus(),
  };
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); event.stopPropagation(); }
}
