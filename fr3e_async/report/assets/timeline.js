// Who worked when: a lane for each actor on a canvas that zooms, and the same as a table of busy shares and longest waits.

const WORK = {
  train: ["train", "the learner trains and exports a batch"],
  rescore: ["rescore", "the learner works out entropies of trunks and chooses anchors"],
  export: ["export", "weights are being put into the object store"],
  base: ["base", "bases are drawn from the prompt"],
  branch: ["branch", "continuations are drawn from anchors"],
  verify: ["verify", "answers are judged"],
  evaluate: ["evaluate", "held-out problems"],
  weights: ["weights", "new weights are fetched (thin line: generation continues)"],
};
const LANE = 22, TOP = 20, GROUPS = 46, LABELS = 98;

function drawTimeline(root) {
  const box = h("div");
  function fill() {
    const runs = shownRuns();
    const unknown = "This run kept no journal (observe.journal), so nobody knows who worked when.";
    replace(box, runs.map((run) => section(visible(run.name), run.timeline ? lanesOf(run) : h("p.empty", {}, unknown), eventsOf(run))));
    if (!runs.length) replace(box, h("p.empty", {}, "No run is shown."));
  }
  replace(root, h("div", {}, h("p.note", {}, "A task counts from the moment it is given to an actor until its result is back. Pale is waiting: ",
    "the actor was in service and had nothing to do. Drag to look closer, double-click to see everything."),
    h("ul.legend", {}, Object.entries(WORK).map(([kind, [name, meaning]]) => h("li", { title: meaning },
      h("span.swatch", { style: { background: `var(--work-${kind})` } }), name)))), box);
  fill();
  return fill;
}

function lanesOf(run) {
  const line = run.timeline;
  const canvas = h("canvas", { tabindex: "0", role: "img",
    "aria-label": `Timeline of ${line.lanes.length} actors over ${duration(line.end)}; the table below says the same in numbers. `
      + "Arrow keys move, plus and minus zoom, 0 shows all." });
  const said = h("p.readout", {});
  const height = TOP + LANE * line.lanes.length + GROUPS;
  const view = { from: 0, to: line.end, drag: null };
  canvas.style.height = `${height}px`;
  const paint = framed(() => paintLanes(canvas, run, view, height));
  const set = (from, to) => {
    const size = Math.min(line.end, Math.max(to - from, line.grain * 4, line.end / 5000));
    view.from = Math.max(0, Math.min(from, line.end - size));
    view.to = view.from + size;
    replace(said, `${duration(view.from)} to ${duration(view.to)}`);
    paint();
  };
  const zoom = (factor, at = (view.from + view.to) / 2) => set(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const move = (part) => { const by = part * (view.to - view.from); set(view.from + by, view.to + by); };
  const moment = (event) => view.from + (Math.max(0, event.offsetX - LABELS) / Math.max(1, canvas.clientWidth - LABELS)) * (view.to - view.from);
  const keys = { ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
    0: () => set(0, line.end) };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || commanded(event)) return;
    keys[event.key]();
    event.preventDefault();
    event.stopPropagation();
  });
  canvas.addEventListener("pointerdown", (event) => { view.drag = { at: moment(event), x: event.offsetX }; });
  canvas.addEventListener("pointermove", (event) => {
    replace(said, wordsAt(run, moment(event), event.offsetY));
    if (view.drag) { view.now = event.offsetX; paint(); }
  });
  canvas.addEventListener("pointerup", (event) => {
    const drag = view.drag;
    view.drag = view.now = null;
    if (drag && Math.abs(event.offsetX - drag.x) > 5) set(Math.min(drag.at, moment(event)), Math.max(drag.at, moment(event))); else paint();
  });
  canvas.addEventListener("pointerleave", () => { view.drag = view.now = null; paint(); });
  canvas.addEventListener("dblclick", () => set(0, line.end));
  new ResizeObserver(paint).observe(canvas);
  const button = (name, title, call) => h("button", { type: "button", title, "aria-label": title, onclick: call }, name);
  return [
    h("div.controls", {}, button("◀", "Earlier", () => move(-0.5)), button("▶", "Later", () => move(0.5)), button("+", "Closer", () => zoom(0.5)),
      button("−", "Further away", () => zoom(2)), button("all", "Show everything", () => set(0, line.end)), said),
    canvas, waits(line),
  ];
}

function paintLanes(canvas, run, view, height) {
  const line = run.timeline, width = canvas.clientWidth, scale = devicePixelRatio || 1;
  if (!width) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  const ink = colour("var(--ink)"), quiet = colour("var(--quiet)"), grid = colour("var(--grid)"), up = colour("var(--lane)");
  const x = (t) => LABELS + ((t - view.from) / (view.to - view.from)) * (width - LABELS);
  const strip = (spans, top, size, fill) => {
    c.fillStyle = fill;
    for (let i = 0; i < spans.length; i += 2) {
      if (spans[i + 1] < view.from || spans[i] > view.to) continue;
      const a = Math.max(LABELS, x(spans[i])), b = Math.min(width, x(spans[i + 1]));
      c.fillRect(a, top, Math.max(0.75, b - a), size);
    }
  };
  c.font = "11px system-ui, sans-serif";
  c.textBaseline = "middle";
  paintTime(c, view, width, height, x, { quiet, grid });
  line.lanes.forEach((lane, index) => {
    const top = TOP + index * LANE;
    strip(lane.up, top + 2, LANE - 5, up);
    for (const [kind, spans] of Object.entries(lane.work)) {
      if (kind !== "weights") strip(spans, top + 2, LANE - 5, colour(`var(--work-${kind in WORK ? kind : "evaluate"})`));
    }
    if (lane.work.weights) strip(lane.work.weights, top + LANE - 7, 4, colour("var(--work-weights)"));
    c.fillStyle = ink;
    c.fillText(visible(lane.actor), 6, top + LANE / 2, LABELS - 10);
  });
  paintGroups(c, line, view, { x, width, height, ink, quiet });
  c.fillStyle = colour("var(--wrong)");
  for (const event of run.events) {
    const at = event.time - line.start;
    if (event.level === "info" || at < view.from || at > view.to) continue;
    c.fillRect(x(at) - 0.5, TOP - 6, 1.5, height - TOP - GROUPS + 6);
  }
  if (view.drag && view.now) {
    c.fillStyle = colour("var(--select)");
    c.fillRect(Math.min(view.drag.x, view.now), TOP, Math.abs(view.now - view.drag.x), height - TOP);
  }
}

function paintTime(c, view, width, height, x, { quiet, grid }) {
  const rough = ((view.to - view.from) / Math.max(2, (width - LABELS) / 90));
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * base).find((n) => n >= rough);
  for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
    c.fillStyle = grid;
    c.fillRect(x(t), TOP - 4, 1, height - TOP);
    c.fillStyle = quiet;
    c.fillText(duration(Number(t.toPrecision(6))), Math.min(x(t) + 2, width - 44), 8);
  }
}

/** How many groups are open, as a line under the lanes: where it is flat at its bound, engines wait for the learner. */
function paintGroups(c, line, view, { x, width, height, ink, quiet }) {
  const [times, counts] = line.open, top = height - GROUPS + 10, size = GROUPS - 16, most = Math.max(1, ...counts);
  c.fillStyle = ink;
  c.fillText("open groups", 6, top + size / 2 - 6, LABELS - 10);
  c.fillStyle = quiet;
  c.fillText(`at most ${most}`, 6, top + size / 2 + 7, LABELS - 10);
  c.strokeStyle = colour("var(--accent)");
  c.lineWidth = 1.25;
  c.beginPath();
  let level = 0;
  const y = (n) => top + size * (1 - n / most);
  times.forEach((t, i) => {
    const a = Math.min(width, Math.max(LABELS, x(t)));
    if (i === 0) c.moveTo(a, y(0)); else c.lineTo(a, y(level));
    level = counts[i];
    c.lineTo(a, y(level));
  });
  c.stroke();
}

function wordsAt(run, at, y) {
  const lane = run.timeline.lanes[Math.floor((y - TOP) / LANE)];
  if (!lane) return `${duration(at)}`;
  const within = (spans) => spans.some((_, i) => i % 2 === 0 && spans[i] <= at && at <= spans[i + 1]);
  const now = Object.entries(lane.work).filter(([, spans]) => within(spans)).map(([kind]) => (WORK[kind] ?? [kind])[0]);
  return `${duration(at)} · ${visible(lane.actor)}: ${now.length ? now.join(", ") : "waits"}`;
}

function waits(line) {
  const rows = line.lanes.map((lane) => [visible(lane.actor), meter(lane.up_s ? lane.busy_s / lane.up_s : 0), duration(lane.busy_s),
    duration(Math.max(0, lane.up_s - lane.busy_s)), duration(lane.wait_s)]);
  return table("Work and waiting of each actor, while it was in service", ["actor", "busy", "worked", "waited", "longest wait"], rows);
}

const meter = (part) => h("span.meter", {}, h("span.meter-bar", {}, h("span", { style: { width: `${Math.min(100, 100 * part)}%` } })), percent(part));

function eventsOf(run) {
  if (!run.events.length) return null;
  const start = run.timeline?.start ?? run.events[0].time;
  const rows = () => run.events.map((event) => [duration(Math.max(0, event.time - start)),
    h("span.level", { "data-level": event.level, title: data.events[event.event] ?? "" }, visible(event.event)),
    h("span.event-text", {}, visible(event.text))]);
  const box = h("details", {}, h("summary", {}, `${num(run.events.length)} events`));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(table("Events", ["at", "event", "text"], rows())); });
  return box;
}
