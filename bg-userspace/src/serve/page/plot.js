// Flows per second by colour, as a plot that moves each second. Blue is a filled line, green a dashed one.

import { COLOURS, rate } from "./words.js";

const SECONDS = 120;
const [WIDTH, HEIGHT] = [600, 80];
const SVG = "http://www.w3.org/2000/svg";

/** The flows per second of one deployment, by the counters of its services. */
export class Rates {
  constructor() {
    this.values = { blue: [], green: [] };
    this.last = null;
  }

  /** Takes totals at a time in milliseconds. Counters that began anew are no flows. */
  take(time, services) {
    const totals = {};
    for (const colour of COLOURS) totals[colour] = services.reduce((sum, service) => sum + service[colour].flows_opened, 0);
    if (this.last && time > this.last.time) {
      const seconds = (time - this.last.time) / 1000;
      if (seconds < 0.5) return;
      for (const colour of COLOURS) {
        const value = Math.max(0, totals[colour] - this.last.totals[colour]) / seconds;
        const values = this.values[colour];
        // After a gap, the mean of the gap.
        for (let nth = 0; nth < Math.min(SECONDS, Math.max(1, Math.round(seconds))); nth += 1) values.push(value);
        values.splice(0, Math.max(0, values.length - SECONDS));
      }
    }
    this.last = { time, totals };
  }

  now(colour) {
    return this.values[colour].at(-1) ?? 0;
  }

  peak(colour) {
    return Math.max(0, ...this.values[colour]);
  }
}

function line(values, most) {
  const step = WIDTH / (SECONDS - 1);
  const begin = SECONDS - values.length;
  const points = values.map((value, nth) => `${((begin + nth) * step).toFixed(1)} ${(HEIGHT - 2 - (HEIGHT - 6) * value / most).toFixed(1)}`);
  return points.length > 1 ? `M${points.join("L")}` : "";
}

/** Draws the rates of a deployment into its plot. */
export function draw(svg, name, rates) {
  const most = Math.max(1, rates.peak("blue"), rates.peak("green"));
  const blue = line(rates.values.blue, most);
  const area = blue && `${blue}L${WIDTH} ${HEIGHT}L${((SECONDS - rates.values.blue.length) * WIDTH / (SECONDS - 1)).toFixed(1)} ${HEIGHT}Z`;
  const paths = { "blue-area": area, blue, green: line(rates.values.green, most) };
  for (const [kind, path] of Object.entries(paths)) {
    let element = svg.querySelector(`.${kind}`);
    if (!element) {
      element = document.createElementNS(SVG, "path");
      element.setAttribute("class", kind);
      svg.append(element);
    }
    element.setAttribute("d", path);
  }
  const told = COLOURS.map((colour) => `${colour} ${rate(rates.now(colour))} now, ${rate(rates.peak(colour))} at most`);
  svg.setAttribute("aria-label", `New flows per second of ${name} in the last two minutes: ${told.join("; ")}`);
  return most;
}
