const $ = id => document.getElementById(id);
const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// The workflow: each button sends one request, and the page shows the response and the cookie.

const meanings = {
  "max-age": value => value === "0" ? "forget it at once" : `keep it for ${Math.round(value / 360) / 10} hours`,
  path: () => "send it to every page of this site",
  secure: () => "only over HTTPS or to localhost",
  httponly: () => "hidden from scripts",
  samesite: () => "not sent when another site posts a form here",
};

async function ask(method, path) {
  const response = await fetch(path, { method });
  const text = await response.text();
  for (const button of document.querySelectorAll(".buttons button")) button.ariaPressed = button.dataset.path === path;
  $("asked").textContent = `${method} ${path}`;
  $("status").textContent = `${response.status} ${response.statusText}`;
  $("status").classList.toggle("bad", !response.ok);
  $("body").textContent = JSON.stringify(JSON.parse(text), null, 2);
  showCookie(response.headers);
}

function showCookie(headers) {
  const [name, ...attributes] = (headers.get("x-cookie-set") ?? "").split("; ");
  $("came").textContent = headers.get("x-cookie-came") === "yes" ? "Yes." : "No: there was none to send.";
  const seen = document.cookie.split("; ").filter(cookie => cookie.includes("gaman="));
  $("seen").textContent = seen.length ? seen.join("; ") : "Nothing: document.cookie does not show it.";
  $("set").textContent = name ? "Yes, like this:" : "No: nothing changed.";
  const value = attributes.includes("Max-Age=0") ? "its name; the value is now empty" : "its name, and a sealed value";
  $("attributes").replaceChildren(...[name, ...attributes].filter(Boolean).map((text, place) => {
    const [key, setting] = text.split("=");
    const meaning = place ? meanings[key.toLowerCase()]?.(setting) ?? "" : value;
    return make("li", {}, make("code", { textContent: text }), make("span", { textContent: meaning }));
  }));
}

document.querySelector(".buttons").addEventListener("click", async event => {
  const { method, path } = event.target.closest("button")?.dataset ?? {};
  if (!path) return;
  try {
    await ask(method, path);
    // The next request tells whether the browser has kept the cookie.
    $("hint").hidden = path !== "/login" || (await fetch("/check")).headers.get("x-cookie-came") === "yes";
  } catch {
    $("asked").textContent = `${method} ${path}`;
    $("status").textContent = "no answer";
    $("status").classList.add("bad");
    $("body").textContent = "The server does not answer. Is it still running?";
  }
  await showState();
});

// The state of this browser's session, asked again each second: another tab or device may have ended it.

async function showState() {
  let text = "The server does not answer", kind = "bad", devices = [];
  try {
    const state = await json("GET", "/status");
    [text, kind] = state.loggedIn ? ["You are logged in", "in"] : ["You are logged out", "out"];
    devices = state.devices;
    $("driver").textContent = state.driver;
    $("no-store").hidden = state.driver !== "cookies";
  } catch { /* The server has stopped. */ }
  // An unchanged text stays, so that a screen reader doesn't repeat it.
  if ($("state").textContent !== text) Object.assign($("state"), { textContent: text, className: kind });
  const rows = devices.map(({ name, here }) => here ? `${name} (this device)` : name);
  if (rows.join() !== [...$("list").children].map(row => row.textContent).join()) {
    $("list").replaceChildren(...rows.map(row => make("li", { textContent: row })));
  }
}

async function follow() {
  for (;;) {
    if (!document.hidden) await showState();
    await pause(1000);
  }
}

document.addEventListener("visibilitychange", () => document.hidden || showState());

// The promises: each panel's button runs an experiment, and the result says whether the promise was kept.

async function json(method, path) {
  const response = await fetch(path, { method });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json();
}

async function timed(label, start, request) {
  const from = performance.now() - start;
  const answer = await request;
  return { label, from, to: performance.now() - start, answer };
}

const lane = (end, { label, from, to }) => {
  const bar = make("div", { className: "bar" });
  bar.style.marginLeft = `${from / end * 100}%`;
  bar.style.width = `${(to - from) / end * 100}%`;
  return make("div", { className: "lane" }, label, make("div", { className: "track", ariaHidden: true }, bar));
};
const timeline = spans => spans.map(span => lane(Math.max(...spans.map(({ to }) => to)), span));
const verdict = (kept, text) => make("p", {}, make("span", { className: kept ? "pill" : "pill bad", textContent: text }));
const line = text => make("p", { textContent: text });

function experiment(id, run) {
  const button = document.querySelector(`#${id} button`), result = document.querySelector(`#${id} .result`);
  button.addEventListener("click", async () => {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    result.replaceChildren();
    try {
      result.replaceChildren(...await run());
    } catch (error) {
      result.replaceChildren(verdict(false, error instanceof TypeError ? "The server does not answer." : error.message));
    }
    button.ariaDisabled = "false";
    await showState();
  });
}

experiment("updates", async () => {
  await json("DELETE", "/cart");
  const start = performance.now();
  const adding = ["tea", "bread"].map(item => timed(item, start, json("POST", `/cart/${item}`)));
  const spans = await Promise.all(adding);
  await Promise.all(Array.from({ length: 10 }, () => json("POST", "/count")));
  const { items, count } = await json("GET", "/cart");
  const overlapped = spans.every(({ answer }) => answer.saw.length === 0);
  return [
    ...timeline(spans),
    line(overlapped ? "Each read an empty cart before the other wrote." : "They did not overlap, so this proves nothing: try again."),
    verdict(items.length === 2, `${items.length} of 2 items: ${items.join(" and ")}`),
    verdict(count === 10, `${count} of 10 counted`),
  ];
});

experiment("logout", async () => {
  await json("POST", "/login");
  const start = performance.now();
  const late = timed("request", start, json("POST", "/late"));
  await pause(300);
  const logout = await timed("logout", start, json("POST", "/logout"));
  const request = await late;
  const { hasUser } = await json("GET", "/check");
  return [
    ...timeline([request, logout]),
    line(`The request had read: ${request.answer.user?.name ?? "no user"}. It wrote after the logout.`),
    verdict(!hasUser, hasUser ? "It has logged you in again" : "Its write was dropped: still logged out"),
  ];
});

experiment("devices", async () => {
  const { ended } = await json("POST", "/logout-everywhere");
  return [verdict(true, `${ended} ${ended === 1 ? "session" : "sessions"} ended`)];
});

// Cookies belong to a host, so the same server under its other name is another device.
const elsewhere = new URL("/", location);
elsewhere.hostname = location.hostname === "localhost" ? "127.0.0.1" : "localhost";
Object.assign($("elsewhere"), { href: elsewhere.href, textContent: elsewhere.host });

await ask("GET", "/check").catch(() => {});
await follow();
