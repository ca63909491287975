// One plot: curves of several runs over a chosen axis, drawn by uPlot, with what the cursor points at in words below it.

const AXES = {
  step: { name: "training batches", show: (v) => num(v, 4) },
  generated: { name: "generated tokens", show: (v) => num(v, 4) },
  trained: { name: "trained tokens", show: (v) => num(v, 4) },
  wall: { name: "wall-clock time", show: duration },
};

/** Exponential moving average that starts unbiased; `null` stays a gap. `keep` in [0, 1): 0 changes nothing. */
function smoothed(values, keep) {
  if (!keep) return values;
  let total = 0, weight = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    total = keep * total + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return total / weight;
  });
}

/** curves: [{run, label, xs, ys, low?, high?}] → uPlot's one table of all xs, and the curves' columns in it. */
function joined(curves) {
  const tables = curves.map((curve) => {
    const order = curve.xs.map((_, i) => i).filter((i) => curve.xs[i] !== null).sort((a, b) => curve.xs[a] - curve.xs[b]);
    const seen = new Map(order.map((i) => [curve.xs[i], i])); // of two rows at one place the later one
    const rows = [...seen.values()];
    return [[...seen.keys()], ...[curve.ys, curve.low, curve.high].filter(Boolean).map((column) => rows.map((i) => column[i]))];
  });
  return uPlot.join(tables, tables.map((t) => t.map(() => 1))); // 1: places that other curves have, this one not, are passed over
}

/** A value on a log scale, which has no place for 0 and less: there is a gap. `undefined` (another curve's place) stays so. */
const drawable = (value) => (value <= 0 ? null : value);

/** How many values of these curves a log scale cannot show. */
const undrawn = (curves) => sum(curves.map((curve) => curve.ys.filter((value) => value !== null && value <= 0).length));

/** Columns → a place on the screen. options: {axis, unit, height, points, log} */
function draw(box, curves, options) {
  const width = Math.max(180, box.clientWidth - 2);
  const ink = colour("var(--quiet)"), grid = colour("var(--grid)");
  const font = "11px system-ui, sans-serif";
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font };
  const series = [{}], bands = [];
  for (const curve of curves) {
    const stroke = colour(colourOf(curve.run));
    const many = curve.ys.length > 60 && !options.points && !(options.log && undrawn([curve])); // a value between two gaps is only seen as a point
    series.push({ label: curve.label, stroke, width: 1.75, dash: dashOf(curve.run), points: { show: !many, size: 5, fill: stroke } });
    if (curve.low) {
      const edge = { stroke, width: 1, dash: [2, 3], points: { show: false } };
      bands.push({ series: [series.length + 1, series.length], fill: stroke.replaceAll(",", " ").replace(")", " / 0.14)") });
      series.push({ label: "low", ...edge }, { label: "high", ...edge });
    }
  }
  const told = joined(curves);
  const table = options.log ? told.map((column, i) => (i ? column.map(drawable) : column)) : told;
  const plot = new uPlot({
    width, height: options.height ?? 170, series, bands, padding: [8, 24, 0, 0],
    scales: { x: { time: false }, y: { distr: options.log ? 3 : 1, range: options.log ? undefined : yRange(options.unit) } },
    axes: [
      { ...axis, size: 26, values: (_, ticks) => ticks.map((v) => AXES[options.axis].show(v)), space: 70 },
      { ...axis, size: 52, values: (_, ticks, __, ___, step) => ticks.map((v) => tick(v, step, options)), space: 32 },
    ],
    legend: { show: false },
    cursor: { sync: options.sync ? { key: options.sync } : undefined, drag: { x: true, y: false }, points: { size: 7 } },
    hooks: { setCursor: [(u) => options.pointed?.(u.cursor.idx === null || u.cursor.idx === undefined ? null : pointed(u, told, curves))] },
  }, table, box);
  return plot;
}

/** A mark of the upright axis, with as many digits as its neighbours need to differ. */
function tick(value, step, { unit, log }) {
  if (value === null) return "";
  const digits = log || !value ? 3 : Math.max(2, Math.min(8, 1 + Math.floor(Math.log10(Math.abs(value))) - Math.floor(Math.log10(step))));
  return unit === "fraction" ? percent(value, digits) : num(value, digits);
}

/** What each curve is worth at the cursor, or at the last place before it. */
function pointed(u, told, curves) {
  let column = 1;
  const found = curves.map((curve) => {
    const values = told[column];
    column += curve.low ? 3 : 1;
    let at = u.cursor.idx;
    while (at > 0 && (values[at] === null || values[at] === undefined)) at -= 1;
    return { run: curve.run, label: curve.label, value: values[at] };
  });
  return { x: told[0][u.cursor.idx], found };
}

function yRange(unit) {
  return (_, low, high) => {
    if (low === null || high === null) return [0, 1];
    if (low === high) { const pad = Math.abs(low) * 0.1 || 0.5; return [low - pad, high + pad]; }
    const pad = (high - low) * 0.06;
    return [low >= 0 && low < 0.35 * high ? Math.min(0, low) : low - pad, unit === "fraction" && high <= 1 ? Math.min(1.02, high + pad) : high + pad];
  };
}
