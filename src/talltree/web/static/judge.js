// Sends the page's forms without leaving it until the reply says "saved", repeats what was not answered under the
// same request id, and gives every choice a key. Without this script the forms work as they are.
"use strict";

(() => {
  const judge = document.getElementById("judge");
  const undo = document.getElementById("undo");
  const skip = document.getElementById("skip");
  const status = document.getElementById("status");
  const problem = document.getElementById("problem");
  const question = document.getElementById("question");
  const keys = document.getElementById("keys");
  const WAITS = [1, 2, 4, 8];
  let busy = false;

  // Time counts only while the page can be seen.
  let seen = 0;
  let since = document.hidden ? null : performance.now();
  document.addEventListener("visibilitychange", () => {
    if (since !== null) seen += performance.now() - since;
    since = document.hidden ? null : performance.now();
  });
  const seconds = () => ((seen + (since === null ? 0 : performance.now() - since)) / 1000).toFixed(1);

  const say = (text) => { status.textContent = text; problem.hidden = true; };
  const warn = (text) => { problem.textContent = text; problem.hidden = false; };
  const pause = (time) => new Promise((resolve) => setTimeout(resolve, time * 1000));

  async function send(form) {
    if (busy) return;
    busy = true;
    document.body.dataset.busy = "yes";
    if (form === judge) judge.elements.seconds.value = seconds();
    const body = new URLSearchParams(new FormData(form));
    for (let attempt = 0; ; attempt += 1) {
      say("Saving…");
      let reply;
      try {
        reply = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } });
      } catch {
        const wait = WAITS[Math.min(attempt, WAITS.length - 1)];
        warn(`Not saved yet: the server does not answer. Trying again in ${wait} s; you can leave this page open.`);
        await pause(wait);
        continue;
      }
      const content = await reply.json().catch(() => ({ problem: "Not saved: the reply cannot be read." }));
      if (reply.ok && content.saved === true) {
        busy = false;
        location.replace(location.pathname);
        return;
      }
      say("");
      warn(content.problem || `Not saved: the server refused it (${reply.status}).`);
      if (reply.status === 409) offer("Go on");
      busy = false;
      delete document.body.dataset.busy;
      return;
    }
  }

  function offer(text) {
    const link = document.createElement("a");
    link.href = location.pathname;
    link.textContent = text;
    problem.append(" ", link);
    link.focus();
  }

  for (const form of document.querySelectorAll("form[data-send]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(form);
    });
  }
  addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });

  // What is chosen is said beside the button too: the text itself may have scrolled away.
  function summary() {
    if (judge.dataset.kind === "rating") {
      const rows = [...judge.querySelectorAll(".row")];
      return `${rows.filter((row) => row.querySelector("input:checked")).length} of ${rows.length} rated`;
    }
    const words = ["best", "worst"].map((name) => [name, chosen(name)]).filter(([, input]) => input);
    return words.map(([name, { value }]) => (value === "tie" ? "no preference" : `${name} ${value}`)).join(", ");
  }

  // Best and worst are never the same one.
  const radio = (name, number) => judge.querySelector(`input[name="${name}"][value="${number}"]`);
  const chosen = (name) => judge.querySelector(`input[name="${name}"]:checked`);

  function mark() {
    document.getElementById("chosen").textContent = summary();
    for (const each of judge.querySelectorAll(".candidate")) {
      each.classList.toggle("is-best", chosen("best")?.value === each.dataset.number);
      each.classList.toggle("is-worst", chosen("worst")?.value === each.dataset.number);
    }
  }

  judge?.addEventListener("change", (event) => {
    const { name, value } = event.target;
    const other = { best: "worst", worst: "best" }[name];
    if (other && judge.dataset.kind === "bws" && chosen(other)?.value === value) chosen(other).checked = false;
    mark();
  });

  function choose(name, number) {
    const input = radio(name, number);
    if (!input) return;
    input.checked = true;
    input.focus({ preventScroll: true });
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  function take(number, shift) {
    const best = chosen("best");
    if (judge.dataset.kind !== "bws") return choose("best", number);
    if (shift) return choose("worst", number);
    if (best?.value === number) { best.checked = false; return mark(); }
    return choose(best ? "worst" : "best", number);
  }

  function rate(point) {
    const rows = [...judge.querySelectorAll(".row")];
    const empty = (row) => !row.querySelector("input:checked");
    const row = rows.find((each) => each.contains(document.activeElement)) || rows.find(empty) || rows[0];
    const input = row.querySelector(`input[value="${point}"]`);
    if (!input) return;
    input.checked = true;
    mark();
    const next = rows[rows.indexOf(row) + 1];
    const target = next ? next.querySelector("input:checked") || next.querySelector("input") : input;
    target.focus({ preventScroll: true });
    target.closest(".row").scrollIntoView({ block: "nearest" });
  }

  const shortcuts = {
    u: () => undo?.requestSubmit(),
    s: () => {
      if (!skip) return;
      skip.open = true;
      document.getElementById("reason").focus({ preventScroll: true });
    },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || busy) return;
    const target = event.target;
    if (event.key === "Escape" && skip?.open) {
      skip.open = false;
      question.focus();
      return;
    }
    const writing = target.matches("input[type=text], select, textarea");
    if (writing || (keys && !keys.checked)) return;
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1] ?? (/^[0-9]$/.test(event.key) ? event.key : null);
    if (digit && judge) {
      event.preventDefault();
      if (judge.dataset.kind === "rating") rate(digit);
      else if (digit === "0") choose("best", "tie");
      else take(digit, event.shiftKey);
    } else if (event.key === "Enter" && judge && !target.matches("button, summary, a")) {
      event.preventDefault();
      if (!event.repeat) judge.requestSubmit();
    } else if (!event.repeat && Object.hasOwn(shortcuts, event.key)) {
      event.preventDefault();
      shortcuts[event.key]();
    }
  });

  if (keys) {
    keys.checked = localStorage.getItem("keys") !== "off";
    keys.addEventListener("change", () => localStorage.setItem("keys", keys.checked ? "on" : "off"));
  }
  for (const time of document.querySelectorAll("time")) {
    time.textContent = new Date(time.dateTime).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  }
  if (judge) mark();
  // A reader of the screen starts at the question, whose description is what was saved or went wrong.
  question?.focus({ preventScroll: true });
})();
