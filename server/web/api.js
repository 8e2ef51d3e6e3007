// The server: requests with the token, and a stream of what changes that comes back by itself.

const KEY = "consortia.token";
/** Longer than the server is ever silent. */
const SILENCE = 10000;

/** The server does not take the token. */
export class Unauthorized extends Error {}

/** The token of this tab, if it has one. */
export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} value */
export function keepToken(value) {
  sessionStorage.setItem(KEY, value.trim());
}

export function dropToken() {
  sessionStorage.removeItem(KEY);
}

/**
 * @param {string} path below /api/v1/
 * @param {RequestInit} [options]
 */
async function request(path, options = {}) {
  const headers = { ...options.headers, Authorization: `Bearer ${token()}` };
  let response;
  try {
    response = await fetch(`/api/v1/${path}`, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error("the server does not answer");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const message = said.error ?? `the server answered ${response.status}`;
  throw response.status === 401 ? new Unauthorized(message) : new Error(message);
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

/** @param {string} path @param {unknown} [body] @returns {Promise<any>} */
export async function post(path, body = {}) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return response.status === 204 ? null : response.json();
}

/**
 * Reads events for ever. A line that breaks or falls silent is opened again, later each time.
 * @param {(name: string, data: any) => void} heard
 * @param {(state: "live" | "lost" | "denied", again: number) => void} changed `again`: seconds until the next attempt
 * @param {AbortSignal} signal
 * @param {(wake: () => void) => void} hurry hands out what ends the wait
 */
export async function listen(heard, changed, signal, hurry) {
  let failures = 0;
  while (!signal.aborted) {
    const line = new AbortController();
    const stop = () => line.abort();
    signal.addEventListener("abort", stop);
    let watchdog = setTimeout(stop, SILENCE);
    try {
      const response = await request("events", { signal: line.signal });
      const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
      const decoder = new TextDecoder();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE);
        failures = 0;
        changed("live", 0);
        text += decoder.decode(value, { stream: true });
        const events = text.split("\n\n");
        text = events.pop() ?? "";
        for (const event of events) tell(event, heard);
      }
    } catch (error) {
      if (error instanceof Unauthorized) {
        changed("denied", 0);
        return;
      }
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener("abort", stop);
    }
    if (signal.aborted) return;
    failures += 1;
    const wait = Math.min(15, 2 ** (failures - 1));
    changed("lost", wait);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000 * wait, null);
      hurry(() => {
        clearTimeout(timer);
        resolve(null);
      });
    });
  }
}

/** @param {string} event @param {(name: string, data: any) => void} heard */
function tell(event, heard) {
  let [name, data] = ["message", ""];
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data) heard(name, JSON.parse(data));
}
