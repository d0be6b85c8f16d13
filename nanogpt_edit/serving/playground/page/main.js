// What begins the page: what the server has, the tabs, and what stands in the address bar.

import { read, write } from "./address.js";
import { makeAsk } from "./ask.js";
import { announce, at, field, h } from "./dom.js";
import { makeEdit } from "./edit.js";
import { makeRun } from "./run.js";
import { savePage } from "./save.js";
import { ask, keepToken, wantsToken } from "./server.js";
import { makeTrace } from "./trace.js";

const MAKERS = { ask: makeAsk, edit: makeEdit, trace: makeTrace, run: makeRun };
const THEMES = ["auto", "light", "dark"];
const tabs = Object.keys(MAKERS);
const parts = {};

/** Show an error as a sentence at the top; nothing for none. */
function complain(error) {
  at("trouble").textContent = error ? sentence(error) : "";
  at("trouble").hidden = !error;
  if (error) at("trouble").scrollIntoView({ block: "nearest" });
}

function sentence(error) {
  const text = error.message ?? String(error);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function open(name, { focus = false } = {}) {
  complain(null);
  for (const each of tabs) {
    const chosen = each === name;
    at(each).hidden = !chosen;
    at(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    at(`tab-${each}`).tabIndex = chosen ? 0 : -1;
  }
  if (focus) at(`tab-${name}`).focus();
  document.title = `${at(`tab-${name}`).textContent} · nanogpt_edit`;
  write(name, parts[name]?.form);
  for (const each of tabs) parts[each]?.shown?.(each === name);
}

function obeyKeys() {
  document.querySelector('[role="tablist"]').addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const place = tabs.findIndex(name => !at(name).hidden);
    const next = event.key === "Home" ? 0 : event.key === "End" ? tabs.length - 1 : step && (place + step + tabs.length) % tabs.length;
    if (next === undefined) return;
    event.preventDefault();
    open(tabs[next], { focus: true });
  });
  for (const name of tabs) at(`tab-${name}`).addEventListener("click", () => open(name));
}

function obeyTools() {
  at("copy-link").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    announce("The link is copied.");
    at("copy-link").textContent = "Copied";
    setTimeout(() => { at("copy-link").textContent = "Copy link"; }, 1500);
  });
  at("save-page").addEventListener("click", () => savePage().catch(complain));
  at("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    document.documentElement.dataset.theme = next;
    at("theme").textContent = `Theme: ${next}`;
  });
}

async function start() {
  const { tab, given } = read();
  try {
    const about = await ask("/api/about");
    const house = { about, complain, open, refresh: [] };
    house.modelsChanged = async () => {
      Object.assign(about, await ask("/api/about"));
      for (const again of house.refresh) again();
    };
    for (const name of tabs) parts[name] = MAKERS[name](at(name), house, tab === name ? given : new URLSearchParams());
    for (const name of tabs) {
      parts[name].form?.addEventListener("input", () => write(name, parts[name].form));
      parts[name].form?.addEventListener("change", () => write(name, parts[name].form));
    }
    obeyKeys();
    obeyTools();
    at("tab-run").hidden = !about.run;
    open(tabs.includes(tab) && (tab !== "run" || about.run) ? tab : about.models.length ? "ask" : "run");
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    if (wantsToken(error)) askToken(error);
    else complain(error);
  }
}

/** Ask for the token that the server was started with; it is kept while this tab is open. */
function askToken(error) {
  const token = h("input", { type: "password", required: true, autocomplete: "off" });
  const form = h("form", { class: "card", onsubmit: event => {
    event.preventDefault();
    keepToken(token.value.trim());
    location.reload();
  } }, h("p", {}, `This server is for those who have its token: ${error.message}`), field("Token", token), h("div", {}, h("button", { class: "first" }, "Open")));
  at("main").prepend(form);
  token.focus();
}

start();
