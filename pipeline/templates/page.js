"use strict";
const framed = window !== window.top;
document.documentElement.classList.toggle("framed", framed);

// Inside Airflow the pages are as light or dark as it is.
if (framed) {
  const outer = window.top.document.documentElement;
  const follow = () => { document.documentElement.style.colorScheme = getComputedStyle(outer).colorScheme.replace("normal", ""); };
  new MutationObserver(follow).observe(outer, { attributes: true });
  follow();
}

// Airflow shows these pages in a frame whose sandbox keeps links from leaving it; its own page may follow them.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[target=_top]");
  if (!framed || !link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const outside = window.top.document.createElement("a");
  outside.href = link.href;
  outside.click();
});

const asked = (fields) => ({
  dataset: fields.get("dataset"),
  first: fields.get("first"),
  last: fields.get("last"),
  entities: fields.get("entities").split("\n").map((name) => name.trim()).filter(Boolean),
  overwrite: fields.has("overwrite"),
});

// Airflow's own route judges the form and the reader's permission, as it does for its own pages. (`form.dataset` would
// be the form's field of that name.)
async function start(form) {
  const body = JSON.stringify({ logical_date: null, conf: asked(new FormData(form)) });
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  const answer = await fetch(form.getAttribute("data-backfill"), { method: "POST", headers, body });
  const said = await answer.json();
  if (!answer.ok) throw new Error(typeof said.detail === "string" ? said.detail : JSON.stringify(said.detail));
  const link = document.createElement("a");
  link.href = form.getAttribute("data-runs") + encodeURIComponent(said.dag_run_id);
  link.target = "_top";
  link.textContent = "Look at its run";
  return ["The backfill is on its way. ", link];
}

document.querySelector("form[data-backfill]")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, button = form.querySelector("button"), output = form.querySelector("output");
  button.disabled = true;
  output.replaceChildren("Asking Airflow");
  try {
    output.replaceChildren(...(await start(form)));
  } catch (error) {
    output.replaceChildren(error.message);
  }
  button.disabled = false;
});
