// The page: reads its data, makes a tab a view, and draws a view when it is first looked at.

const views = {
  overview: { name: "Overview", draw: drawOverview, painted: true },
  curves: { name: "Curves", draw: drawCurves, painted: true },
  timeline: { name: "Timeline", draw: drawTimeline, painted: true },
  tokens: { name: "Tokens", draw: drawTokens },
  verdicts: { name: "Verdicts", draw: drawVerdicts },
  trees: { name: "Trees", draw: drawTrees },
  settings: { name: "Settings", draw: drawConfig },
  metrics: { name: "Metrics", draw: drawMetrics },
};
let now = "overview";

async function show(name) {
  now = name;
  for (const [key, view] of Object.entries(views)) {
    if (view.root) view.root.hidden = key !== name;
    view.link.toggleAttribute("aria-current", key === name);
    if (key === name) { view.link.setAttribute("aria-current", "page"); view.link.scrollIntoView({ block: "nearest", inline: "center" }); }
  }
  const view = views[name];
  if (!view.root) {
    view.root = h("div.view", { id: `view-${name}` });
    $("main").append(view.root);
    try {
      view.again = await view.draw(view.root);
    } catch (error) { // the other views can still be looked at
      replace(view.root, h("p.empty", { role: "alert" }, `This view could not be drawn: ${error}`));
      console.error(error);
    }
    view.root.dataset.ready = "yes";
  } else if (view.stale) view.again?.();
  view.stale = false;
}

/** Shows what the page's address names. */
async function route() {
  const name = location.hash.slice(1).split("/")[0];
  if (name === "evaluations") {
    await show("overview");
    $("evaluations")?.scrollIntoView();
  } else if (name in views) {
    if (name !== now || !views[name].root) { scrollTo(0, 0); await show(name); }
    if (name === "trees" && now === "trees" && views.trees.root.treeList) followLink(views.trees.root.treeList);
  } else if (!views[now].root) await show("overview");
}

/** What is drawn of runs is drawn again: at once where it is seen, else when it is looked at. `painted`: on canvases, with colours. */
function changed(wanted = () => true) {
  for (const [key, view] of Object.entries(views)) {
    if (!view.root || !wanted(view)) continue;
    if (key === now) view.again?.(); else view.stale = true;
  }
}

async function start() {
  data = await opened($("data"));
  startTheme();
  startKeys();
  runButtons();
  replace($("views"), Object.entries(views).map(([name, view], i) => (view.link = h("a", { href: `#${name}`, title: `${view.name} (${i + 1})` }, view.name))));
  replace($("main"));
  const repaint = () => changed((view) => view.painted);
  runChanged.add(() => changed());
  themeChanged.add(repaint);
  let width = innerWidth;
  addEventListener("resize", framed(() => { if (Math.abs(innerWidth - width) > 8) { width = innerWidth; repaint(); } }));
  new ResizeObserver(() => measure("header", $("header"))).observe($("header"));
  addEventListener("hashchange", route);
  route();
}

start().catch((error) => {
  replace($("main"), h("p.empty", {}, "The page could not be drawn: ", String(error), ". It needs a browser of 2024 or later."));
  throw error;
});
