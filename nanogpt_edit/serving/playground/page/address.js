// The address bar keeps the tab and what its form says: #edit?prompt=…&subject=… A link brings both back.

/** {tab, given}: what the address says. */
export function read() {
  const [tab, query] = location.hash.slice(1).split("?");
  return { tab, given: new URLSearchParams(query ?? "") };
}

/** Put a form's fields (or nothing) behind the tab's name. */
export function write(tab, form) {
  const query = form ? new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== "" && typeof value === "string")) : "";
  history.replaceState(null, "", `#${tab}${String(query) ? `?${query}` : ""}`);
}

/** Fill a form's fields as `given` (URLSearchParams) says; those it does not name stay. */
export function fill(form, given) {
  for (const name of new Set(given.keys())) {
    const values = given.getAll(name);
    for (const control of form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
      if (control.type === "checkbox" || control.type === "radio") control.checked = values.includes(control.value);
      else control.value = values[0];
    }
  }
}
