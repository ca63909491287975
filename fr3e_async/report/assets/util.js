// Elements, numbers and words. All text reaches the screen through `textContent`: no file here makes HTML of a string.

/** An element: h("p.note", {title: "…", onclick: f}, "text", child, [more]). `null` children are left out. */
function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else if (key === "value" || key === "checked") element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

const $ = (id) => document.getElementById(id);

/** Text that cannot hide or turn anything: controls and marks of writing direction are spelt out. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) => text.replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

/** A number in at most so many significant digits: 1 234, 0.0312, 1.2e-5, 3.4 M. */
function num(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return size >= 1e9 ? trim(value / 1e9, digits) + " G" : trim(value / 1e6, digits) + " M";
  if (size >= 1000) return Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f");
  if (size < 1e-3) return value.toExponential(Math.max(0, digits - 1)).replace(/\.?0+e/, "e");
  return trim(value, digits);
}
const trim = (value, digits) => String(Number(value.toPrecision(digits)));

const percent = (part, digits = 3) => (part === null || part === undefined ? "–" : num(100 * part, digits) + "\u202f%");

/** Seconds in words: 0.42 s, 3 min 20 s, 5 h 04 min. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 100) return num(seconds) + "\u202fs";
  const total = Math.round(seconds);
  if (total < 3600) return `${Math.floor(total / 60)}\u202fmin ${String(total % 60).padStart(2, "0")}\u202fs`;
  return `${Math.floor(total / 3600)}\u202fh ${String(Math.floor((total % 3600) / 60)).padStart(2, "0")}\u202fmin`;
}

/** A value with the unit that a metric was declared with. */
function withUnit(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "fraction") return percent(value);
  if (unit === "s") return duration(value);
  if (unit === "bytes") return bytes(value);
  return num(value, 4) + (unit && unit !== "count" ? "\u202f" + unit : "");
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return num(value) + "\u202f" + units[at];
}

/** Says something to a screen reader. */
function tell(text) { $("told").textContent = text; }

/** What the reader chose and keeps, where the browser lets a local file keep anything. */
const kept = {
  get(key, otherwise) { try { return localStorage.getItem("fr3e." + key) ?? otherwise; } catch { return otherwise; } },
  set(key, value) { try { localStorage.setItem("fr3e." + key, value); } catch { /* a page from a file may be refused */ } },
};

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);

/** Tells the stylesheet how high a bar is that sticks to an edge: --name, in px. */
function measure(name, bar) { document.documentElement.style.setProperty(`--${name}`, `${bar.offsetHeight}px`); }

/** Is a key pressed with another one that makes it the browser's or the system's? AltGr, which types [ ] { }, says Ctrl + Alt. */
const commanded = (event) => event.metaKey || ((event.ctrlKey || event.altKey) && !event.getModifierState("AltGraph"));

/** The same call at most once a frame. */
function framed(call) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; call(); });
  };
}

function section(title, ...children) { return h("section", {}, h("h2", {}, title), children); }

/** A table with a caption, its header scope set, that scrolls by itself where the page is too narrow. */
function table(caption, head, rows, kind = "") {
  const named = head.map((item) => (item instanceof Element ? item.textContent : String(item))); // told in front of a cell where columns do not fit
  const cell = (item, index) => {
    if (index === 0) return h("th", { scope: "row" }, item);
    const made = item instanceof Element && item.tagName === "TD" ? item : h("td", {}, item);
    made.dataset.of = named[index];
    return made;
  };
  return h("div.tabled", {}, h("p.caption", { "aria-hidden": "true" }, caption), h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption },
    h("table" + (kind ? "." + kind : ""), { "aria-label": caption },
      h("thead", {}, h("tr", {}, head.map((item) => h("th", { scope: "col" }, item)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell)))))));
}
