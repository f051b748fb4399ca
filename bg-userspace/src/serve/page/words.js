// Words and elements. Text from elsewhere only ever becomes text: nothing here, or on this page, makes elements of it.

export const COLOURS = ["blue", "green"];
export const SHAPES = { blue: "●", green: "◆" };

/** An element with attributes and content. */
export function make(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content);
  return element;
}

/** Sets a text if it is another one, so that nobody's selection or screen reader is disturbed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A number with its noun. */
export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Flows per second, with a decimal only if there are few. */
export function rate(perSecond) {
  return perSecond > 0 && perSecond < 10 ? perSecond.toFixed(1) : String(Math.round(perSecond));
}

/** The time until a moment, as 1:05 or 2:00:00. */
export function left(moment, now) {
  const seconds = Math.max(0, Math.floor((Date.parse(moment) - now) / 1000));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}

/** A share of new flows. */
export function percent(share) {
  return `${Math.round(share * 1000) / 10} %`;
}

/** When the phase of a deployment ends by itself. */
export function endOf(deployment) {
  const pending = deployment.pending;
  switch (deployment.phase) {
    case "frozen": return deployment.frozen_until;
    case "confirming": return deployment.confirm_deadline;
    case "scheduled": return pending && pending.at;
    case "ramping": return pending && pending.ramp_until;
    case "draining": return deployment.drain_deadline;
    default: return null;
  }
}

/** What somebody who looks at a deployment has to know. */
export function notices(deployment, now) {
  const { live, idle, previous, pending, revert_if: conditions = [] } = deployment;
  const back = pending ? live : previous;
  const all = [];
  if (deployment.frozen_until) {
    all.push(`Frozen for ${left(deployment.frozen_until, now)} at most: ${count(deployment.held, "packet")} that would open a flow wait.`);
  }
  if (deployment.confirm_deadline) all.push(`Goes back to ${back} in ${left(deployment.confirm_deadline, now)} unless confirmed.`);
  if (conditions.length > 0) all.push(`Goes back to ${back} if ${conditions.join(" or ")}.`);
  if (deployment.taken_back) all.push(`Taken back to ${live} ${deployment.taken_back}.`);
  if (pending) {
    const share = `${percent(pending.green_share)} of new flows to green`;
    if (pending.ramp_until) all.push(`Ramp: ${share} in ${left(pending.ramp_until, now)}.`);
    else if (pending.at) all.push(`Scheduled: ${share} in ${left(pending.at, now)}.`);
  }
  if (deployment.phase === "split" || deployment.phase === "ramping") {
    all.push(`${percent(deployment.green_share)} of new flows go to green, ${percent(1 - deployment.green_share)} to blue.`);
  }
  if (deployment.drain_deadline) all.push(`Open flows on ${idle} end in ${left(deployment.drain_deadline, now)}.`);
  return all;
}
