// The page: what the controller tells, as cards, and whether it tells anything.

import { listen, look, signIn } from "./api.js";
import { Card } from "./card.js";
import { Question } from "./question.js";
import { make, say } from "./words.js";

/** From this many deployments on, the details are closed at first, and there is a filter. */
const MANY = 5;
const PAUSES = [500, 1000, 2000, 4000];

const main = document.getElementById("deployments");
const empty = document.getElementById("empty");
const lost = document.getElementById("lost");
const said = document.getElementById("said");
const connection = document.getElementById("connection");
const filter = document.querySelector("#filter input");
const signInForm = document.getElementById("sign-in");

const cards = new Map();
/** Whether events come; when the last one came; whether there is an instance. */
const state = { isLive: false, heard: null, isThere: true, skew: 0 };

const present = (name) => cards.get(name)?.deployment;
const question = new Question(tell, () => !state.isLive, present, lookNow);

function tell(text, isGood) {
  say(said, text);
  said.className = isGood ? "good" : "bad";
}

/** The controller's time: countdowns must not depend on this machine's clock. */
const now = () => Date.now() + state.skew;

function takeStatus(status, time) {
  state.isThere = Boolean(status);
  const deployments = status ? status.deployments : [];
  const names = new Set(deployments.map((deployment) => deployment.name));
  for (const [name, card] of cards) {
    if (!names.has(name)) {
      card.element.remove();
      cards.delete(name);
    }
  }
  let before = null;
  for (const deployment of deployments) {
    let card = cards.get(deployment.name);
    if (!card) {
      card = new Card(deployment.name, (...asked) => question.open(...asked));
      cards.set(deployment.name, card);
      if (deployments.length < MANY) card.element.querySelectorAll("details").forEach((details) => { details.open = true; });
    }
    card.take(structuredClone(deployment), time);
    // In the order of the status, without moving what is in place: that would take the focus away.
    const place = before ? before.nextElementSibling : main.firstElementChild;
    if (place !== card.element) main.insertBefore(card.element, place);
    before = card.element;
  }
  say(empty, status ? "No deployments: write a configuration, then run bgctl apply -c FILE." : "There is no instance. This page shows it as soon as there is one.");
  empty.hidden = deployments.length > 0;
  document.getElementById("filter").hidden = deployments.length < MANY;
  showAll();
}

function takeCounters(message) {
  let isOld = false;
  for (const counters of message.deployments) {
    const card = cards.get(counters.name);
    isOld ||= !card || card.deployment.generation !== counters.generation || card.deployment.phase !== counters.phase;
    card?.count(counters, Date.parse(message.time));
  }
  showAll();
  if (isOld) lookAgain();
}

/**
 * Requests for the status, and events that bring it, are counted. An answer is not shown if a later one, or an event, came since it was asked for: it
 * may be older than what is shown.
 */
let asked = 0;
let shown = 0;

/** The status as a whole, as it is now. Returns whether the answer came too late to be shown. */
async function lookNow() {
  asked += 1;
  const own = asked;
  try {
    const status = await look("v1/status");
    if (own < shown) return true;
    shown = own;
    takeStatus(status, now());
  } catch {
    // The events tell sooner or later.
  }
  return false;
}

let isLooking = false;
let isLookWanted = false;

/** The same, if what is known is not enough. What happens during a look is in the next one. */
async function lookAgain() {
  isLookWanted = true;
  if (isLooking) return;
  isLooking = true;
  while (isLookWanted) {
    isLookWanted = false;
    if (await lookNow()) isLookWanted = true;
  }
  isLooking = false;
}

function remember(record) {
  cards.get(record.deployment)?.remember(record);
}

async function recall() {
  const { records } = await look("v1/history?last=500");
  for (const card of cards.values()) card.records = [];
  records.forEach(remember);
  showAll();
}

function take(message) {
  state.heard = Date.now();
  const time = Date.parse(message.time);
  switch (message.event) {
    case "state":
      state.skew = Number.isNaN(time) ? 0 : time - Date.now();
      asked += 1;
      shown = asked;
      takeStatus(message.status, Number.isNaN(time) ? now() : time);
      connected();
      break;
    case "counters":
      takeCounters(message);
      break;
    case "gate":
      question.hear(message);
      break;
    case "healthy":
    case "unhealthy":
      lookAgain();
      break;
    default:
      if (message.action) {
        remember(message);
        showAll();
      }
  }
}

function connected() {
  if (state.isLive) return;
  state.isLive = true;
  lost.hidden = true;
  connection.dataset.state = "live";
  document.body.classList.remove("stale");
  recall().catch(() => {});
  showAll();
}

function disconnected() {
  state.isLive = false;
  connection.dataset.state = "lost";
  document.body.classList.toggle("stale", cards.size > 0);
  showAll();
}

function showAll() {
  const wanted = filter.value.trim().toLowerCase();
  for (const card of cards.values()) {
    card.element.hidden = wanted !== "" && !card.name.toLowerCase().includes(wanted);
    if (!card.element.hidden) card.show(now(), !state.isLive);
  }
  question.watch();
  tick();
}

/** What changes with time alone. */
function tick() {
  for (const card of cards.values()) if (!card.element.hidden) card.tick(now());
  const age = state.heard === null ? null : Math.round((Date.now() - state.heard) / 1000);
  say(connection, state.isLive ? "live" : age === null ? "connecting" : "not connected");
  if (!state.isLive && age !== null) {
    lost.hidden = false;
    // A screen reader is told once, not each second.
    if (!lost.firstChild) lost.append("Connection to the controller lost. ", make("span", { "aria-live": "off" }), " Nothing can be changed from here until it is back. Packets do not depend on it.");
    say(lost.querySelector("span"), `What you see is ${age} s old.`);
  }
}

/** Without an instance, only a sign of life comes, every 15 seconds. */
const patience = () => (state.isThere && state.isLive ? 5000 : 20000);

async function run() {
  for (let failures = 0; ; failures += 1) {
    try {
      await listen((message) => {
        failures = 0;
        take(message);
      }, patience);
    } catch (error) {
      disconnected();
      if (error.status === 401 || error.status === 403) await askForToken(error);
    }
    await new Promise((resolve) => { setTimeout(resolve, PAUSES[Math.min(failures, PAUSES.length - 1)] * (0.75 + Math.random() / 2)); });
  }
}

/** Resolves once somebody has signed in. */
function askForToken(error) {
  say(document.getElementById("why-sign-in"), error.message);
  signInForm.hidden = false;
  signInForm.querySelector("[type=password]").focus();
  return new Promise((resolve) => {
    signInForm.onsubmit = (event) => {
      event.preventDefault();
      const input = signInForm.querySelector("[type=password]");
      signIn(input.value);
      input.value = "";
      signInForm.hidden = true;
      resolve();
    };
  });
}

filter.addEventListener("input", showAll);
setInterval(tick, 500);
run();
