// The page's data: gzip in base64 in elements of the page. Parts with trees are opened when one of their trees is.

async function opened(element) {
  const raw = atob(element.textContent);
  const packed = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) packed[i] = raw.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** What main.js reads before anything is drawn: runs, metrics, code, summary, events, defaults. */
let data = null;

const PARTS_HELD = 8;
const held = new Map(); // part → its trees, in the order of use

async function treeAt(part, index) {
  const trees = held.get(part) ?? await opened(document.getElementsByClassName("part")[part]);
  held.delete(part);
  held.set(part, trees);
  if (held.size > PARTS_HELD) held.delete(held.keys().next().value);
  return trees[index];
}

// ---- runs: which are shown, and in which colour ----

const RUN_COLOURS = 8;
const hiddenRuns = new Set();
const runChanged = new Set(); // called when a run is hidden or shown

const colourOf = (run) => `var(--run-${run % RUN_COLOURS})`;
const dashOf = (run) => (run < RUN_COLOURS ? [] : [6, 3]);
const shownRuns = () => data.runs.map((run, index) => ({ ...run, index })).filter((run) => !hiddenRuns.has(run.index));
const swatch = (run) => h("span.swatch", { style: { background: colourOf(run) }, "aria-hidden": "true" });
const runName = (run) => h("span.run-name", {}, swatch(run), visible(data.runs[run].name));

function runButtons() {
  replace($("runs"), data.runs.map((run, index) => {
    const button = h("button.run", { type: "button", "aria-pressed": "true", title: "Show or hide this run" }, swatch(index), h("span", {}, visible(run.name)));
    button.addEventListener("click", () => {
      if (hiddenRuns.has(index)) hiddenRuns.delete(index); else hiddenRuns.add(index);
      button.setAttribute("aria-pressed", String(!hiddenRuns.has(index)));
      for (const call of runChanged) call();
    });
    return button;
  }));
}
