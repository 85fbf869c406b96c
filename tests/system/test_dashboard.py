"""The dashboard in a headless Chromium, and the JSON behind it, over a cluster that works: what the
page shows is what the cluster does, it asks nobody else, and no name of anybody becomes markup.
"""
import json
import re
import threading
import time
import urllib.error
import urllib.request

import chromium
import cluster

MODEL = "<img src=x onerror=window.hostile=1>\"&'</title><script>window.hostile=2</script>"
STATES = ["connecting", "ready", "silent", "draining", "lost"]
STAGES = ["tokenize", "queue", "earlier_attempts", "reserve", "prefill_queue", "prefill_compute",
          "delivery", "local_prefill", "visible_transfer", "decode_queue", "first_step"]
SERIES = ["t_s", "requests_s", "shed_s", "prompt_tokens_s", "generated_tokens_s", "kv_bytes_s",
          "queued", "running", "kv_mean", "kv_max", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s",
          "tpot_p50_s", "tpot_p90_s", "tpot_p99_s"]
TICK = r"|now|−\d+ (s|min)|\d{1,3}(\.\d{1,2})?( ?(µs|ms|s|[kMG]|[kMGT]?B/s|%))?"
NUMBER, MAYBE = (int, float), (int, float, type(None))

SUM = {"ranks": int, "states": {state: int for state in STATES}, "state": str,
       "breakers_open": int, "running": int, "waiting": int, "waiting_tokens": int,
       "requests": int, "kv_mean": MAYBE, "kv_max": MAYBE, "ahead_s": NUMBER,
       "heartbeat_age_s": MAYBE,
       "pages": {name: int for name in ("total", "free", "reserved", "ready", "quarantined",
                                        "projected")}}
RANK = {**SUM, "id": str, "role": str, "breaker": str, "why_lost": str, "transport": str,
        "max_running": int, "group": (dict, type(None))}
SPREAD = {"count": int, "p50": MAYBE, "p90": MAYBE, "p99": MAYBE}
STATUS = {
    "router": str, "uptime_s": NUMBER, "ready": bool, "model": str, "draining": bool,
    "queue": {"waiting": int, "capacity": int}, "window_s": int, "detail": str,
    "rates_per_s": {name: NUMBER for name in ("requests", "shed", "prompt_tokens",
                                              "generated_tokens", "kv_bytes")},
    "ttft_s": SPREAD, "tpot_s": SPREAD, "stages_s": {name: MAYBE for name in STAGES},
    "requests": {"states": {name: int for name in ("queued", "reserving", "prefilling",
                                                   "decoding")},
                 "open": [{"id": str, "state": str, "attempt": int, "prompt_tokens": int,
                           "generated_tokens": int, "age_s": NUMBER, "prefill_worker": str,
                           "decode_worker": str}]},
    "totals": {name: int for name in ("requests", "finished", "failed", "shed_queue",
                                      "shed_tenant", "shed_slo", "retries", "preemptions",
                                      "refusals", "prompt_tokens", "cached_tokens",
                                      "generated_tokens", "kv_bytes")},
    "prefix_hit_rate": MAYBE, "roles": {"prefill": SUM, "decode": SUM}, "workers": [RANK],
    "history": {"step_s": int, "points": int, "first": int, "last": int,
                **{name: [MAYBE] for name in SERIES}},
}

# Contrast of every text with what is behind it, as WCAG 2 defines it: what falls short of AA.
CONTRAST = """(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                       return .2126 * r + .7152 * g + .0722 * b; };
  const behind = node => { for (; node; node = node.parentElement) {
    const c = parse(getComputedStyle(node).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255]; };
  const short = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.getClientRects().length || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName)) continue;
    const style = getComputedStyle(node), color = parse(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(color.slice(0, 3)), light(behind(node).slice(0, 3))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) short.push(node.tagName + "." + node.className + " " + ratio.toFixed(2) + " " + node.textContent);
  }
  return short;
})()"""
USED = ("Math.max(...[...document.querySelectorAll('#decode .bar')]"
        ".map(bar => Number(bar.getAttribute('aria-valuenow'))))")
TILES = ("[...document.querySelectorAll('.tile')]"
         ".map(t => t.querySelector('.name').textContent + ' ' + t.dataset.state)")
LINES = "[...document.querySelectorAll('.plot .line')].map(p => p.getAttribute('d'))"


def check(value, form, where="status"):
    """JSON of this form, with every field and no other."""
    if isinstance(form, dict):
        assert isinstance(value, dict) and set(value) == set(form), \
            f"{where}: {set(value) ^ set(form)}"
        for name in form:
            check(value[name], form[name], f"{where}.{name}")
    elif isinstance(form, list):
        assert isinstance(value, list), where
        for item in value:
            check(item, form[0], where + "[]")
    else:
        good = isinstance(value, form) and (form is bool or not isinstance(value, bool))
        assert good, f"{where} is {value!r}"


class Load:
    """Requests one after the other on a few threads."""

    def __init__(self, base, threads=3):
        self.base, self.over, self.error = base, threading.Event(), None
        self.begun, self.longest_s = {}, 0
        self.threads = [threading.Thread(target=self.run) for _ in range(threads)]

    def run(self):
        body = json.dumps({"prompt": "Once upon a time there was a fox. " * 12, "max_tokens": 400,
                           "ignore_eos": True}).encode()
        try:
            while not self.over.is_set():
                self.begun[threading.get_ident()] = time.monotonic()
                urllib.request.urlopen(urllib.request.Request(
                    self.base + "/v1/completions", body, {"Content-Type": "application/json"}),
                    timeout=300).read()
                self.longest_s = self.longest()
        except OSError as error:
            self.error = error

    def longest(self):
        """No request so far has taken longer than so many seconds."""
        return max(self.longest_s, time.monotonic() - min(self.begun.values()))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.over.set()
        for thread in self.threads:
            thread.join()
        assert self.error is None or kind, self.error


def get(base, path="/status"):
    with urllib.request.urlopen(base + path, timeout=60) as answer:
        return json.load(answer)


def wait(browser, script, what, seconds=30):
    return cluster.until(lambda: browser.run(script), seconds, what)


def test_status(base, load):
    cluster.until(lambda: get(base)["ready"], 30, "the router is ready")
    status = get(base)
    check(status, STATUS)
    assert status["model"] == MODEL and status["detail"] == "rank"
    assert sorted(w["id"] for w in status["workers"]) == ["decode-0", "decode-1", "prefill-0"]
    assert status["roles"]["decode"]["ranks"] == 2
    history = status["history"]
    assert {len(history[name]) for name in SERIES} == {history["last"] - history["first"] + 1}
    assert history["t_s"] == sorted(history["t_s"])
    assert status["ttft_s"]["p50"] <= status["ttft_s"]["p90"] <= status["ttft_s"]["p99"]
    first = sum(status["stages_s"][name] for name in STAGES[:8])
    # Means of what a request goes through before its first token.
    assert 0 < first < 2 * load.longest(), status["stages_s"]
    later = get(base, f"/status?after={history['last']}")["history"]
    assert later["first"] == history["last"] + 1
    assert len(later["t_s"]) == later["last"] - later["first"] + 1
    assert len(get(base, "/status?offset=1")["workers"]) == 2
    assert get(base, "/status?offset=70000")["workers"] == []
    for bad in ("after=x", "offset=-1", "after=99999999999999999999"):
        try:
            get(base, "/status?" + bad)
            raise AssertionError(bad)
        except urllib.error.HTTPError as error:
            assert error.code == 400
    print("status: every field has its type, the history goes on where it was left")


def test_page(browser):
    names = wait(browser, f"(t => t.length === 3 && t.every(tile => tile.endsWith('ready')) && t)({TILES})",
                 "three tiles that are ready")
    for name in ("prefill-0", "decode-0", "decode-1"):
        assert any(name in tile for tile in names), names
    assert browser.run("document.getElementById('model').textContent") == MODEL
    assert browser.run("document.title").startswith(MODEL)
    assert browser.run("document.images.length + document.querySelectorAll('script').length") == 1
    assert browser.run("String(window.hostile)") == "undefined"
    wait(browser, USED + " > 0", "a KV bar that is not empty")
    wait(browser, LINES + ".filter(d => d.includes('L')).length >= 11", "lines in all charts", 60)
    wait(browser, "document.querySelectorAll('#requests tr').length > 0", "a request in the table")
    wait(browser, "parseFloat(document.querySelector('#figures dd').textContent) > 0", "a TTFT")
    ticks = browser.run("[...document.querySelectorAll('.plot text')].map(t => t.textContent)")
    assert len(ticks) > 50 and all(re.fullmatch(TICK, tick) for tick in ticks), ticks
    wait(browser, "document.getElementById('link').textContent === 'live'", "live")
    print("page: tiles, bars, charts and requests show the cluster")


def test_looks(browser):
    for dark in (False, True):
        for width in (320, 390, 768, 1280, 2560):
            browser.look(width, 900, dark)
            wait(browser, f"innerWidth === {width} && matchMedia('(prefers-color-scheme: dark)')"
                 f".matches === {str(dark).lower()}", "the look")
            wide = browser.run("document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} wide on {width}"
        short = browser.run(CONTRAST)
        assert not short, f"{'dark' if dark else 'light'}: {short}"
    browser.look(1280, 900)
    named = {"meter", "region", "heading", "image"}
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    seen = {}
    for node in nodes:
        role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value")
        if role in named and not node.get("ignored"):
            seen.setdefault(role, []).append(name)
    for role in named:
        assert seen.get(role) and all(seen[role]), f"{role}: {seen.get(role)}"
    assert any("decode-1" in name for name in seen["meter"])
    print("looks: narrow to wide, light and dark, with contrast and accessible names")


def test_history_survives_reload(browser):
    before = browser.run("past.last")
    browser.open(browser.run("location.href"))
    wait(browser, f"typeof past === 'object' && past.last >= {before} && past.t_s.length >= 3",
         "the history after a reload")
    print("reload: the history is there at once")


def test_key(browser):
    """One refusal; then the key that was typed goes along, and the form goes away."""
    browser.send("Fetch.enable", patterns=[{"urlPattern": "*/status*"}])
    paused = cluster.until(lambda: browser.run("0") == 0 and browser.params("Fetch.requestPaused"),
                           30, "a request of the page")[0]
    browser.send("Fetch.fulfillRequest", requestId=paused["requestId"], responseCode=401)
    browser.send("Fetch.disable")
    wait(browser, "!document.getElementById('key-form').hidden", "the form")
    browser.events.clear()
    browser.run("document.getElementById('key').value = 'sk-of-the-test',"
                "document.querySelector('#key-form button').click()")
    wait(browser, "document.getElementById('key-form').hidden", "the page behind the form")
    sent = [p["request"] for p in browser.params("Network.requestWillBeSent")]
    assert sent and sent[0]["headers"].get("Authorization") == "Bearer sk-of-the-test", sent
    assert browser.run("document.getElementById('key').value") == ""
    print("key: asked for, sent, not shown")


def test_disconnected(browser):
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.send("Network.emulateNetworkConditions", offline=True, **offline)
    wait(browser, "document.body.classList.contains('stale') &&"
         "document.getElementById('link').textContent.startsWith('disconnected')", "disconnected")
    browser.send("Network.emulateNetworkConditions", offline=False, **offline)
    wait(browser, "!document.body.classList.contains('stale')", "connected again")
    print("network: a page that hears nothing says so")


def test_lost(browser, c):
    c.kill("decode-1")
    wait(browser, TILES + ".some(t => t.includes('decode-1') && t.includes('lost'))", "lost", 60)
    assert "1 lost" in browser.run("document.getElementById('decode-sum').textContent")
    print("worker: killed, and shown as lost")


def check_silence(browser, base):
    """Nothing of the page went wrong, and it asked its own router alone."""
    urls = [p["request"]["url"] for p in browser.params("Network.requestWillBeSent")]
    assert urls and all(u.startswith((base + "/", "data:")) for u in urls), urls
    trouble = browser.params("Runtime.exceptionThrown") + browser.params("Runtime.consoleAPICalled")
    trouble += [p for p in browser.params("Log.entryAdded") if p["entry"]["level"] == "error"]
    assert not trouble, trouble


def test_policy(browser):
    """The policy is real: this page can reach no other origin, and runs no script but its own."""
    refused = browser.run("""new Promise(done => {
      const seen = new Set();
      document.addEventListener("securitypolicyviolation", event => {
        seen.add(event.effectiveDirective.replace("-elem", "").replace("-attr", ""));
        if (seen.size === 3) done([...seen].sort());
      });
      fetch("http://localhost:9/").catch(() => 0);
      const script = document.createElement("script"), image = new Image();
      script.textContent = "window.hostile = 3";
      document.body.append(script);
      image.src = "http://localhost:9/x.png";
    })""")
    assert refused == ["connect-src", "img-src", "script-src"], refused
    assert browser.run("String(window.hostile)") == "undefined"
    print("policy: no other origin, no other script")


def main():
    if chromium.program() is None:
        cluster.skip("there is no chromium here: nothing of the dashboard is tested")
    with cluster.Cluster(prefill=1, decode=2, decode_args="--kv-pages 64",
                         served_model_name=MODEL) as c:
        base = c.http
        with chromium.Browser() as browser:
            browser.look(1280, 900)
            with Load(base) as load:
                browser.open(base + "/")
                test_page(browser)
                test_status(base, load)
                test_looks(browser)
                test_history_survives_reload(browser)
            check_silence(browser, base)
            test_lost(browser, c)
            check_silence(browser, base)
            test_key(browser)
            test_disconnected(browser)
            test_policy(browser)


if __name__ == "__main__":
    main()
