// The tokens of a rollout, each with a shade that says how uncertain, unlikely, old or rewarded it was.

const EDGES = [0.05, 0.2, 0.5, 1, 1.5, 2.5]; // nats: fixed, so that trees compare; ln 2 = 0.69 is a fair choice between two
const SHADES = {
  entropy: { name: "entropy", legend: ["0", ...EDGES.map((e) => `≥ ${e}`)], kind: "heat", unit: "nats", of: (t) => level(t.entropy) },
  surprisal: { name: "surprisal −log p", legend: ["0", ...EDGES.map((e) => `≥ ${e}`)], kind: "heat", unit: "nats",
    of: (t) => level(t.logprob === null ? null : -t.logprob) },
  advantage: { name: "advantage A′", legend: ["≤ −0.75", "≤ −0.25", "< 0", "0", "> 0", "≥ 0.25", "≥ 0.75"], kind: "sign", unit: "",
    of: (t) => signed(t.advantage) },
  version: { name: "weight version", legend: null, kind: "version", unit: "", of: (t) => (t.version === null ? null : t.version % 4) },
  none: { name: "nothing", legend: null, kind: "none", unit: "", of: () => null },
};
let shade = "entropy";

const level = (value) => (value === null ? null : EDGES.filter((edge) => value >= edge).length);

function signed(value) {
  if (value === null) return null;
  const size = Math.abs(value);
  const steps = size === 0 ? 0 : size < 0.25 ? 1 : size < 0.75 ? 2 : 3;
  return 3 + Math.sign(value) * steps;
}

/** The value of a [[first token, value], …] list at a token. */
function spanAt(spans, index) {
  let found = null;
  for (const [start, value] of spans ?? []) if (start <= index) found = value;
  return found;
}

function tokenAt(rollout, index) {
  const milli = (values) => (values && values[index] !== null && values[index] !== undefined ? values[index] / 1000 : null);
  return {
    piece: rollout.pieces[index], entropy: milli(rollout.entropies), logprob: milli(rollout.logprobs),
    version: spanAt(rollout.versions, index), advantage: spanAt(rollout.advantage, index),
  };
}

function tokenWords(rollout, index, offset) {
  const token = tokenAt(rollout, index);
  const parts = [`token ${offset + index}`, `“${visible(token.piece)}”`];
  parts.push(token.entropy === null ? "entropy unknown" : `entropy ${num(token.entropy)} nats`);
  if (token.logprob !== null) parts.push(`log p ${num(token.logprob)} (p ${percent(Math.exp(token.logprob))})`);
  if (token.version !== null) parts.push(`weights v${token.version}`);
  parts.push(token.advantage === null ? "not trained" : `advantage ${token.advantage > 0 ? "+" : ""}${num(token.advantage)}`);
  return parts.join(" · ");
}

/** The class that shades a token: t0, t1, …, or tu where nothing is known. */
function shadeOf(rollout, index) {
  const found = SHADES[shade].of(tokenAt(rollout, index));
  return found === null ? "tu" : `t${found}`;
}

/** Gives all tokens in sight the shade that is wanted now, each where it stands: folds, the focus and the token cursor stay. */
function reshade(root) {
  for (const box of root.querySelectorAll(".tokens")) {
    box.className = "tokens " + SHADES[shade].kind;
    for (const span of box.querySelectorAll("[data-i]")) span.className = span.className.replace(/^t\w+/, shadeOf(box.rollout, Number(span.dataset.i)));
  }
}

/** Tokens as shaded spans. marks: token → nodes whose anchor stands before it; offset: tokens of the response before these. */
function tokenRun(rollout, { marks = new Map(), offset = 0, say, jump }) {
  const box = h("div.tokens." + SHADES[shade].kind);
  box.rollout = rollout;
  rollout.pieces.forEach((piece, index) => {
    for (const node of marks.get(index) ?? []) {
      box.append(h("button.anchor", { type: "button", tabindex: "-1", title: `S${node}: an anchor before token ${offset + index}`,
        onclick: (event) => { event.stopPropagation(); jump?.(node); } }, `S${node}`));
    }
    const span = h("span", { class: shadeOf(rollout, index) + (marks.has(index) ? " cut" : "") + (piece === "" ? " part" : ""), "data-i": index },
      shownPiece(piece));
    box.append(span);
  });
  if (!rollout.pieces.length) box.append(h("span.empty", {}, "no tokens are known"));
  const over = (event) => {
    const span = event.target.closest?.("[data-i]");
    if (span && box.contains(span)) say?.(tokenWords(rollout, Number(span.dataset.i), offset));
  };
  box.addEventListener("pointerover", over);
  box.addEventListener("click", over);
  return box;
}

/** Line ends are shown and kept; a token that is a part of a character has a dot of its own. */
function shownPiece(piece) {
  if (piece === "") return "·";
  return visible(piece).replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
}

function shadeLegend() {
  const scheme = SHADES[shade];
  if (scheme.kind === "version") return h("p.note", {}, "Neighbouring versions have different shades.");
  if (!scheme.legend) return null;
  return h("ul.legend.shades." + scheme.kind, { "aria-label": `Shades of ${scheme.name}` },
    scheme.legend.map((text, i) => h("li", {}, h("span", { class: `t${i}` }, text))),
    h("li", {}, h("span.tu", {}, scheme.kind === "sign" ? "not trained" : "unknown")), scheme.unit ? h("li.unit", {}, scheme.unit) : null);
}

// ---- the token cursor, for the keyboard ----

function moveToken(box, rollout, offset, by, say) {
  const spans = box.querySelectorAll("[data-i]");
  if (!spans.length) return;
  const now = box.querySelector(".here");
  const at = Math.max(0, Math.min(spans.length - 1, now ? Number(now.dataset.i) + by : by > 0 ? 0 : spans.length - 1));
  now?.classList.remove("here");
  spans[at].classList.add("here");
  say(tokenWords(rollout, at, offset)); // first, since its words take room
  spans[at].scrollIntoView({ block: "nearest" });
}
