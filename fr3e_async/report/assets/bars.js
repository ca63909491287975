// Where tokens went, how old the trained ones were, and what became of groups and answers: bars with their numbers.

/** A row of parts that add up to a whole. parts: [{name, value, fill, title}] */
function stacked(parts, unit) {
  const whole = sum(parts.map((part) => part.value));
  const bar = h("div.stack",
    { role: "img", "aria-label": parts.map((part) => `${part.name}: ${num(part.value)} ${unit}, ${percent(whole ? part.value / whole : 0)}`).join("; ") },
    parts.filter((part) => part.value > 0).map((part) => h("span", {
      title: `${part.name}: ${num(part.value, 4)} ${unit} (${percent(part.value / whole)})`,
      style: { width: `${(100 * part.value) / whole}%`, background: part.fill } })));
  const key = h("ul.legend", {}, parts.map((part) => h("li", { title: part.title }, h("span.swatch", { style: { background: part.fill } }),
    part.name, " ", h("strong", {}, num(part.value, 4)), " ", h("span.unit", {}, percent(whole ? part.value / whole : 0)))));
  return h("div", {}, bar, key);
}

// One language of colours: green is correct, orange is wrong, grey is not known, ink is failed; what is trained has the learner's colour.
const GROUP_FILL = { trained: "var(--work-train)", rejected_all_correct: "var(--correct)", rejected_all_wrong: "var(--wrong)",
  rejected_no_spread: "var(--alike)", rejected_too_few: "var(--unknown)", failed: "var(--ink)" };
const outcomeFill = (outcome) => GROUP_FILL[outcome] ?? (outcome.startsWith("failed") ? GROUP_FILL.failed : "var(--unknown)");
const rank = (outcome) => (data.outcomes.groups.indexOf(outcome) + 99) % 99; // one that is not known comes last
const byOutcome = (groups) => Object.entries(groups ?? {}).sort(([a], [b]) => rank(a) - rank(b));
const outcomeName = (outcome) => visible(outcome.replace(/^rejected_/, "").replaceAll("_", " ")) || "no outcome";

function drawTokens(root) {
  const box = h("div");
  function fill() {
    const runs = shownRuns();
    replace(box, section("Age of the trained tokens",
      h("p.note", {}, "Share of all trained tokens by age: weight versions between the one that drew a token and the one that ",
        "the update started from. Bounded by flow.max_staleness."), ageTable(runs)),
    section("Token accounting",
      h("p.note", {}, "Of settled groups. Useful: trained with an advantage that is not 0. Idle: trained with advantage 0. ",
        "Not trained: of rejected groups, given-up groups, and dropped states."), runs.map(tokensOf)));
  }
  replace(root, box);
  fill();
  return fill;
}

/** Ages of all trained tokens of a run: each batch's shares, weighted by its tokens. */
function ages(run) {
  const tokens = run.metrics["train/tokens"] ?? [];
  const buckets = Object.keys(data.metrics).map((name) => /^staleness\/(.+)_tokens_fraction$/.exec(name)?.[1]).filter(Boolean);
  const counts = buckets.map((bucket) => sum((run.metrics[`staleness/${bucket}_tokens_fraction`] ?? []).map((part, i) => (part ?? 0) * (tokens[i] ?? 0))));
  const whole = sum(counts);
  return { whole, parts: buckets.map((bucket, i) => ({ name: bucket.replace("_up", " or more").replace("_", " to "),
    metric: `staleness/${bucket}_tokens_fraction`, part: whole ? counts[i] / whole : 0, count: counts[i] })) };
}

function ageTable(runs) {
  const known = runs.map((run) => ({ run, ...ages(run) })).filter((item) => item.whole);
  if (!known.length) return h("p.empty", {}, "No batch has been trained in the runs shown.");
  const rows = known[0].parts.map((bucket, i) => [h("span", {}, bucket.name, " ", bucket.name === "1" ? "version" : "versions"),
    h("div.bars", {}, known.map((item) => h("div.bar-row", { title: `${num(item.parts[i].count, 4)} tokens` },
      item.parts[i].part ? h("span.bar", { style: { width: `${75 * item.parts[i].part}%`, background: colourOf(item.run.index) } }) : null,
      h("span.bar-value", {}, percent(item.parts[i].part)))))]);
  return [table("Trained tokens by age", ["age", "share of the trained tokens"], rows, "histogram"),
    h("p.note", {}, codeButton("staleness/0_tokens_fraction"), " ",
      known.map(({ run }) => h("span.chip", {}, runName(run.index), " mean ", num(run.summary?.staleness_mean ?? null), ", oldest ",
      num(run.summary?.staleness_max ?? lastMax(run.metrics["lag/versions_max"])))))];
}

const lastMax = (values) => (values?.length ? Math.max(...values.map((v) => v ?? 0)) : null);

function tokensOf(run) {
  const outcomes = byOutcome(run.groups);
  const of = (name) => (outcomes.length ? sum(outcomes.map(([, outcome]) => outcome[name])) : run.summary?.[`tokens_${name}`] ?? null);
  if (of("generated") === null) return h("p.empty", {}, visible(run.name), ": no group has settled.");
  const [generated, trained, useful, prefilled, reused] = ["generated", "trained", "useful", "prefilled", "reused"].map(of);
  return h("article.account", {}, h("h3", {}, runName(run.index), h("span.unit", {}, num(generated, 4), " tokens generated")),
    h("h4", {}, "What came of generated tokens"),
    stacked([{ name: "useful", value: useful, fill: "var(--work-train)" }, { name: "idle", value: Math.max(0, trained - useful), fill: "var(--alike)" },
      { name: "not trained", value: Math.max(0, generated - trained), fill: "var(--unknown)" }], "tokens"),
    h("h4", {}, "By the outcome of their group"),
    stacked(outcomes.map(([outcome, item]) => ({ name: outcomeName(outcome), value: item.generated, fill: outcomeFill(outcome) })), "tokens"),
    h("h4", {}, "Context of the requests"),
    stacked([{ name: "prefilled by engines", value: prefilled, fill: "var(--work-base)" },
      { name: "reused from prefix caches", value: reused, fill: "var(--work-branch)" }], "tokens"),
    table("Tokens by outcome", ["outcome", "groups", "generated", "prefilled", "reused", "trained", "useful", "useful share"],
      outcomes.map(([outcome, item]) => [outcomeName(outcome), num(item.groups, 4),
        ...["generated", "prefilled", "reused", "trained", "useful"].map((name) => num(item[name], 4)),
        percent(item.generated ? item.useful / item.generated : 0)])));
}

// ---- verdicts ----

const MARKS = { correct: "✓", wrong: "✗", unknown: "?", failed: "–" }; // of data.outcomes.rollouts

function drawVerdicts(root) {
  const box = h("div");
  const fill = () => replace(box, section("Verifier and groups",
    h("p.note", {}, "Verdicts of training rollouts, why they were given, and what became of the prompt groups and of their states."),
    shownRuns().map(verdictsOf)));
  replace(root, box);
  fill();
  return fill;
}

function verdictsOf(run) {
  const of = (name) => run.summary?.verdicts?.[name] ?? sum(run.metrics[`verify/${name}`] ?? []);
  const groups = byOutcome(run.groups);
  const added = (key) => {
    const all = {};
    for (const [name, count] of groups.flatMap(([, outcome]) => Object.entries(outcome[key]))) all[name] = (all[name] ?? 0) + count;
    return Object.entries(all).sort((a, b) => b[1] - a[1]);
  };
  const reasons = groups.length ? added("reasons") : Object.entries(run.summary?.verdict_reasons ?? {}).sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, ...reasons.map(([, count]) => count)), whole = sum(reasons.map(([, count]) => count));
  const states = byOutcome(Object.fromEntries(added("states").map(([name, count]) => [name ? "rejected_" + name : "trained", count])))
    .map(([outcome, count]) => [outcome === "trained" ? "" : outcome.replace("rejected_", ""), count]);
  const stateFill = (name) => outcomeFill(name === "" ? "trained" : "rejected_" + name);
  return h("article.account", {}, h("h3", {}, runName(run.index)),
    h("h4", {}, "Verdicts"), stacked(data.outcomes.rollouts.map((name) => ({ name: `${MARKS[name]} ${name}`, value: of(name),
      fill: `var(--${name === "failed" ? "ink" : name})`, title: declared(`verify/${name}`).meaning })), "rollouts"),
    groups.length ? [h("h4", {}, "Groups by outcome"), stacked(groups.map(([outcome, item]) => ({ name: outcomeName(outcome), value: item.groups,
      fill: outcomeFill(outcome), title: declared("groups/" + outcome.replace(/^rejected_/, "")).meaning })), "groups")] : null,
    states.length ? [h("h4", {}, "States: kept, or why they were dropped"),
      stacked(states.map(([name, value]) => ({ name: name === "" ? "kept" : visible(name.replaceAll("_", " ")), value, fill: stateFill(name),
      title: declared("states/" + (name || "kept")).meaning })), "states")] : null,
    reasons.length ? table("Reasons of verdicts", ["reason", "rollouts", ""],
      reasons.map(([reason, count]) => [reason ? h("a", { href: `#trees/reason:${encodeURIComponent(spelt(reason))}`,
        title: "Kept trees with such a verdict" }, visible(reason)) : "none", num(count, 4),
      h("div.bar-row", {}, h("span.bar", { style: { width: `${(75 * count) / most}%`, background: colourOf(run.index) } }),
      h("span.bar-value", {}, percent(count / whole)))]), "histogram") : null);
}
