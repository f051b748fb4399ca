// The card of one deployment. It is made once and then changed in place, so that focus and opened details stay.

import { COLOURS, SHAPES, count, endOf, left, make, notices, percent, rate, say } from "./words.js";
import { Rates, draw } from "./plot.js";

const VERBS = ["switch", "rollback", "confirm", "split", "freeze", "thaw"];
const MOST_RECORDS = 20;
/** Beyond this many, the tables of all deployments at once would be slow. */
const MOST_ROWS = 200;

/** The verbs that make sense now. */
function possible(deployment, verb) {
  if (verb === "confirm") return Boolean(deployment.confirm_deadline) || (deployment.revert_if || []).length > 0;
  if (verb === "thaw") return deployment.phase === "frozen";
  return true;
}

export class Card {
  /** `ask(deployment, verb, button)` is called when somebody wants a change. */
  constructor(name, ask) {
    this.name = name;
    this.rates = new Rates();
    this.records = [];
    this.drain = { generation: null, most: 0 };
    this.element = document.getElementById("card").content.cloneNode(true).firstElementChild;
    this.element.dataset.deployment = name;
    const heading = this.part("h2");
    say(heading, name);
    heading.id = `deployment-${name}`;
    this.element.setAttribute("aria-labelledby", heading.id);
    const buttons = this.part(".buttons");
    buttons.setAttribute("aria-label", `Change ${name}`);
    for (const verb of VERBS) {
      const button = make("button", { type: "button", "data-verb": verb }, verb[0].toUpperCase() + verb.slice(1));
      button.setAttribute("aria-label", `${verb} ${name}`);
      button.addEventListener("click", () => button.ariaDisabled === "true" || ask(this.deployment, verb, button));
      buttons.append(button);
    }
    for (const details of this.element.querySelectorAll("details")) {
      details.addEventListener("toggle", () => this.showDetails());
    }
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  /** Takes a status. */
  take(deployment, time) {
    this.deployment = deployment;
    this.rates.take(time, deployment.services);
    this.measureDrain();
  }

  /** Takes counters, which are newer than the status. */
  count(counters, time) {
    const { live, generation, phase, green_share, flows, held } = counters;
    Object.assign(this.deployment, { live, idle: live === "blue" ? "green" : "blue", generation, phase, green_share, flows, held });
    this.rates.take(time, counters.services);
    this.measureDrain();
  }

  measureDrain() {
    const { generation, flows, idle } = this.deployment;
    const begun = this.drain.generation === generation ? this.drain.most : 0;
    this.drain = { generation, most: Math.max(begun, flows[idle]) };
  }

  /** Adds a record of the history. */
  remember(record) {
    this.records = [record, ...this.records].slice(0, MOST_RECORDS);
  }

  /** Shows all of it. */
  show(now, isLost) {
    const { deployment } = this;
    const { live, idle, phase, generation, previous } = deployment;
    this.element.dataset.live = live;
    this.element.dataset.phase = phase;
    this.element.dataset.generation = generation;
    say(this.part(".live .shape"), SHAPES[live]);
    say(this.part(".live strong"), live);
    say(this.part(".generation"), `generation ${generation}, previous ${previous}`);
    this.tick(now);
    for (const colour of COLOURS) this.showColour(colour);
    const most = draw(this.part(".plot"), this.name, this.rates);
    say(this.part(".legend"), `New flows per second, 2 minutes, up to ${rate(most)}: ━ ${SHAPES.blue} blue, ┅ ${SHAPES.green} green`);
    const drains = this.drain.most > 0 && (phase === "draining" || phase === "confirming");
    this.part(".drain").hidden = !drains;
    if (drains) {
      say(this.part(".drain span"), `Drain: ${deployment.flows[idle]} of ${count(this.drain.most, "flow")} left on ${idle}`);
      this.part(".drain progress").value = 1 - deployment.flows[idle] / this.drain.most;
    }
    for (const button of this.part(".buttons").children) {
      // Not `disabled`, which would take the focus away from whoever has just pressed it.
      button.ariaDisabled = String(isLost || !possible(deployment, button.dataset.verb));
    }
    this.showDetails();
  }

  /** Shows what changes with time alone. */
  tick(now) {
    const end = endOf(this.deployment);
    const { phase, green_share: share } = this.deployment;
    const part = phase === "split" || phase === "ramping" ? ` ${percent(share)} green` : "";
    const element = this.part(".phase");
    say(element, `${phase}${part}${end ? `, ${left(end, now)} left` : ""}`);
    element.classList.toggle("waits", phase === "confirming" || phase === "frozen");
    const texts = notices(this.deployment, now);
    const list = this.part(".notices");
    while (list.children.length > texts.length) list.lastElementChild.remove();
    while (list.children.length < texts.length) list.append(make("li"));
    texts.forEach((text, nth) => say(list.children[nth], text));
  }

  showColour(colour) {
    const { deployment } = this;
    const list = this.part(`[data-colour="${colour}"]`);
    const isLive = deployment.live === colour;
    list.classList.toggle("is-live", isLive);
    const backends = deployment.services.flatMap((service) => service[colour].backends);
    const down = backends.filter((backend) => backend.health === "down").length;
    const up = backends.filter((backend) => backend.health === "up").length;
    const health = down > 0 ? `${down} of ${backends.length} DOWN` : up > 0 ? `${up} of ${backends.length} up` : `${backends.length}, not checked`;
    const rows = [["New flows/s", rate(this.rates.now(colour))], ["Open flows", deployment.flows[colour]], ["Backends", health]];
    if (!list.firstChild) {
      list.append(make("dt", { class: "name" }));
      for (const [term] of rows) list.append(make("dt", {}, term), make("dd"));
    }
    say(list.firstChild, `${SHAPES[colour]} ${colour} – ${isLive ? "LIVE" : "idle"}`);
    const values = list.querySelectorAll("dd");
    rows.forEach(([, value], nth) => say(values[nth], String(value)));
    values[2].classList.toggle("down", down > 0);
  }

  /** Fills the details that are open. */
  showDetails() {
    const backends = this.part(".backends");
    const rows = this.deployment.services.flatMap((service) => COLOURS.flatMap((colour) => service[colour].backends.map((backend) => ({ service, colour, backend }))));
    const down = rows.filter(({ backend }) => backend.health === "down").length;
    say(backends.firstElementChild, `Backends (${rows.length}${down > 0 ? `, ${down} down` : ""})`);
    if (backends.open) this.showBackends(rows);
    const history = this.part(".history");
    if (history.open) this.showHistory(history.lastElementChild);
  }

  showBackends(rows) {
    const words = { up: "✓ up", down: "✗ DOWN", unknown: "? not checked" };
    const isDown = ({ backend }) => (backend.health === "down" ? 0 : 1);
    const shown = rows.length > MOST_ROWS ? [...rows].sort((a, b) => isDown(a) - isDown(b)).slice(0, MOST_ROWS) : rows;
    const key = JSON.stringify(shown.map(({ service, colour, backend }) => [service.name, colour, backend]));
    if (this.shownBackends === key) return;
    this.shownBackends = key;
    const lines = shown.map(({ service, colour, backend }) => make("tr", {},
      make("td", {}, service.name),
      make("td", { class: colour }, `${SHAPES[colour]} ${colour}`),
      make("td", {}, backend.address),
      make("td", { class: "number" }, String(backend.weight)),
      make("td", { class: backend.health === "down" ? "down" : "" }, words[backend.health] || backend.health)));
    if (rows.length > shown.length) lines.push(make("tr", {}, make("td", { colspan: "5" }, `and ${rows.length - shown.length} more`)));
    this.part(".backends tbody").replaceChildren(...lines);
  }

  showHistory(list) {
    const key = JSON.stringify(this.records);
    if (this.shownHistory === key) return;
    this.shownHistory = key;
    const moment = (at) => (at ? `${at.live}@${at.generation}` : "–");
    list.replaceChildren(...this.records.map((record) => {
      const who = record.who ? record.who.user || `uid ${record.who.uid}` : "";
      const time = make("time", { datetime: record.time }, new Date(record.time).toLocaleString());
      return make("li", {}, time, ` ${record.action} ${moment(record.from)} → ${moment(record.to)} by ${who}${record.reason ? `: ${record.reason}` : ""}`);
    }));
    if (this.records.length === 0) list.replaceChildren(make("li", {}, "Nothing has been recorded."));
  }
}
