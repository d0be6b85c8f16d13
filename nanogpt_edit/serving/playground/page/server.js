// Talking to the server: JSON, and events that are streamed. What it refuses arrives as a sentence.

export class Refusal extends Error {}

async function refusal(reply) {
  let sentence = `the server answered ${reply.status}.`;
  try {
    const found = await reply.json();
    sentence = found.error?.message ?? found.error ?? sentence;
  } catch { /* no JSON: the status says it */ }
  return Object.assign(new Refusal(sentence), { status: reply.status });
}

const TOKEN = "nanogpt_edit token";

/** Keep the token that the server asks for, while this tab is open. */
export const keepToken = token => sessionStorage.setItem(TOKEN, token);
export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

/** Has the server asked for a token, or refused the one that was given? */
export const wantsToken = error => error instanceof Refusal && error.status === 401;

async function send(path, { method, body, signal } = {}) {
  const headers = {}, token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = body instanceof Blob ? "application/octet-stream" : "application/json";
  const contents = body === undefined || body instanceof Blob ? body : JSON.stringify(body);
  let reply;
  try {
    reply = await fetch(path, { method: method ?? (body === undefined ? "GET" : "POST"), signal, headers, body: contents });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the server cannot be reached; is it still running?");
  }
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

/** The JSON that the server answers. Raises Refusal. */
export async function ask(path, options) {
  return (await send(path, options)).json();
}

/** Offer what the server has at a path for saving, under a name. */
export async function download(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await send(path)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Each JSON object of a stream of server-sent events, until `[DONE]`. Raises Refusal, also for an error on the way. */
export async function* events(path, body, signal) {
  const reply = await send(path, { body, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (kept + value).split(/\r?\n\r?\n/);
      kept = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter(line => line.startsWith("data:")).map(line => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const found = JSON.parse(data);
        if (found.error) throw new Refusal(found.error.message ?? found.error);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
