// Questions to the dashboard's server. Every answer is JSON or one line that says what went wrong.

/** A refusal with the server's own line, or the line that says that there is no server. */
export class Refused extends Error {}

// Longer than any answer takes: a server that hangs is told as one that is gone.
const PATIENCE_MS = 30_000;

/** The JSON at an address; null where the server has nothing new (204). Raises `Refused`; an abort is `AbortError`. */
export async function ask(address, { signal, patience = PATIENCE_MS } = {}) {
  const limit = AbortSignal.timeout(patience);
  let answer;
  try {
    answer = await fetch(address, { signal: signal ? AbortSignal.any([signal, limit]) : limit, cache: "no-store" });
    if (answer.status === 204) return null;
    const told = await answer.json();
    if (answer.ok) return told;
    throw new Refused(String(told.error ?? `The dashboard answers ${answer.status}.`));
  } catch (error) {
    if (error instanceof Refused || signal?.aborted) throw error;
    // No connection, no answer in time, or a page of something in between.
    throw new Refused(answer && !answer.ok ? `The dashboard answers ${answer.status}.` : "The dashboard does not answer.");
  }
}

/** Asks one question at a time: a new one, or `stop`, aborts the last, whose answer is then undefined. */
export function latest() {
  let running = null;
  const one = async (address) => {
    running?.abort();
    const own = (running = new AbortController());
    try {
      const answer = await ask(address, { signal: own.signal });
      return own.signal.aborted ? undefined : answer;
    } catch (error) {
      if (own.signal.aborted) return undefined;
      throw error;
    }
  };
  return Object.assign(one, { stop: () => running?.abort() });
}

/** The address of something of this page's run. query: pairs of name and value. */
export function of(what, query = []) {
  const asked = new URLSearchParams(query).toString();
  return `/run/${encodeURIComponent(document.body.dataset.run)}/${what}${asked ? `?${asked}` : ""}`;
}
