// Keys that work everywhere, and the dialog that lists all keys.

const KEYS = {
  "Everywhere": [
    ["1 … 8", "go to a view"], ["/", "search in this view"], ["d", "colours: auto, light, dark"], ["?", "this list"],
    ["Esc", "leave a search or this list"],
  ],
  "Trees: the list": [
    ["↓ ↑, Page, Home, End", "move; the tree is shown at once"], ["Enter", "go into the tree"],
    ["n p or j k", "next tree, tree before, from anywhere in this view"],
  ],
  "Trees: a tree": [
    ["↓ ↑", "next row, row before"], ["→", "unfold, then go inside"], ["←", "fold, then go out"], ["Enter, Space", "fold or unfold"],
    ["] [ or . ,", "next token, token before, of a rollout"], ["} { or Shift with . ,", "ten tokens on, back"],
    ["e c", "unfold all, fold all rollouts"], ["s", "shade tokens by something else"], ["Esc", "back to the list"],
  ],
  "Timeline": [["← →", "earlier, later"], ["+ −", "closer, further away"], ["0", "show everything"]],
};

function showHelp() {
  showDialog("Keys", Object.entries(KEYS).map(([title, rows]) => [h("h3", {}, title),
    h("dl.keys", {}, rows.map(([key, said]) => [h("dt", {}, key.split(", ").map((k, i) => [i ? ", " : "", h("kbd", {}, k)])), h("dd", {}, said)]))]));
}

function showDialog(title, ...content) {
  const dialog = $("dialog");
  replace(dialog, h("header", {}, h("h2", {}, title), h("button", { type: "button", onclick: () => dialog.close(), "aria-label": "Close" }, "✕")),
    h("div.dialog-body", {}, content));
  dialog.setAttribute("aria-label", title);
  if (!dialog.open) dialog.showModal();
}

function onKey(event) {
  if (commanded(event) || event.defaultPrevented) return;
  const typing = event.target.closest?.("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if ($("dialog").open) { if (event.key === "?") $("dialog").close(); return; }
  const list = views.trees.root?.treeList, inTrees = now === "trees" && list;
  const keys = {
    "?": showHelp,
    d: nextTheme,
    "/": () => views[now].root.querySelector("input[type=search]")?.focus(),
    ...(inTrees ? keysOfTrees(list) : {}),
  };
  const view = Object.keys(views)[Number(event.key) - 1];
  if (view) openView(view);
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
}

function keysOfTrees(list) {
  const fold = (open) => { if (openTree) foldAll(openTree.body, open); };
  const next = () => list.move(1), before = () => list.move(-1);
  return { n: next, j: next, p: before, k: before, e: () => fold(true), c: () => fold(false), s: nextShade };
}

function nextShade() {
  const select = views.trees.root.querySelector("select[aria-label='Shade tokens by']"), names = Object.keys(SHADES);
  if (!select) return; // no tree is open
  select.value = names[(names.indexOf(shade) + 1) % names.length];
  select.dispatchEvent(new Event("change"));
}

/** Opens a view by its key. The list of trees gets the focus, so that its keys work at once. */
async function openView(name) {
  if (name !== now) {
    history.pushState(null, "", `#${name}`);
    await route();
  }
  if (now === "trees") views.trees.root.treeList?.list.focus({ preventScroll: true });
}

function startKeys() {
  document.addEventListener("keydown", onKey);
  $("help").addEventListener("click", showHelp);
  $("dialog").addEventListener("click", (event) => { if (event.target === $("dialog")) $("dialog").close(); });
}
