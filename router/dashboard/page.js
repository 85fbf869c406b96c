"use strict";
/* Shows GET status, asked for once a second. All text of the cluster reaches the page by
 * textContent: ids and names are somebody else's. */

const POLL_MS = 1000, LARGE_POLL_MS = 3000, SLOWEST_POLL_MS = 15000, TIMEOUT_MS = 10000;
const DENSE_TILES = 48;
const KEY = "baton-api-key";

/* ---- text */

const DASH = "–";

function scaled(value, unit, steps, tidy) {
  if (value === null || value === undefined || !isFinite(value)) return DASH;
  if (value === 0) return unit ? "0 " + unit : "0";
  let [factor, name] = steps[0];
  for (const [f, n] of steps) if (Math.abs(value) >= f) [factor, name] = [f, n];
  const shown = value / factor;
  const digits = Math.abs(shown) >= 100 ? 0 : Math.abs(shown) >= 10 ? 1 : 2;
  return (tidy ? String(Number(shown.toFixed(digits))) : shown.toFixed(digits)) + (name + unit ? " " + name + unit : "");
}
const seconds = (v, tidy) => scaled(v, "s", [[1e-6, "µ"], [1e-3, "m"], [1, ""]], tidy);
const plain = (v, tidy) => scaled(v, "", [[1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"]], tidy);
const count = v => (v >= 10000 ? plain(v) : v === null ? DASH : String(Math.round(v)));
const amount = v => (v !== null && v < 100 ? String(Math.round(v * 10) / 10) : plain(v));
const perSecond = v => (v === null ? DASH : plain(v) + "/s");
const bytesPerSecond = (v, tidy) =>
  scaled(v, "B/s", [[1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"], [1e12, "T"]], tidy);
const percent = v => (v === null || v === undefined ? DASH : (v * 100).toFixed(v > 0 && v < 0.0995 ? 1 : 0) + " %");

function duration(s) {
  if (s < 60) return Math.floor(s) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor(s % 86400 / 3600) + " h";
}

/* ---- elements */

const byId = id => document.getElementById(id);

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function draw(tag, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (parent) parent.append(node);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/* Children of `parent` by key, made where they are missing, in the order of `items`. */
function reconcile(parent, items, keyOf, create, update) {
  const known = parent.known || (parent.known = new Map());
  const seen = new Set();
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (seen.has(key)) continue;
    seen.add(key);
    let node = known.get(key);
    if (!node) known.set(key, node = create(item));
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    update(node, item);
  }
  for (const [key, node] of known)
    if (!seen.has(key)) { node.remove(); known.delete(key); }
}

/* ---- figures */

const FIGURES = [
  ["Time to first token", s => [seconds(s.ttft_s.p50), "p99 " + seconds(s.ttft_s.p99)]],
  ["Time per output token", s => [seconds(s.tpot_s.p50), "p99 " + seconds(s.tpot_s.p99)]],
  ["Output tokens", s => [perSecond(s.rates_per_s.generated_tokens), "in " + perSecond(s.rates_per_s.prompt_tokens)]],
  ["Requests", s => [perSecond(s.rates_per_s.requests), count(running(s)) + " running"]],
  ["Queue", s => [count(s.queue.waiting), "of " + count(s.queue.capacity) + ", " + count(sheds(s)) + " shed"]],
  ["KV in use", s => [percent(s.roles.decode.kv_mean), "fullest rank " + percent(s.roles.decode.kv_max)]],
  ["Failed", s => [count(s.totals.failed), count(s.totals.retries) + " attempts repeated"]],
  ["Prompt tokens cached", s => [percent(s.prefix_hit_rate), count(s.totals.cached_tokens) + " in all"]],
];

function running(status) {
  const states = status.requests.states;
  return states.reserving + states.prefilling + states.decoding;
}

function sheds(status) {
  return status.totals.shed_queue + status.totals.shed_tenant + status.totals.shed_slo;
}

function showFigures(status) {
  const list = byId("figures");
  FIGURES.forEach(([name, read], i) => {
    let box = list.children[i];
    if (!box) {
      box = make("div");
      box.append(make("dt", "", name), make("dd"), make("dd", "note"));
      list.append(box);
    }
    const [value, note] = read(status);
    say(box.children[1], value);
    say(box.children[2], note);
  });
}

/* ---- the map */

const MARKS = {ready: "●", connecting: "◌", silent: "◐", draining: "▽", lost: "✕", none: "◌"};
const SEGMENTS = ["ready", "reserved", "quarantined"];

function createTile() {
  const tile = make("li", "tile");
  const name = make("p", "name"), kv = make("p"), load = make("p", "more"), rest = make("p", "more");
  const bar = make("div", "bar");
  name.append(make("span"), make("span", "state"));
  for (const line of [kv, load, rest]) line.append(make("span"), make("span"));
  for (const segment of SEGMENTS) bar.append(make("i", segment));
  bar.append(make("i", "projected"));
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  tile.append(name, bar, kv, load, rest);
  tile.parts = {name, bar, kv, load, rest};
  return tile;
}

function pair(line, left, right) {
  say(line.children[0], left);
  say(line.children[1], right);
}

function stateText(worker) {
  const open = worker.breakers_open > 0 ? " · breaker open" : "";
  if (worker.ranks === 1) return MARKS[worker.state] + " " + worker.state + open;
  return MARKS[worker.state] + " " + worker.states[worker.state] + "/" + worker.ranks + " " + worker.state + open;
}

function setBar(bar, worker) {
  const pages = worker.pages, total = pages.total || 1;
  const used = worker.state === "lost" ? 0 : 1 - pages.free / total;
  SEGMENTS.forEach((segment, i) =>
    bar.children[i].style.setProperty("width", 100 * pages[segment] / total + "%"));
  const projected = Math.min(100, 100 * pages.projected / total);
  bar.children[3].style.setProperty("left", "calc(" + projected + "% - 2px)");
  bar.children[3].hidden = pages.projected === 0;
  bar.setAttribute("aria-valuenow", (100 * used).toFixed(1));
  bar.setAttribute("aria-label", "KV pages of " + worker.id + " in use");
}

/* A prefill worker's reports are too rare to show what it does now; the router knows. */
function loadOf(worker) {
  return worker.role === "prefill" ? [count(worker.requests) + " running", "ahead " + seconds(worker.ahead_s)]
                                   : [count(worker.running) + " running", count(worker.waiting) + " waiting"];
}

function restOf(worker) {
  if (worker.state === "lost") return [worker.why_lost || "lost", ""];
  if (worker.ranks > 1) return ["fullest rank " + percent(worker.kv_max), worker.ranks + " ranks"];
  const late = worker.heartbeat_age_s > 3;
  return [worker.transport || "", late ? "heard " + duration(worker.heartbeat_age_s) + " ago" : ""];
}

function updateTile(tile, worker) {
  const {name, bar, kv, load, rest} = tile.parts, pages = worker.pages;
  const label = worker.id || "all others";
  tile.dataset.state = worker.state;
  tile.toggleAttribute("data-warn", worker.breakers_open > 0);
  tile.title = label;
  pair(name, label, stateText(worker));
  setBar(bar, worker);
  const used = pages.total - pages.free;
  pair(kv, worker.state === "lost" ? "KV " + DASH : "KV " + percent(pages.total ? used / pages.total : null),
       worker.state === "lost" ? "" : count(used) + " / " + count(pages.total));
  pair(load, ...loadOf(worker));
  pair(rest, ...restOf(worker));
}

const inOrder = new Intl.Collator("en", {numeric: true}).compare;

/* Ranks of a group stand in one box; a worker of one rank, or a group as one tile, alone. */
function boxes(workers) {
  const byName = new Map();
  for (const worker of workers) {
    const name = worker.group ? worker.group.name : worker.id;
    const key = (worker.group ? "group " : "worker ") + name;
    if (!byName.has(key)) byName.set(key, {key, name, group: Boolean(worker.group), workers: []});
    byName.get(key).workers.push(worker);
  }
  const all = [...byName.values()];
  for (const box of all)
    box.workers.sort((a, b) => (a.group ? a.group.rank - b.group.rank : 0) || inOrder(a.id, b.id));
  return all.sort((a, b) => inOrder(a.name, b.name));
}

function createBox(box) {
  if (!box.group) return createTile();
  const item = make("li", "group");
  item.append(make("p"), make("ul", "tiles"));
  return item;
}

function updateBox(node, box) {
  if (!box.group) return updateTile(node, box.workers[0]);
  const size = box.workers[0].group.size;
  say(node.children[0], box.name + " · group of " + size + (size === 1 ? " rank" : " ranks"));
  reconcile(node.children[1], box.workers, w => w.id, createTile, updateTile);
}

function showRole(status, role) {
  const workers = status.workers.filter(w => w.role === role), sum = status.roles[role];
  const list = byId(role);
  reconcile(list, boxes(workers), box => box.key, createBox, updateBox);
  byId(role + "-empty").hidden = workers.length > 0;
  list.hidden = workers.length === 0;
  const words = [sum.ranks + (sum.ranks === 1 ? " rank" : " ranks")];
  for (const state in sum.states) if (sum.states[state] > 0) words.push(sum.states[state] + " " + state);
  say(byId(role + "-sum"), sum.ranks ? words.join(" · ") : "");
}

function showMap(status) {
  document.querySelector(".map").classList.toggle("dense", status.workers.length > DENSE_TILES);
  showRole(status, "prefill");
  showRole(status, "decode");
  say(byId("flow-rate"), bytesPerSecond(status.rates_per_s.kv_bytes));
}

/* ---- charts */

const PERCENTILES = ["p50", "p90", "p99"];
const CHARTS = [
  {title: "Time to first token", format: seconds,
   series: PERCENTILES.map(p => ({key: "ttft_" + p + "_s", name: p, style: p}))},
  {title: "Time per output token", format: seconds,
   series: PERCENTILES.map(p => ({key: "tpot_" + p + "_s", name: p, style: p}))},
  {title: "Tokens per second", format: plain,
   series: [{key: "generated_tokens_s", name: "output", style: "a"}, {key: "prompt_tokens_s", name: "input", style: "b"}]},
  {title: "Requests", format: amount, atLeast: 4,
   series: [{key: "running", name: "running", style: "a"}, {key: "queued", name: "queued", style: "b"}]},
  {title: "KV pages in use, decode ranks", format: percent, atLeast: 0.05, atMost: 1,
   series: [{key: "kv_mean", name: "mean", style: "a"}, {key: "kv_max", name: "fullest", style: "b"}]},
  {title: "KV transfer", format: bytesPerSecond,
   series: [{key: "kv_bytes_s", name: "pushed", style: "a"}]},
];
const PLOT = {left: 64, right: 10, top: 8, bottom: 24};
const SPANS = [[60, 4], [120, 4], [180, 3], [300, 5], [600, 5]];   /* seconds, and their divisions */

function createChart(spec) {
  const figure = make("figure", "panel"), caption = make("figcaption"), legend = make("ul", "series");
  const svg = draw("svg", {class: "plot", role: "img"});
  caption.append(make("b", "", spec.title), legend);
  figure.append(caption, svg);
  const values = spec.series.map(series => {
    const item = make("li"), key = draw("svg", {viewBox: "0 0 18 8", "aria-hidden": "true"});
    draw("path", {d: "M1 4h16", class: "line " + series.style}, key);
    const value = make("span", "", DASH);
    item.append(key, series.name + " ", value);
    legend.append(item);
    return value;
  });
  const chart = {spec, svg, values, back: draw("g", {}, svg), at: null,
    cursor: draw("path", {class: "cursor"}, svg),
    lines: spec.series.map(series => draw("path", {class: "line " + series.style}, svg))};
  svg.addEventListener("pointermove", event => { chart.at = event.offsetX; drawChart(chart); });
  svg.addEventListener("pointerleave", () => { chart.at = null; drawChart(chart); });
  new ResizeObserver(() => drawChart(chart)).observe(svg);
  byId("charts").append(figure);
  return chart;
}

/* 1, 2 or 5 times a power of ten, so that `steps` of them reach `max`. */
function niceStep(max, steps) {
  const raw = max / steps, power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find(f => f * power >= raw * 0.999999);
}

function axis(spec, last, from) {
  let max = spec.atLeast || 0;
  for (const {key} of spec.series)
    past[key].forEach((v, i) => { if (v !== null && past.t_s[i] >= from && v > max) max = v; });
  if (spec.atMost && max > spec.atMost * 0.6) return {max: spec.atMost, step: spec.atMost / 4};
  if (max === 0) return {max: 1, step: 1, none: true};
  const step = niceStep(max, 4);
  return {max: Math.ceil(max / step - 1e-9) * step, step};
}

function drawGrid(chart, frame, y, [span, parts]) {
  chart.back.replaceChildren();
  for (let v = 0; v <= y.max * 1.0001; v += y.step) {
    const height = Math.round(frame.y(v)) + 0.5;
    draw("path", {class: "grid", d: `M${PLOT.left} ${height}H${frame.right}`}, chart.back);
    draw("text", {x: PLOT.left - 8, y: height + 4, "text-anchor": "end"}, chart.back).textContent =
      v === 0 ? "0" : y.none ? "" : chart.spec.format(v, true);
  }
  for (let i = 0; i <= parts; i++) {
    const ago = span * (1 - i / parts), x = PLOT.left + (frame.right - PLOT.left) * i / parts;
    draw("text", {x, y: frame.bottom + 17, "text-anchor": i === 0 ? "start" : i === parts ? "end" : "middle"},
         chart.back).textContent = ago === 0 ? "now" : span < 180 ? "−" + Math.round(ago) + " s" : "−" + Math.round(ago / 60) + " min";
  }
}

/* Gaps where nothing was measured; a lone point is a dot. */
function path(values, frame, from) {
  let d = "", pen = false;
  values.forEach((v, i) => {
    const t = past.t_s[i];
    if (v === null || t < from) { pen = false; return; }
    d += (pen ? "L" : "M") + frame.x(t).toFixed(1) + " " + frame.y(v).toFixed(1) + (pen ? "" : "h0");
    pen = true;
  });
  return d;
}

function nearest(frame, x) {
  let best = past.t_s.length - 1;
  past.t_s.forEach((t, i) => {
    if (Math.abs(frame.x(t) - x) < Math.abs(frame.x(past.t_s[best]) - x)) best = i;
  });
  return best;
}

function drawChart(chart) {
  const width = chart.svg.clientWidth, height = chart.svg.clientHeight, n = past.t_s.length;
  if (width === 0) return;
  const last = n ? past.t_s[n - 1] : 0, kept = n ? last - past.t_s[0] : 0;
  const scale = SPANS.find(([s]) => s >= kept) || SPANS[SPANS.length - 1];
  const span = scale[0], from = last - span;
  const y = axis(chart.spec, last, from);
  const right = width - PLOT.right, bottom = height - PLOT.bottom;
  const frame = {right, bottom, x: t => right - (last - t) / span * (right - PLOT.left),
                 y: v => bottom - v / y.max * (bottom - PLOT.top)};
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawGrid(chart, frame, y, scale);
  const shown = chart.at === null || n === 0 ? n - 1 : nearest(frame, chart.at);
  chart.spec.series.forEach(({key}, i) => {
    chart.lines[i].setAttribute("d", path(past[key], frame, from));
    say(chart.values[i], n ? chart.spec.format(past[key][shown]) : DASH);
  });
  chart.cursor.style.setProperty("visibility", chart.at === null || n === 0 ? "hidden" : "visible");
  if (n) chart.cursor.setAttribute("d", `M${frame.x(past.t_s[shown]).toFixed(1)} ${PLOT.top}V${bottom}`);
  chart.svg.setAttribute("aria-label", chart.spec.title + " over " + duration(span) + ": " +
    chart.spec.series.map((s, i) => s.name + " " + chart.values[i].textContent).join(", "));
}

/* ---- history */

const KEYS = ["t_s", ...CHARTS.flatMap(chart => chart.series.map(series => series.key))];
const past = {router: "", last: 0};
for (const key of KEYS) past[key] = [];

function takeHistory(status) {
  const news = status.history;
  const follows = past.router === status.router && news.first === past.last + 1;
  for (const key of KEYS) {
    if (!follows) past[key] = [];
    past[key].push(...news[key]);
    past[key].splice(0, Math.max(0, past[key].length - news.points));
  }
  past.router = status.router;
  past.last = news.last;
}

/* ---- stages and requests */

const STAGES = ["tokenize", "queue", "earlier_attempts", "reserve", "prefill_queue", "prefill_compute",
                "delivery", "local_prefill", "visible_transfer", "decode_queue", "first_step"];
const SECOND = STAGES.indexOf("visible_transfer");   /* from here on, until the second token */

function createStage(key) {
  const row = make("li"), track = make("span", "track");
  track.append(make("i", STAGES.indexOf(key) < SECOND ? "" : "second"));
  row.append(make("span", "", key.replace("_", " ")), track, make("b", "", DASH));
  return row;
}

/* Each bar begins where the one before ends. */
function showStages(status) {
  const stages = status.stages_s, total = STAGES.reduce((sum, key) => sum + (stages[key] || 0), 0);
  let begin = 0;
  reconcile(byId("stages"), STAGES, key => key, createStage, (row, key) => {
    const bar = row.children[1].firstElementChild, share = total ? 100 * stages[key] / total : 0;
    bar.style.setProperty("left", begin + "%");
    bar.style.setProperty("width", share + "%");
    bar.hidden = !share;
    begin += share;
    say(row.children[2], seconds(stages[key]));
  });
  say(byId("stages-note"), "mean of " + count(status.ttft_s.count) + " requests, last minute");
}

function createRow() {
  const row = make("tr");
  for (let i = 0; i < 8; i++) row.append(make("td", i >= 4 ? "n" : ""));
  return row;
}

function updateRow(row, request) {
  [request.id, request.state, request.prefill_worker || DASH, request.decode_worker || DASH,
   count(request.prompt_tokens), count(request.generated_tokens), count(request.attempt),
   seconds(request.age_s)].forEach((text, i) => say(row.children[i], text));
}

function showRequests(status) {
  const open = status.requests.open.slice().sort((a, b) => b.age_s - a.age_s);
  const all = running(status) + status.requests.states.queued;
  reconcile(byId("requests"), open, r => r.id, createRow, updateRow);
  byId("requests-empty").hidden = open.length > 0;
  say(byId("requests-note"), (all > open.length ? open.length + " of " : "") + count(all) + " open · " +
    count(status.totals.finished) + " finished · " + count(status.totals.failed) + " failed · " +
    count(status.totals.retries) + " retried");
}

/* ---- the whole */

let charts;

function setLink(state, text) {
  const pill = byId("link");
  if (pill.dataset.state !== state) pill.dataset.state = state;
  say(pill, text);
  document.body.classList.toggle("stale", state === "gone");
}

function readiness(status) {
  if (status.draining) return ["busy", "draining"];
  for (const role of ["prefill", "decode"])
    if (status.roles[role].states.ready === 0) return ["busy", "no " + role + " worker"];
  return ["live", "live"];
}

function show(status) {
  document.title = status.model + " · Baton";
  say(byId("model"), status.model);
  say(byId("uptime"), "up " + duration(status.uptime_s));
  takeHistory(status);
  showFigures(status);
  showMap(status);
  charts.forEach(drawChart);
  showStages(status);
  showRequests(status);
  setLink(...readiness(status));
}

/* ---- asking */

let failures = 0, heardAt = 0, timer = 0, asking = false;

function later(ms) {
  clearTimeout(timer);
  timer = setTimeout(ask, ms);
}

function wantKey(refused) {
  const form = byId("key-form");
  say(byId("key-error"), refused ? "The router does not know this key." : "");
  form.hidden = false;
  setLink("busy", "API key needed");
}

function lost() {
  failures++;
  const since = heardAt ? ", last heard " + duration((Date.now() - heardAt) / 1000) + " ago" : "";
  setLink("gone", "disconnected" + since);
  later(Math.min(SLOWEST_POLL_MS, POLL_MS * 2 ** Math.min(failures - 1, 5)));
}

async function ask() {
  if (document.hidden || asking) return;
  asking = true;
  try {
    const key = sessionStorage.getItem(KEY);
    const response = await fetch("status?after=" + past.last, {
      cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS),
      headers: key ? {Authorization: "Bearer " + key} : {}});
    if (response.status === 401) return wantKey(Boolean(key));
    if (!response.ok) throw new Error("status " + response.status);
    const status = await response.json();
    byId("key-form").hidden = true;
    failures = 0;
    heardAt = Date.now();
    show(status);
    later(status.detail === "rank" ? POLL_MS : LARGE_POLL_MS);
  } catch (error) {
    lost();
  } finally {
    asking = false;
  }
}

charts = CHARTS.map(createChart);
byId("key-form").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key").value = "";
  ask();
});
document.addEventListener("visibilitychange", ask);
ask();
