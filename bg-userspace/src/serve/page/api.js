// Requests to the controller, and its events. The token of somebody who has signed in is kept for this tab alone.

const base = new URL(".", location.origin + location.pathname);
const KEY = "bgctl-token";

/** An answer that is an error, as RFC 9457 has it. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Keeps a token; without one, forgets it. */
export function signIn(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

function headers(more) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function problem(response) {
  let detail = `${response.status} ${response.statusText}`;
  try {
    const body = await response.json();
    detail = body.detail || body.title || detail;
  } catch {
    // Whatever stands between has answered.
  }
  return new Problem(response.status, detail);
}

/** Gets JSON. */
export async function look(path) {
  const response = await fetch(new URL(path, base), { headers: headers({}), cache: "no-store", signal: AbortSignal.timeout(20000) });
  if (!response.ok) throw await problem(response);
  return response.json();
}

/** Has a deployment changed, or only asks what the change would do, if it is at the generation that is shown. */
export async function change(deployment, verb, options, generation, signal) {
  const response = await fetch(new URL(`v1/deployments/${encodeURIComponent(deployment)}/${verb}`, base), {
    method: "POST",
    headers: headers({ "content-type": "application/json", "if-match": `"${generation}"` }),
    body: JSON.stringify(options),
    signal,
  });
  if (!response.ok) throw await problem(response);
  return response.json();
}

/**
 * Tells `take` of each event until the connection ends or is silent. EventSource cannot send a token, so this reads the stream itself.
 * `patience` says for how many milliseconds it may be silent.
 */
export async function listen(take, patience) {
  const abort = new AbortController();
  let watch;
  const heard = () => {
    clearTimeout(watch);
    watch = setTimeout(() => abort.abort(new Error("nothing was heard")), patience());
  };
  heard();
  try {
    const response = await fetch(new URL("v1/events", base), {
      headers: headers({ accept: "text/event-stream" }), cache: "no-store", signal: abort.signal,
    });
    if (!response.ok) throw await problem(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the server has ended the connection");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length > 0) take(JSON.parse(lines.map((line) => line.slice(5)).join("\n")));
      }
      // Afterwards, because how long it may be silent depends on what it has said.
      heard();
    }
  } finally {
    clearTimeout(watch);
    abort.abort();
  }
}
