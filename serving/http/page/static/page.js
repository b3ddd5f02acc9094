// Replaces the content of the page instead of loading it again, so that controls act at once and keep the focus; copies
// lines; appends events. All content comes from the server: without this script the page works by links and forms.
"use strict";

const app = document.getElementById("app");
const message = document.getElementById("message");
let visits = 0;
let waiting = 0;

document.documentElement.classList.add("script");
// On a phone the recommendations come first.
if (matchMedia("(max-width: 52rem)").matches) document.getElementById("settings").open = false;

// Shows an address of this page; `push` adds it to the browser's history.
async function visit(address, push) {
  const own = ++visits;
  const typed = document.activeElement.value;
  app.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(address, { headers: { Accept: "text/html" } });
    const text = await response.text();
    if (own !== visits) return;
    if (!(response.headers.get("Content-Type") || "").startsWith("text/html")) throw new Error(detail(text, response));
    show(new DOMParser().parseFromString(text, "text/html"), typed);
    if (push && response.url !== location.href) history.pushState(null, "", response.url);
    tell("");
  } catch (error) {
    if (own === visits) tell(error.message);
  } finally {
    if (own === visits) app.removeAttribute("aria-busy");
  }
}

// `typed`: what the field with the focus held when the page was asked for.
function show(page, typed) {
  const before = ranks();
  const focused = document.activeElement;
  const open = new Map([...app.querySelectorAll("details")].map((one) => [one.id, one.open]));
  app.replaceChildren(...document.importNode(page.getElementById("app"), true).childNodes);
  document.title = page.title;
  for (const one of app.querySelectorAll("details")) one.open = open.get(one.id) ?? one.open;
  mark(before);
  const again = focused.id && app.querySelector("#" + CSS.escape(focused.id));
  if (again) {
    if (focused.value !== typed) again.value = focused.value;
    again.focus({ preventScroll: true });
  } else if (document.activeElement === document.body) {
    document.getElementById("results").focus({ preventScroll: true });
  }
  const found = document.getElementById("found");
  document.getElementById("said").textContent = `${found.textContent.trim()}: ${ranks().places.size} items`;
}

function ranks() {
  const list = app.querySelector(".cards");
  const cards = list ? [...list.children] : [];
  return { subject: list && list.dataset.subject, places: new Map(cards.map((card, at) => [card.dataset.item, at])) };
}

// Says of each item how its place differs from the list before, if that was a list for the same user or item.
function mark(before) {
  if (before.subject === null || before.subject !== ranks().subject) return;
  for (const [item, at] of ranks().places) {
    const was = before.places.get(item);
    if (was === at) continue;
    const mark = document.createElement("span");
    mark.className = was < at ? "moved down" : "moved";
    mark.textContent = was === undefined ? "new" : `${was < at ? "↓" : "↑"} ${Math.abs(was - at)}`;
    const card = app.querySelector(`.card[data-item="${CSS.escape(item)}"] .score`);
    if (card) card.after(mark);
  }
}

function tell(text) {
  message.textContent = text;
  message.hidden = !text;
}

function detail(text, response) {
  try {
    return JSON.parse(text).detail;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

function addressOf(form) {
  const address = new URL(form.action);
  for (const [name, value] of new FormData(form)) if (value !== "") address.searchParams.append(name, value);
  return address;
}

function isHere(address) {
  const own = new URL(address, location.href);
  return own.origin === location.origin && own.pathname === location.pathname && !own.hash;
}

async function addEvent(button) {
  const { event, user } = button.dataset;
  button.disabled = true;
  const response = await fetch(document.body.dataset.events, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ events: [{ user_id: user, item_id: event }] }),
  });
  if (response.ok) return visit(location.href, false);
  button.disabled = false;
  tell(detail(await response.text(), response));
}

async function copy(button) {
  const lines = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(lines.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(lines);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

app.addEventListener("submit", (event) => {
  event.preventDefault();
  visit(addressOf(event.target), true);
});
app.addEventListener("input", (event) => {
  const output = app.querySelector(`output[for="${CSS.escape(event.target.id)}"]`);
  if (output) output.textContent = event.target.value;
});
app.addEventListener("change", (event) => {
  const form = event.target.form;
  if (!form || form.id !== "controls") return;
  clearTimeout(waiting);
  waiting = setTimeout(() => form.reportValidity() && visit(addressOf(form), true), 120);
});
app.addEventListener("pointerover", (event) => {
  const point = event.target.closest("svg circle, svg a");
  const title = point && (point.querySelector("title") || point.parentNode.querySelector("title"));
  if (title) document.getElementById("pointed").textContent = title.textContent;
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && button.dataset.copy) copy(button);
  else if (button && button.dataset.event) addEvent(button).catch((error) => tell(error.message));
  const link = event.target.closest("#app a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  if (!isHere(link.href)) return;
  event.preventDefault();
  visit(link.href, true).then(() => scrollTo({ top: 0 }));
});
addEventListener("popstate", () => visit(location.href, false));
