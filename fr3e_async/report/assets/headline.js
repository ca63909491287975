// What a run was and what came of it, in a few lines, and what is wrong with it.

const NEWEST = 10; // batches whose groups and verdicts a warning is about
const REJECTED_SHARE = 0.5, UNKNOWN_SHARE = 0.05; // above them there is a warning

function headlineOf(run) {
  const label = (name) => run.evaluations.filter((row) => row.benchmark === "heldout" && row.label === name).at(-1);
  const measured = run.evaluations.filter((row) => row.benchmark === "heldout");
  const before = label("before") ?? measured[0], after = measured.length > 1 ? label("after") ?? measured.at(-1) : null;
  const figure = (row) => h("span.figure", { title: `95 % interval ${decimal(row.low)} to ${decimal(row.high)}` }, decimal(row.accuracy));
  const reward = (row) => h("span.figure", { title: `95 % interval ${decimal(row.reward?.low)} to ${decimal(row.reward?.high)}` }, decimal(row.reward?.value));
  const told_s = run.events.length ? run.events.at(-1).time - run.events[0].time : 0; // of a run that trained nothing
  const took_s = run.summary?.wall_s ?? run.axes.wall.at(-1) ?? told_s;
  const steps = run.axes.step.at(-1) ?? 0, wanted = run.config["run.steps"];
  const told = { model: run.config["model.path"], data: dataOf(run.config), strategy: run.config["algorithm.strategy"] };
  return h("article.account.headline", {}, h("h3", {}, runName(run.index), Object.entries(told).filter(([, value]) => value)
    .map(([name, value]) => h("span", {}, h("span.unit", {}, name, " "), visible(String(value))))),
  before ? h("p.figures", {}, figure(before), after ? [" → ", figure(after)] : null, h("span.unit", {}, " held-out accuracy",
    after && after.label !== "after" ? `, newest: ${visible(String(after.label))}` : "")) : null,
  measured.some(isGraded) ? h("p.figures", {}, reward(before), after ? [" → ", reward(after)] : null, h("span.unit", {}, " held-out mean reward")) : null,
  h("p", {}, `${num(steps, 6)}${wanted ? ` of ${num(wanted, 6)}` : ""} batches in ${duration(took_s)}; `, endOf(run)),
  warningsOf(run).map((text) => h("p.warning", {}, "⚠ ", text)));
}

const decimal = (value) => (typeof value === "number" ? value.toFixed(2) : "–");

function dataOf(config) {
  const sources = config["data.train"] === "sources" ? config["data.train_sources"] : null;
  return Array.isArray(sources) ? sources.map((one) => one.name || one.path || "?").join(" + ") : config["data.train"];
}

/** How the newest session ended, by its last event of that kind. */
function endOf(run) {
  const last = run.events.filter((event) => /^run_/.test(event.event)).at(-1);
  if (!last) return run.summary ? visible(String(run.summary.exit_reason)) : "no word of its end";
  if (last.event === "run_finished") return "finished";
  if (last.event === "run_stopped") return visible(last.text);
  if (last.event === "run_failed") return h("span.bad", {}, "failed: ", visible(last.text.split("\n")[0]));
  return "it continues, or was killed without a word";
}

/** Lines about the newest batches, and about the reward function. */
function warningsOf(run) {
  const newest = (name) => sum((run.metrics[name] ?? []).slice(-NEWEST));
  const of = data.outcomes.groups.map((outcome) => [outcome, newest(`groups/${outcome.replace("rejected_", "")}`)]);
  const lost = of.filter(([outcome]) => outcome !== "trained"), groups = sum(of.map(([, count]) => count));
  const rejected = sum(lost.map(([, count]) => count)), unknown = newest("verify/unknown");
  const verdicts = unknown + newest("verify/correct") + newest("verify/wrong");
  const batches = `of the newest ${Math.min(NEWEST, run.axes.step.length)} batches`;
  const why = lost.filter(([, count]) => count).map(([outcome, count]) => `${num(count)} ${outcomeName(outcome)}`).join(", ");
  return [
    groups && rejected / groups > REJECTED_SHARE ? `${percent(rejected / groups)} of the groups ${batches} were rejected: ${why}` : null,
    verdicts && unknown / verdicts > UNKNOWN_SHARE ? `${percent(unknown / verdicts)} of the verdicts ${batches} are unknown` : null,
    ...run.events.filter((event) => event.event === "reward_failed").slice(0, 3).map((event) => visible(event.text)),
  ].filter(Boolean);
}
