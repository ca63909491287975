// Light, dark, or as the system has it. Canvases ask `colour` for what a CSS variable is now.

const THEMES = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" };
const themeChanged = new Set();
const colours = new Map(); // CSS expression → what it is in this theme: to ask costs a computation of styles
let theme = "auto";

function setTheme(name) {
  theme = name in THEMES ? name : "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme];
  $("theme").setAttribute("aria-label", `Colours: ${theme}`);
  kept.set("theme", theme);
  recoloured();
}

function recoloured() {
  colours.clear();
  for (const call of themeChanged) call();
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(theme) + 1) % names.length]);
  tell(`Colours: ${theme}`);
}

/** The colour that a CSS expression such as var(--ink) has at this moment. */
function colour(expression) {
  if (colours.has(expression)) return colours.get(expression);
  const probe = h("i", { style: { color: expression, display: "none" } });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  colours.set(expression, found);
  return found;
}

function startTheme() {
  setTheme(kept.get("theme", "auto"));
  $("theme").addEventListener("click", nextTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recoloured);
}
