// The question before a change: what it would do, by the controller's dry run, and then that, or nothing.

import { Problem, change } from "./api.js";
import { SHAPES, count, make, percent, say } from "./words.js";

/** What can be chosen for a change: name in the request, label, values with their labels. */
const OPTIONS = {
  switch: [{ name: "confirm_within", label: "Goes back unless confirmed within", values: [["", "no, it stays"], ["1m", "1 minute"], ["5m", "5 minutes"], ["15m", "15 minutes"], ["1h", "1 hour"]] }],
  split: [{ name: "green", label: "Percent of new flows to green", number: { min: 0, max: 100, step: "any" } }],
  freeze: [{ name: "max", label: "For at most", values: [["10s", "10 seconds"], ["30s", "30 seconds"], ["1m", "1 minute"], ["5m", "5 minutes"]] }],
};
/** How long the result of a change waits for the page to have seen it, in milliseconds. */
const PATIENCE = 2000;
const REHEARSED = ["switch", "rollback", "split"];

export class Question {
  /** `told(text, isGood)` gets the result; `isLost()` and `present(name)` are what is known now; `refresh()` has the page look. */
  constructor(told, isLost, present, refresh) {
    Object.assign(this, { told, isLost, present, refresh });
    this.dialog = document.getElementById("question");
    this.button = this.part(".do");
    this.again = this.part(".again");
    this.part(".cancel").addEventListener("click", () => this.dialog.close());
    this.again.addEventListener("click", () => this.rehearse());
    this.part("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.make();
    });
    this.dialog.addEventListener("close", () => this.closed());
  }

  part(selector) {
    return this.dialog.querySelector(selector);
  }

  /** Asks about a change. Focus comes back to `opener`. */
  open(deployment, verb, opener) {
    Object.assign(this, { name: deployment.name, verb, opener, doing: null });
    say(this.part(".cancel"), "Cancel");
    say(this.part("h2"), `${verb[0].toUpperCase()}${verb.slice(1)} ${this.name}?`);
    this.part(".options").replaceChildren(...(OPTIONS[verb] || []).map((option) => this.option(option, deployment)),
      make("label", {}, "Reason, for the history", make("input", { name: "reason", maxlength: "500", autocomplete: "off" })));
    this.part(".options").onchange = (event) => event.target.name !== "reason" && this.rehearse();
    this.dialog.showModal();
    this.part(".cancel").focus();
    this.rehearse();
  }

  option({ name, label, values, number }, deployment) {
    if (number) {
      const input = make("input", { name, type: "number", required: "", ...number });
      input.value = String(Math.round(deployment.green_share * 1000) / 10);
      return make("label", {}, label, input);
    }
    return make("label", {}, label, make("select", { name }, ...values.map(([value, text]) => make("option", { value }, text))));
  }

  /** The options as chosen. */
  chosen() {
    const options = {};
    for (const input of this.dialog.querySelectorAll(".options [name]")) {
      if (input.value !== "") options[input.name] = input.type === "number" ? Number(input.value) : input.value;
    }
    return options;
  }

  /** Finds out what the change would do now, at the generation that the page shows. */
  async rehearse() {
    const deployment = this.present(this.name);
    if (!deployment) return this.refuse(`${this.name} is not there any more.`);
    this.attempt?.abort();
    const attempt = this.attempt = new AbortController();
    this.asked = null;
    say(this.part(".cancel"), "Cancel");
    this.again.hidden = true;
    this.button.hidden = false;
    this.button.disabled = true;
    say(this.button, `${this.verb[0].toUpperCase()}${this.verb.slice(1)}`);
    const generation = deployment.generation;
    say(this.part(".about"), `Shown at generation ${generation}.`);
    this.part(".answer").replaceChildren(make("p", {}, "Finding out what this would do …"));
    if (!REHEARSED.includes(this.verb)) {
      this.part(".answer").replaceChildren(...this.without(deployment));
      return this.ready(generation, {});
    }
    try {
      const dryRun = await change(this.name, this.verb, { ...this.chosen(), dry_run: true }, generation, attempt.signal);
      if (attempt.signal.aborted) return;
      this.part(".answer").replaceChildren(...told(dryRun));
      if (dryRun.would === "refuse" || dryRun.would === "nothing") return this.hopeless();
      // What is done is what is shown, whatever is configured meanwhile.
      const fixed = this.verb === "switch" ? { to: dryRun.to.live, on_switch: dryRun.on_switch } : {};
      if (this.verb === "switch") say(this.button, `Switch to ${dryRun.to.live}`);
      this.ready(generation, fixed);
    } catch (error) {
      if (!attempt.signal.aborted) this.refuse(sentence(error, "Nothing was done."));
    }
  }

  /** What a change does that has no dry run. */
  without(deployment) {
    const { live, previous, flows, held, pending } = deployment;
    switch (this.verb) {
      case "confirm": return [make("p", {}, `${SHAPES[live]} ${live} stays live. Without a confirmation, it goes back to ${pending ? live : previous}.`)];
      case "freeze": return [make("p", {}, `New flows wait, then go on to ${SHAPES[live]} ${live}. Open flows go on: ${flows.blue} blue, ${flows.green} green.`)];
      default: return [make("p", {}, `${count(held, "held packet")} go on to ${SHAPES[live]} ${live}, in order.`)];
    }
  }

  ready(generation, fixed) {
    this.asked = { generation, fixed };
    this.watch();
  }

  /** Withdraws what was shown if it is not true any more. Called whenever the page learns something. */
  watch() {
    if (!this.dialog.open || !this.asked || this.doing) return;
    const deployment = this.present(this.name);
    if (!deployment || deployment.generation !== this.asked.generation) {
      const now = deployment ? `It is at generation ${deployment.generation} now.` : "It is gone.";
      return this.refuse(`${this.name} was changed meanwhile. ${now} Nothing was done.`);
    }
    this.button.disabled = this.isLost();
  }

  hopeless() {
    say(this.part(".cancel"), "Close");
    this.asked = null;
    this.button.hidden = true;
    this.again.hidden = false;
    this.keepFocus();
  }

  refuse(text) {
    this.part(".answer").replaceChildren(make("p", { class: "alarm", role: "alert" }, text));
    this.hopeless();
  }

  /** A button that is gone must not take the focus with it. */
  keepFocus() {
    if (!this.dialog.contains(document.activeElement) || document.activeElement.hidden) this.part(".cancel").focus();
  }

  async make() {
    if (!this.asked || this.button.disabled) return;
    const { generation, fixed } = this.asked;
    const { name, verb } = this;
    // With gates, this may last. Who closes the question meanwhile gets the result all the same.
    const doing = this.doing = { name };
    this.button.disabled = true;
    say(this.part(".cancel"), "Close");
    say(this.part(".about"), "Being done. If you close this, it goes on, and the result is shown on the page.");
    try {
      const done = await change(name, verb, { ...this.chosen(), ...fixed }, generation);
      if (this.doing === doing) this.dialog.close();
      // Who goes on at once must not be shown what was before.
      await Promise.race([this.refresh(), new Promise((resolve) => { setTimeout(resolve, PATIENCE); })]);
      this.told(result(name, verb, done), true);
    } catch (error) {
      const isAnswer = error instanceof Problem;
      const after = isAnswer ? "" : "It is not known whether it was done: the state tells, once it is connected again.";
      if (this.doing !== doing) return this.told(`${verb} ${name}: ${sentence(error, after)}`, false);
      this.doing = null;
      say(this.part(".about"), "");
      this.refuse(sentence(error, after));
    }
  }

  /** What a gate has said, of a change that is being made. */
  hear({ deployment, gate, passed, why }) {
    if (this.doing?.name !== deployment || !this.dialog.open) return;
    this.part(".answer").append(make("p", passed ? {} : { class: "alarm" }, `Gate ${gate}: ${passed ? "passed" : `failed${why ? `, ${why}` : ""}`}`));
  }

  closed() {
    this.attempt?.abort();
    this.asked = null;
    this.doing = null;
    if (this.opener?.isConnected) this.opener.focus();
  }
}

/** An error in a sentence. */
function sentence(error, after) {
  if (!(error instanceof Problem)) return `The controller has not answered. ${after}`;
  const begin = { 403: "Not allowed", 409: "Refused", 412: "It was changed meanwhile" }[error.status] || "Not done";
  return `${begin}: ${error.message}. ${error.status === 412 ? "Nothing was done." : after}`.replace("..", ".");
}

function result(name, verb, done) {
  if (verb === "freeze") return `${name} is frozen until ${new Date(done.frozen_until).toLocaleTimeString()} at most.`;
  if (verb === "thaw") return done.changed ? `${name} is thawed, ${count(done.played_back, "held packet")} went on.` : `${name} was not frozen.`;
  if (verb === "confirm") return `${name}: confirmed, ${done.to.live} stays live, generation ${done.to.generation}.`;
  if (!done.changed) return `${name}: ${done.to.live} was live already, nothing was changed.`;
  if (verb === "split") return `${name}: ${percent(done.green_share)} of new flows go to green, generation ${done.to.generation}.`;
  return `${name}: ${done.from.live} → ${done.to.live}, generation ${done.to.generation}.`;
}

/** What a dry run says. */
function told(dryRun) {
  const { from, to, would, flows, clients, clients_by_fate: byFate, target } = dryRun;
  const head = {
    switch: `${SHAPES[from.live]} ${from.live} → ${SHAPES[to.live]} ${to.live}, generation ${from.generation} → ${to.generation}`,
    split: `${percent(dryRun.green_share)} of new flows to green, by ${dryRun.divide_by}, generation ${from.generation} → ${to.generation}`,
    nothing: "This is in force already: nothing would change.",
    refuse: `This would be refused: ${dryRun.refusal}`,
  }[would];
  const parts = [make("p", would === "refuse" ? { class: "alarm", role: "alert" } : {}, make("strong", {}, head))];
  if (would === "nothing") return parts;
  if (dryRun.confirm_within) parts.push(make("p", {}, `Goes back after ${dryRun.confirm_within}, unless confirmed.`));
  const limit = dryRun.on_switch === "drain" && dryRun.drain_timeout ? ` (for ${dryRun.drain_timeout} at most)` : "";
  const row = (head, ...cells) => make("tr", {}, make("th", { scope: "row" }, head), ...cells.map((cell) => make("td", { class: "number" }, String(cell))));
  const column = (text) => make("th", { scope: "col", class: "number" }, text);
  parts.push(make("div", { class: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, make("td", {}), column(`Stay${limit}`), column("Move"), column("Are reset"))),
    make("tbody", {}, row("Open flows", flows.stay, flows.move, flows.reset), row(`Clients (${clients})`, byFate.stay, byFate.move, byFate.reset)))));
  if (dryRun.gates?.length > 0) {
    parts.push(make("p", {}, "Gates, which must pass:"), make("ul", { class: "notices" }, ...dryRun.gates.map((gate) => make("li", {}, gate))));
  }
  for (const colour of ["blue", "green"]) {
    const backends = target.filter((backend) => backend.colour === colour);
    const unready = backends.filter((backend) => backend.ready !== true);
    if (backends.length === 0) continue;
    parts.push(make("p", unready.length > 0 ? { class: "alarm" } : {}, `${SHAPES[colour]} ${colour}: ${backends.length - unready.length} of ${count(backends.length, "backend")} ready`));
    if (unready.length > 0) {
      const shown = unready.slice(0, 10).map(({ service, backend, ready, why }) => make("li", {}, `${service} ${backend}: ${ready === false ? "not ready" : "not known"}${why ? `, ${why}` : ""}`));
      if (unready.length > 10) shown.push(make("li", {}, `and ${unready.length - 10} more`));
      parts.push(make("ul", { class: "notices" }, ...shown));
    }
  }
  return parts;
}
