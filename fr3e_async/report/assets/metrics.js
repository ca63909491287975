// Metrics: their declaration, the code that computes them, and the glossary of all of them.

const declared = (name) => data.metrics[name] ?? { unit: "", meaning: "", code: [] };

/** A button that shows the code which computes a metric. */
function codeButton(name) {
  const keys = declared(name).code;
  if (!keys.length) return null;
  const where = keys.map((key) => data.code[key]).map((code) => `${code.file}:${code.line}`);
  return h("button.link.code-link", { type: "button", title: `Computed in ${where.join(", ")}`, onclick: () => showCode(name) }, where[0]);
}

function showCode(name) {
  const metric = declared(name), tail = name.split("/")[1].replace(/^(\d+_)+(up_)?/, "");
  const names = [`"${name}"`, `"${tail}"`, `"${tail.replace(/_(fraction|nats|s|tokens)$/, "")}"`]; // as they stand in the code
  const parts = metric.code.map((key, index) => {
    const code = data.code[key], lines = code.source.split("\n"), marked = lines.map((line) => names.some((word) => line.includes(word)));
    return h("details", { open: index === 0 || marked.includes(true) || metric.code.length < 3 },
      h("summary", {}, h("code", {}, `fr3e_async/${code.file}:${code.line}`), " ", code.name, index === 0 ? " (gives the value its name)" : ""),
      h("pre.code", { tabindex: "0" }, lines.map((line, i) => [marked[i] ? h("mark", {}, line) : line, "\n"])));
  });
  showDialog(name, h("p", {}, metric.meaning, "."), metric.unit ? h("p", {}, `Unit: ${metric.unit}.`) : null,
    h("p.note", {}, "Declared in fr3e_async/observe/metrics.py; computed by this code, as of version ", data.version, ":"), parts);
  $("dialog").querySelector("mark")?.scrollIntoView({ block: "center" });
}

/** The glossary: every declared metric with its latest value in each run. */
function drawMetrics(root) {
  const search = searchBox("Search metrics by name, unit or meaning", () => fill());
  const list = h("div.glossary");
  function fill() {
    const wanted = words(search.value);
    const runs = shownRuns();
    const names = Object.keys(data.metrics).filter((name) => matches(wanted, name, declared(name).unit, declared(name).meaning));
    replace(list, names.length ? names.map((name) => entry(name, runs)) : h("p.empty", {}, "No metric fits."));
  }
  replace(root, section("Metrics",
    h("p.note", {}, "Every metric that a run may report: what it means, its unit, the code that computes it, and its last value."),
    search.box, list));
  fill();
  return fill;
}

function entry(name, runs) {
  const metric = declared(name);
  const last = runs.map((run) => ({ run, value: lastOf(run.metrics[name]) })).filter((item) => item.value !== null);
  return h("article.metric", {},
    h("h3", {}, h("code", {}, name), " ", h("span.unit", {}, metric.unit || "pure number")),
    h("p", {}, metric.meaning),
    h("p.metric-foot", {}, codeButton(name), last.map(({ run, value }) => h("span.chip", {}, swatch(run.index), withUnit(value, metric.unit)))));
}

function lastOf(values) {
  for (let i = (values ?? []).length - 1; i >= 0; i -= 1) if (values[i] !== null) return values[i];
  return null;
}

// ---- search ----

const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const matches = (wanted, ...texts) => { const all = texts.join("\n").toLowerCase(); return wanted.every((word) => all.includes(word)); };

function searchBox(label, call) {
  const input = h("input.search", { type: "search", placeholder: label, "aria-label": label, autocomplete: "off", spellcheck: "false" });
  input.addEventListener("input", framed(call));
  return { box: h("div.searching", {}, input), input, get value() { return input.value; }, set value(text) { input.value = text; } };
}
