// Draws the stories from the JSON block. Every text of a model is set by textContent, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const total = data.step.length;
  const gallery = document.getElementById("gallery");
  if (!gallery || total === 0) return;

  const PAGE = 24;
  const LAST = Number.MAX_SAFE_INTEGER;
  const byId = (id) => document.getElementById(id);
  const steps = [...new Set(data.step)].sort((a, b) => a - b);
  const rowsOfStep = new Map(steps.map((step) => [step, []]));
  data.step.forEach((step, row) => rowsOfStep.get(step).push(row));
  const hasReward = data.reward.some((reward) => reward !== null);
  const state = {
    stepIndex: steps.includes(data.best_step) ? steps.indexOf(data.best_step) : steps.length - 1,
    all: false,
    sort: hasReward ? "reward" : "step",
    down: hasReward,
    words: "",
    page: 0,
  };
  let found = [];

  // Figures and words

  const number = (x, digits = 3) => {
    if (x === null || x === undefined) return "–";
    if (Number.isInteger(x) || Math.abs(x) >= 1000) return Math.round(x).toLocaleString("en");
    return String(Number(x.toPrecision(digits))).replace("-", "−");
  };
  const nats = (x) => (x !== null && x !== undefined && Math.abs(x) < 1e-4 ? "0.0" : number(x));
  const count = (n) => n.toLocaleString("en");

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const textOf = (row, from) => [from.prompts[from.prompt[row]] || "", from.completion[row] || ""];

  // Offsets count code points, as Python does; a JavaScript string counts UTF-16 units.
  function characters(text) {
    return /[\ud800-\udfff]/.test(text) ? Array.from(text) : text;
  }

  function storyNode(row, from) {
    const [prompt, completion] = textOf(row, from);
    const story = element("p", "story");
    story.dir = "auto";
    const whole = characters(prompt + completion);
    const promptEnd = characters(prompt).length;
    const edges = from.spans[row].map((edge) => Math.min(Math.max(edge, 0), whole.length));
    const cuts = [...new Set([0, promptEnd, whole.length, ...edges])].sort((a, b) => a - b);
    for (let i = 0; i + 1 < cuts.length; i++) {
      const [start, end] = [cuts[i], cuts[i + 1]];
      const piece = whole.slice(start, end);
      const text = typeof piece === "string" ? piece : piece.join("");
      let parent = story;
      if (start < promptEnd) parent = parent.appendChild(element("span", "prompt"));
      if (isInSpan(edges, start)) parent = parent.appendChild(element("mark"));
      parent.appendChild(document.createTextNode(text));
    }
    if (completion === "") story.appendChild(element("span", "nothing", " (nothing)"));
    return story;
  }

  function isInSpan(edges, at) {
    for (let i = 0; i + 1 < edges.length; i += 2) if (edges[i] <= at && at < edges[i + 1]) return true;
    return false;
  }

  function fact(parent, label, value, name) {
    const item = parent.appendChild(element("div", name));
    item.appendChild(element("dt", "", label));
    item.appendChild(element("dd", "", value));
  }

  function cardNode(row, from) {
    const card = element("article", "card");
    const facts = card.appendChild(element("dl", "facts"));
    const reward = from.reward[row];
    fact(facts, "Reward", reward === null ? "not scored" : number(reward), "lead");
    fact(facts, "KL, nats", nats(from.kl[row]), "");
    if (from.step[row] !== null) fact(facts, "Step", count(from.step[row]), "");
    if (from.length[row] !== null) fact(facts, "Tokens", count(from.length[row]), "");
    if (from.ended[row] !== null) fact(facts, "End", from.ended[row] ? "ended" : "cut off", from.ended[row] ? "" : "cut");
    card.appendChild(storyNode(row, from));
    const names = Object.keys(from.components);
    if (names.length > 0) {
      const parts = card.appendChild(element("dl", "facts components"));
      for (const name of names) fact(parts, name, number(from.components[name][row]), "");
    }
    return card;
  }

  // Before and after

  function drawPairs() {
    const { heads, pairs, stories } = data.comparison;
    if (pairs.length === 0) return;
    byId("before-head").textContent = heads[0];
    byId("after-head").textContent = heads[1];
    for (const pair of pairs) {
      const item = byId("pair-list").appendChild(element("div", "pair"));
      const title = item.appendChild(element("h4", "", pair.label));
      title.appendChild(element("span", "unit", " " + pair.note));
      [pair.before, pair.after].forEach((row, side) => {
        const card = item.appendChild(cardNode(row, stories));
        card.setAttribute("aria-label", heads[side]);
      });
    }
    byId("pairs").hidden = false;
  }

  // Choosing and ordering

  const sortValue = { reward: (row) => data.reward[row], kl: (row) => data.kl[row], step: (row) => data.step[row], length: (row) => data.length[row] };
  let lowered = null;

  function matches(row, words) {
    lowered = lowered || new Array(total);
    if (lowered[row] === undefined) lowered[row] = textOf(row, data).join("").toLowerCase();
    return words.every((word) => lowered[row].includes(word));
  }

  function choose() {
    const rows = state.all ? data.step.map((_, row) => row) : rowsOfStep.get(steps[state.stepIndex]).slice();
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length > 0 ? rows.filter((row) => matches(row, words)) : rows;
    const of = sortValue[state.sort];
    const sign = state.down ? -1 : 1;
    // A sample without the value comes last, whichever way the order runs.
    const key = new Map(found.map((row) => [row, of(row) === null ? LAST : sign * of(row)]));
    found.sort((a, b) => key.get(a) - key.get(b) || a - b);
    state.page = Math.min(state.page, Math.max(0, Math.ceil(found.length / PAGE) - 1));
  }

  // Drawing the gallery

  function drawCount() {
    const first = state.page * PAGE;
    const last = Math.min(first + PAGE, found.length);
    const where = state.all ? "all steps" : "step " + count(steps[state.stepIndex]);
    const words = state.words.trim() ? ", searched for “" + state.words.trim() + "”" : "";
    byId("count").textContent =
      found.length === 0
        ? "No story in " + where + words + "."
        : count(first + 1) + "–" + count(last) + " of " + count(found.length) + " in " + where + words;
  }

  function drawControls() {
    const step = steps[state.stepIndex];
    const rows = rowsOfStep.get(step).map((row) => data.reward[row]).filter((reward) => reward !== null);
    const mean = rows.length ? ", mean reward " + number(rows.reduce((a, b) => a + b, 0) / rows.length) : "";
    const words = count(step) + (step === data.best_step ? " (best)" : "") + mean;
    byId("step-text").textContent = state.all ? "all" : words;
    byId("step").value = String(state.stepIndex);
    byId("step").setAttribute("aria-valuetext", state.all ? "all steps" : "step " + words);
    byId("step").classList.toggle("idle", state.all);
    byId("all-steps").checked = state.all;
    byId("sort").value = state.sort;
    const ends = { reward: ["Lowest first", "Highest first"], kl: ["Lowest first", "Highest first"], step: ["Earliest first", "Latest first"], length: ["Shortest first", "Longest first"] };
    byId("direction").textContent = (state.down ? "↓ " : "↑ ") + ends[state.sort][state.down ? 1 : 0];
    for (const chip of document.querySelectorAll("[data-sort]")) {
      const isOn = chip.dataset.sort === state.sort && Boolean(chip.dataset.down) === state.down;
      chip.setAttribute("aria-pressed", String(isOn));
    }
    for (const button of document.querySelectorAll("[data-turn]")) {
      const page = state.page + Number(button.dataset.turn);
      button.setAttribute("aria-disabled", String(page < 0 || page * PAGE >= found.length));
    }
    const cursor = byId("spark").querySelector(".cursor");
    if (cursor) cursor.setAttribute("visibility", state.all ? "hidden" : "visible");
    if (cursor) for (const end of ["x1", "x2"]) cursor.setAttribute(end, sparkX(state.stepIndex));
  }

  function draw() {
    choose();
    drawCount();
    drawControls();
    const cards = found.slice(state.page * PAGE, (state.page + 1) * PAGE).map((row) => {
      const item = element("li");
      item.appendChild(cardNode(row, data));
      return item;
    });
    byId("cards").replaceChildren(...cards);
  }

  function change(changes) {
    Object.assign(state, { page: 0 }, changes);
    draw();
  }

  function turn(by) {
    const page = state.page + by;
    if (page < 0 || page * PAGE >= found.length) return;
    change({ page });
    const top = gallery.querySelector(".pager").getBoundingClientRect().top;
    if (top < 0) window.scrollBy({ top: top - 12 });
  }

  // The curve of mean rewards above the slider

  const sparkX = (index) => String(steps.length > 1 ? (1000 * index) / (steps.length - 1) : 500);

  function drawSpark() {
    const means = steps.map((step) => {
      const rewards = rowsOfStep.get(step).map((row) => data.reward[row]).filter((reward) => reward !== null);
      return rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
    });
    const known = means.filter((mean) => mean !== null);
    if (known.length < 2) return;
    const low = known.reduce((a, b) => Math.min(a, b));
    const high = known.reduce((a, b) => Math.max(a, b));
    const points = means.flatMap((mean, i) => (mean === null ? [] : [sparkX(i) + "," + (95 - (90 * (mean - low)) / (high - low || 1)).toFixed(1)]));
    const make = (tag, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    };
    const svg = make("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none" });
    svg.appendChild(make("polyline", { points: points.join(" "), class: "line" }));
    svg.appendChild(make("line", { y1: "0", y2: "100", x1: "0", x2: "0", class: "cursor" }));
    byId("spark").appendChild(svg);
  }

  // What a reader does

  function listen() {
    byId("step").addEventListener("input", (event) => change({ stepIndex: Number(event.target.value), all: false }));
    byId("all-steps").addEventListener("change", (event) => change({ all: event.target.checked }));
    byId("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
    byId("direction").addEventListener("click", () => change({ down: !state.down }));
    let waiting = 0;
    byId("search").addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => change({ words: event.target.value }), 150);
    });
    for (const chip of document.querySelectorAll("[data-sort]")) {
      chip.addEventListener("click", () => change({ sort: chip.dataset.sort, down: Boolean(chip.dataset.down) }));
    }
    for (const button of document.querySelectorAll("[data-turn]")) {
      button.addEventListener("click", () => turn(Number(button.dataset.turn)));
    }
    document.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
      if (event.target.closest("input, select, textarea, .scroll, pre")) return;
      const box = gallery.getBoundingClientRect();
      if (box.top < window.innerHeight / 2 && box.bottom > window.innerHeight / 2) turn(by);
    });
  }

  byId("step").max = String(steps.length - 1);
  byId("step").disabled = steps.length < 2;
  if (!hasReward) {
    byId("sort").querySelector("[value=reward]").disabled = true;
    for (const chip of document.querySelectorAll("[data-sort=reward]")) chip.hidden = true;
  }
  drawPairs();
  drawSpark();
  listen();
  draw();
  gallery.hidden = false;
})();
