// The board of curves: a chosen set first, every other metric below it or by search; one axis for all, several runs in each.

const BOARD = {
  "Learning": ["reward/accuracy", "reward/mean", "rollout/entropy_nats", "train/entropy_nats", "prompt/all_correct_fraction",
    "prompt/all_wrong_fraction", "groups/all_correct", "groups/all_wrong", "rollout/length_tokens", "rollout/truncated_fraction"],
  "The update": ["train/clip_low_fraction", "train/clip_high_fraction", "train/grad_norm", "train/ess_fraction", "train/mismatch_nats", "train/loss"],
  "Tokens": ["prompt/useful_fraction", "prompt/generated_tokens", "prompt/trained_tokens", "prompt/reused_tokens", "tokens/generated", "tokens/rate_per_s"],
  "Asynchrony": ["lag/versions_mean", "lag/versions_max", "overlap/fraction", "idle/generators_fraction", "idle/explorers_fraction",
    "idle/learner_fraction", "time/step_s", "time/pause_s"],
};
const BENCHMARK = /^(.+)\/(accuracy|reward)$/; // of each benchmark that was evaluated; no metric of a step, so not declared as one
const benchmarkOf = (name) => (name in data.metrics ? null : BENCHMARK.exec(name)?.[1] ?? null);
/** Whether an evaluation's mean reward says something else than its accuracy. */
const isGraded = (row) => typeof row.reward?.value === "number" && row.reward.value !== row.accuracy;

const board = { axis: "step", smoothing: 0, log: false, all: false };

function drawCurves(root) {
  const box = h("div.board");
  const search = searchBox("Search all metrics", () => fill());
  const axis = h("select", { onchange: (e) => { board.axis = e.target.value; redraw(); } },
    Object.entries(AXES).map(([name, item]) => h("option", { value: name, selected: name === board.axis }, item.name)));
  const smoothing = h("input", { type: "range", min: "0", max: "0.98", step: "0.02", value: String(board.smoothing),
    oninput: framed(() => { board.smoothing = Number(smoothing.value); redraw(); }) });
  const check = (text, key, call) => h("label.check", {},
    h("input", { type: "checkbox", checked: board[key], onchange: (e) => { board[key] = e.target.checked; call(); } }), text);
  replace(root, section("Curves",
    h("div.controls", {}, h("label", {}, "Over ", axis), h("label", {}, "Smoothing ", smoothing), check("log scale", "log", () => redraw()),
      check("all metrics", "all", () => fill()), search.box),
    h("p.note", {}, "Drag over a plot to look closer, double-click to see all of it again."), box));

  let cards = [];
  const seen = new IntersectionObserver((entries) => {
    for (const item of entries) { const card = cards.find((c) => c.box === item.target); if (card) { card.seen = item.isIntersecting; card.show(); } }
  }, { rootMargin: "300px" });

  function fill() {
    for (const card of cards) { seen.unobserve(card.box); card.plot?.destroy(); }
    cards = [];
    replace(box, chosen(search.value).map(([title, names]) => {
      const made = names.map(metricCard);
      cards.push(...made);
      return h("section.board-part", {}, h("h3", {}, title), h("div.cards", {}, made.map((card) => card.box)));
    }));
    if (!cards.length) replace(box, h("p.empty", {}, search.value ? "No metric with values fits." : "No batch has been trained yet."));
    for (const card of cards) seen.observe(card.box);
  }
  function redraw() { for (const card of cards) { card.dirty = true; card.show(); } }
  fill();
  return redraw;
}

/** [[title, names]]: what the search asks for, or the board and, if wanted, all that it leaves out. */
function chosen(search) {
  const there = new Set(data.runs.flatMap((run) => Object.keys(run.metrics)));
  const measured = new Set(data.runs.flatMap((run) => run.evaluations.filter((row) => row.at.step !== null).flatMap((row) =>
    [`${row.benchmark}/accuracy`, ...(isGraded(row) ? [`${row.benchmark}/reward`] : [])])));
  for (const name of measured) there.add(name);
  const wanted = words(search);
  if (wanted.length) {
    const found = [...there].filter((name) => matches(wanted, name, describe(name).meaning, describe(name).unit));
    return found.length ? [[`${found.length} found`, found]] : [];
  }
  const parts = Object.entries(BOARD).map(([title, names]) => [title, [...(title === "Learning" ? measured : []), ...names.filter((name) => there.has(name))]]);
  const others = [...there].filter((name) => !measured.has(name) && !Object.values(BOARD).flat().includes(name));
  const groups = Map.groupBy ? [...Map.groupBy(others, (name) => name.split("/")[0])] : [["others", others]];
  return [...parts, ...(board.all ? groups : [])].filter(([, names]) => names.length);
}

function describe(name) {
  const benchmark = benchmarkOf(name);
  if (benchmark === null) return declared(name);
  const where = benchmark === "heldout" ? "of held-out problems" : `on ${benchmark}`;
  if (name.endsWith("/reward")) {
    return { unit: "", meaning: `mean reward ${where} (an unknown one counts as the lowest) with its 95 % interval, of every evaluation`, code: [] };
  }
  const what = benchmark === "heldout" ? "held-out accuracy" : `accuracy on ${benchmark}`;
  return { unit: "fraction", meaning: `${what} (avg@k, unknown counts as not correct) with its 95 % interval, of every evaluation`, code: [] };
}

function metricCard(name) {
  const metric = describe(name);
  const missing = h("span.note", {});
  const plot = h("div.plot", { role: "img", "aria-label": `${name} over ${AXES[board.axis].name}` });
  const readout = h("p.readout", { "aria-hidden": "true" });
  const box = h("article.card", {},
    h("h4", {}, h("code", {}, visible(name)), metric.unit ? h("span.unit", {}, metric.unit) : null),
    h("p.meaning", { title: metric.meaning }, metric.meaning), plot, readout,
    h("p.card-foot", {}, benchmarkOf(name) !== null ? h("a", { href: "#evaluations" }, "table") : codeButton(name), missing));
  const card = { box, plot: null, dirty: true, seen: false, width: 0, show };
  function show() {
    if (!card.seen || (!card.dirty && card.width === plot.clientWidth)) return;
    card.plot?.destroy();
    const curves = curvesOf(name), gone = board.log ? undrawn(curves) : 0;
    const some = curves.some((curve) => curve.ys.some((value) => value !== null && !(board.log && value <= 0)));
    replace(plot);
    replace(missing, gone ? `${num(gone)} ${gone === 1 ? "value" : "values"} of 0 or less not drawn (log scale)` : null);
    const options = { axis: board.axis, unit: metric.unit, log: board.log, sync: "board", points: benchmarkOf(name) !== null, pointed: say };
    card.plot = some ? draw(plot, curves, options) : null;
    if (!some) replace(plot, h("p.empty", {}, curves.length && gone ? "no value above 0, so none on a log scale" : "no values in the runs shown"));
    card.dirty = false;
    card.width = plot.clientWidth;
    say(null);
  }
  function say(point) {
    const items = point ? point.found : curvesOf(name).map((curve) => ({ run: curve.run, value: lastOf(curve.ys) }));
    replace(readout, h("span.where", {}, point ? AXES[board.axis].show(point.x) : "last"),
      items.map((item) => h("span.chip", {}, swatch(item.run), withUnit(item.value, metric.unit))));
  }
  return card;
}

function curvesOf(name) {
  return shownRuns().map((run) => {
    const benchmark = benchmarkOf(name);
    if (benchmark !== null) return evaluationCurve(run, benchmark, board.axis, name.endsWith("/reward"));
    if (!run.metrics[name]) return null;
    return { run: run.index, label: run.name, xs: run.axes[board.axis], ys: smoothed(run.metrics[name], board.smoothing) };
  }).filter(Boolean);
}

function evaluationCurve(run, benchmark, axis = board.axis, reward = false) {
  const rows = run.evaluations.filter((item) => item.benchmark === benchmark && item.at[axis] !== null);
  const found = reward ? rows.filter((item) => item.reward).map((item) => ({ at: item.at, ...item.reward, accuracy: item.reward.value })) : rows;
  if (!found.length) return null;
  const whole = found.every((item) => typeof item.low === "number" && typeof item.high === "number");
  return {
    run: run.index, label: run.name, xs: found.map((item) => item.at[axis]), ys: found.map((item) => item.accuracy),
    ...(whole ? { low: found.map((item) => item.low), high: found.map((item) => item.high) } : {}),
  };
}
