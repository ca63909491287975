// Tables: the result of each run, its evaluations, and how the runs' settings differ.

const ASIDE = new Set(["evaluations", "verdict_reasons", "accuracy_intervals", "reward_intervals", "benchmarks", "name"]);

function drawOverview(root) {
  function fill() {
    const runs = shownRuns();
    replace(root, h("section", {}, h("h2", {}, runs.length > 1 ? "Runs" : "The run"), runs.map(headlineOf)), evaluationsOf(runs), section("Result",
      h("p.note", {}, "What each run says of itself (summary.json). A run that is still going, or that failed, has not said it yet."), resultTable(runs)));
  }
  fill();
  return fill;
}

function resultTable(runs) {
  const keys = Object.entries(data.summary).filter(([key]) => !ASIDE.has(key));
  const rows = keys.map(([key, { unit, meaning }]) => [h("code", { title: meaning }, key),
    ...runs.map((run) => (run.summary ? shownValue(run, key, unit) : key === "steps" ? `${num(run.axes.step.at(-1) ?? 0)} so far` : "–")),
      h("td.explain", {}, meaning)]);
  return table("Result of each run", ["", ...runs.map((run) => runName(run.index)), "meaning"], rows, "result");
}

function shownValue(run, key, unit) {
  const value = run.summary[key];
  const [of, label] = key.split("_"), interval = run.summary[`${of}_intervals`]?.[label];
  const said = of === "reward" ? (number) => num(number, 4) : percent;
  if (interval) return `${said(value)} [${said(interval[0])}, ${said(interval[1])}]`;
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return withUnit(value, ["batches", "versions", "tokens", "optimiser steps"].includes(unit) ? "" : unit);
  if (typeof value === "object") return h("ul.pairs", {},
    Object.entries(value).map(([name, item]) => h("li", {}, visible(name.replaceAll("_", " ")), " ",
      typeof item === "number" ? withUnit(item, unit === "fraction" ? unit : "") : visible(JSON.stringify(item)))));
  return visible(String(value));
}

// ---- evaluations ----

function evaluationsOf(runs) {
  const known = runs.filter((run) => run.evaluations.length);
  if (!known.length) return section("Evaluations", h("p.empty", {}, "No evaluation in the runs shown."));
  const names = [...new Set(known.flatMap((run) => run.evaluations.map((row) => row.benchmark)))];
  const plots = names.map((name) => evaluationPlots(name, known));
  return h("div", { id: "evaluations" }, section("Evaluations",
    h("p.note", {}, "avg@k; a sample that cannot be judged counts as not correct. Bands are 95 % intervals."), plots, known.map(evaluationTable)));
}

const benchmarkName = (name) => (name === "heldout" ? "Held-out problems" : visible(name));

/** Accuracy of one benchmark over each axis, if it was measured more than once. */
function evaluationPlots(name, runs) {
  const curves = (axis) => runs.map((run) => evaluationCurve(run, name, axis)).filter(Boolean);
  if (!curves("step").some((curve) => curve.xs.length > 1)) return null;
  const cards = ["step", "generated", "wall"].map((axis) => {
    const box = h("div.plot", { role: "img", "aria-label": `accuracy over ${AXES[axis].name}` });
    requestAnimationFrame(() => { if (box.isConnected) draw(box, curves(axis), { axis, unit: "fraction", points: true, height: 200 }); });
    return h("article.card", {}, h("h4", {}, "over ", AXES[axis].name), box);
  });
  return [h("h3", {}, benchmarkName(name)), h("div.cards", {}, cards)];
}

const FIRST = ["reward", "unanswered"]; // beside the accuracy: what it does not tell
const PLACED = new Set([...FIRST, "at", "benchmark", "label", "accuracy", "low", "high", "version", "wall_s", "generated", "trained", "oldest_version",
  "newest_version", "digest", "pass_at"]);

/** An evaluation's value in words: an estimate {value, low, high} with its interval; of tokens or of a share. */
function evaluated(value, key) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return key === "took_s" ? duration(value) : num(value, 4);
  if (typeof value.value !== "number") return visible(typeof value === "string" ? value : JSON.stringify(value));
  const said = key === "length" || key === "reward" ? (v) => num(v, 4) : (v) => percent(v);
  return h("span.whole", { title: `95 % interval: ${said(value.low)} to ${said(value.high)}` }, `${said(value.value)} `,
    h("span.unit", {}, `[${said(value.low)}, ${said(value.high)}]`));
}

function evaluationTable(run) {
  const whole = (text) => h("span.whole", {}, visible(String(text ?? "")));
  const columns = [...new Set(run.evaluations.flatMap((row) => Object.keys(row)))].filter((key) => !PLACED.has(key));
  const passes = [...new Set(run.evaluations.flatMap((row) => Object.keys(row.pass_at ?? {})))].filter((k) => k !== "1").sort((a, b) => a - b);
  const first = FIRST.filter((key) => run.evaluations.some((row) => typeof row[key] === "object"));
  const rows = run.evaluations.map((row) => [whole(row.label), whole(row.benchmark), percent(row.accuracy),
    whole(`${percent(row.low)} – ${percent(row.high)}`),
    ...first.map((key) => evaluated(row[key], key)), ...passes.map((k) => evaluated(row.pass_at?.[k], "pass")),
    num(row.at.step, 4), num(row.at.generated, 4), num(row.at.trained, 4), whole(duration(row.at.wall)), ...columns.map((key) => evaluated(row[key], key))]);
  const head = ["label", "benchmark", "avg@k", "95 % interval", ...first.map((key) => (key === "reward" ? "mean reward" : "no box")),
    ...passes.map((k) => `pass@${k}`), "batches", "generated", "trained", "wall-clock",
    ...columns.map((key) => visible(key.replace(/_s$/, "").replaceAll("_", " ")))];
  return h("article.account", {}, h("h3", {}, runName(run.index)), table(`Evaluations of ${visible(run.name)}`, head, rows));
}

// ---- settings ----

function drawConfig(root) {
  const search = searchBox("Search settings", () => fill());
  const box = h("div");
  const modes = { differ: "what differs between the runs", changed: "what differs from the defaults", all: "all settings" };
  let mode = data.runs.length > 1 ? "differ" : "changed";
  const select = h("select", { onchange: (event) => { mode = event.target.value; fill(); } },
    Object.entries(modes).map(([name, said]) => h("option", { value: name, selected: name === mode }, said)));
  function fill() {
    const runs = shownRuns(), wanted = words(search.value);
    const names = [...new Set([...runs.flatMap((run) => Object.keys(run.config)), ...Object.keys(data.defaults)])].sort();
    const said = (value) => (value === undefined ? "–" : typeof value === "string" ? value || "(empty)" : JSON.stringify(value));
    const found = names.filter((name) => {
      const values = runs.map((run) => said(run.config[name]));
      const differ = new Set(values).size > 1, changed = values.some((value) => value !== said(data.defaults[name]));
      return (mode === "all" || (mode === "differ" ? differ : changed)) && matches(wanted, name, ...values);
    });
    const rows = found.map((name) => [h("code", {}, visible(name)),
      ...runs.map((run) => said(run.config[name])).map((text) => h("td", text === said(data.defaults[name]) ? {} : { class: "changed" }, visible(text))),
      h("td.default", {}, visible(said(data.defaults[name])))]);
    replace(box, found.length ? table("Settings", ["setting", ...runs.map((run) => runName(run.index)), "default"], rows, "config")
      : h("p.empty", {}, mode === "differ" ? "The runs shown have the same settings." : "No setting fits."));
  }
  replace(root, section("Settings", h("div.controls", {}, h("label", {}, "Show ", select), search.box), h("p.note", {}, "Bold: not the default."), box));
  fill();
  return fill;
}
