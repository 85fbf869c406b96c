"""API keys: who is let in, what tenants may use, and in which order they are served."""
import concurrent.futures
import hashlib
import json
import os
import signal
import sys
import tempfile

import baton_client
import cluster
import openai_http

KEYS = {"heavy": "sk-heavy-0123456789", "light": "sk-light-0123456789",
        "small": "sk-small-0123456789", "slow": "sk-slow-0123456789"}
BODY = {"prompt": "Once upon a time", "max_tokens": 3, "temperature": 0}
ROUNDS = 24


def tenants(**more):
    table = {
        "heavy": {"weight": 3},
        "light": {"weight": 1},
        "small": {"max_prompt_tokens": 6, "max_output_tokens": 5, "tokens_per_minute": 100},
        "slow": {"requests_per_minute": 2},
    }
    keys = {name: ["sha256:" + hashlib.sha256(key.encode()).hexdigest()]
            if name == "light" else [key] for name, key in KEYS.items()}
    listed = [{"name": name, "keys": keys[name], **fields} for name, fields in table.items()]
    return {"tenants": listed + [{"name": name, "keys": [key]} for name, key in more.items()]}


class Mount:
    """A directory as Kubernetes mounts secrets: the file is behind a link that is swapped."""

    def __init__(self, directory):
        self.directory, self.serial = directory, 0
        self.path = os.path.join(directory, "keys.json")
        os.symlink("..data/keys.json", self.path)

    def write(self, text):
        self.serial += 1
        version = os.path.join(self.directory, f"..{self.serial}")
        os.mkdir(version)
        with open(os.path.join(version, "keys.json"), "w", encoding="utf-8") as file:
            file.write(text)
        os.symlink(f"..{self.serial}", os.path.join(self.directory, "..new"))
        os.rename(os.path.join(self.directory, "..new"), os.path.join(self.directory, "..data"))


def ask(c, key, path="/v1/completions", method="POST", body=None, **changes):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = ({**BODY, **changes} if body is None else body) if method == "POST" else None
    return openai_http.request(c.http, method, path, body, headers)


def metric(c, line):
    text = openai_http.request(c.http, "GET", "/metrics")[2]
    values = [row.rsplit(" ", 1)[1] for row in text.splitlines() if row.startswith(line + " ")]
    return float(values[0]) if values else 0.0


def check_who(c):
    for key in (None, "sk-heavy-0123456788", "sk-heavy-01234567890", "", "x" * 600):
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"),
                             ("POST", "/tokenize"), ("POST", "/v1/chat/completions")):
            status, headers, answer = ask(c, key, path, method)
            assert status == 401, (key, path, status, answer)
            assert headers["WWW-Authenticate"].startswith("Bearer"), headers
            assert answer["error"]["code"] == "invalid_api_key", answer
            assert not key or key not in json.dumps(answer)
    status, _, answer = openai_http.request(c.http, "POST", "/v1/completions", BODY,
                                            {"Authorization": "Basic " + KEYS["heavy"]})
    assert status == 401, answer
    for path in ("/health", "/ready", "/metrics"):
        assert ask(c, None, path, "GET")[0] == 200, path
    for name in ("heavy", "light"):
        status, _, answer = ask(c, KEYS[name])
        assert status == 200 and answer["usage"]["completion_tokens"] == 3, answer
    assert ask(c, KEYS["light"], "/v1/models", "GET")[0] == 200
    assert metric(c, 'baton_router_sheds_total{reason="unauthorised"}') == 21
    with baton_client.Client(c.rpc) as client:
        for key in ("", "sk-nobody-0123456789"):
            try:
                list(client.generate(prompt="Once", max_tokens=2, api_key=key))
                raise AssertionError("let in")
            except baton_client.RpcError as error:
                assert error.status == "unauthorised" and "api_key" in error.message, error
        text = "".join(e.text for e in client.generate(prompt="Once", max_tokens=2, temperature=0,
                                                       api_key=KEYS["heavy"]))
        assert text


def check_limits(c):
    status, _, answer = ask(c, KEYS["small"], max_tokens=6)
    assert status == 400 and "max_tokens is 6" in answer["error"]["message"], answer
    status, _, answer = ask(c, KEYS["small"], prompt=[5] * 7)
    assert status == 400 and "the prompt has 7 tokens" in answer["error"]["message"], answer
    # 100 tokens a minute: 6 and 5 at a time, all of them used.
    good = 0
    while True:
        status, headers, answer = ask(c, KEYS["small"], prompt=[5] * 6, max_tokens=5,
                                      ignore_eos=True)
        if status == 429:
            break
        assert status == 200 and answer["usage"]["total_tokens"] == 11, answer
        good += 1
        assert good < 60, "the limit is none"
    assert good >= 9, good
    assert answer["error"]["code"] == "rate_limit_exceeded", answer
    assert answer["error"]["type"] == "rate_limit_error"
    assert 1 <= int(headers["Retry-After"]) <= 60, headers
    for _ in range(2):
        assert ask(c, KEYS["slow"])[0] == 200
    status, headers, answer = ask(c, KEYS["slow"])
    if status == 200:                       # it took half a minute to get here
        status, headers, answer = ask(c, KEYS["slow"])
    assert status == 429 and "2 requests a minute" in answer["error"]["message"], answer
    assert 1 <= int(headers["Retry-After"]) <= 40, headers
    assert metric(c, 'baton_router_sheds_total{reason="request_rate"}') >= 1
    assert metric(c, 'baton_router_sheds_total{reason="token_rate"}') >= 1


def dispatched(c, names):
    """The requests of these names in the order in which they left the queue, by the router's clock."""
    router = baton_client.pb["router"]
    with baton_client.Client(c.rpc) as client:
        traces = client.call("baton.v1.Router/Trace", router.TraceRequest(last=len(names)),
                             router.TraceResponse).traces
    left = {}
    for trace in traces:
        queue, = [span for span in trace.spans if span.name == "queue"]
        left[trace.client_request_id] = queue.begin_unix_ns + queue.duration_ns
    assert set(left) == set(names), set(left) ^ set(names)
    return sorted(left, key=left.get)


def check_order(c):
    """While the prefill worker stands still both tenants queue; then three of one go to one of the
    other."""
    def one(name, serial):
        body = {**BODY, "prompt": [100 + serial] * 8, "max_tokens": 1}
        return openai_http.request(c.http, "POST", "/v1/completions", body, {
            "Authorization": f"Bearer {KEYS[name]}", "X-Request-Id": f"{name}-{serial}"}, 500)

    both = [(name, serial) for serial in range(ROUNDS) for name in ("light", "heavy")]
    cluster.stand_still(c.pids["prefill-0"])
    try:
        pool = concurrent.futures.ThreadPoolExecutor(len(both))
        jobs = [pool.submit(one, *which) for which in both]
        cluster.until(lambda: c.status()["queued"] >= 2 * ROUNDS - 4, 60, "all of them wait")
    finally:
        c.kill("prefill-0", signal.SIGCONT)
    for job in jobs:
        assert job.result()[0] == 200, job.result()
    order = [name.split("-")[0] for name in dispatched(c, [f"{n}-{i}" for n, i in both])]
    # Of the first 20 that are served 15 are heavy's; those that were taken before count, too.
    first = order[4:20].count("heavy")
    print("order", "".join(name[0] for name in order))
    assert 9 <= first <= 15, order
    assert order[-8:].count("light") >= 6, order


def check_reload(c, mount):
    new = "sk-new-0123456789"
    assert ask(c, new)[0] == 401
    mount.write(json.dumps(tenants(new=new)))
    cluster.until(lambda: ask(c, new)[0] == 200, 20, "the new key is let in")
    mount.write(json.dumps({"tenants": [{"name": "new", "keys": [new], "weight": 0}]}))
    bad = 'baton_router_keys_reloads_total{result="bad"}'
    cluster.until(lambda: metric(c, bad) == 1, 20, "the bad file is seen")
    assert ask(c, new)[0] == 200 and ask(c, KEYS["heavy"])[0] == 200
    mount.write(json.dumps(tenants()))
    cluster.until(lambda: ask(c, new)[0] == 401, 20, "the key is let in no more")
    log = c.logs()
    assert "tenants[0].weight must be an integer from 1 to 10000" in log
    for key in (*KEYS.values(), new):
        assert key not in log and key not in openai_http.request(c.http, "GET", "/metrics")[2]


def check_all_is_closed():
    key = "sk-only-0123456789"
    with cluster.Cluster(prefill=1, decode=1,
                         router_args=f"--api-key {key} --api-keys-for all") as c:
        for path, open_to_all in (("/health", True), ("/ready", True), ("/metrics", False),
                                  ("/status", False), ("/v1/models", False)):
            status = openai_http.request(c.http, "GET", path)[0]
            assert status == (200 if open_to_all else 401), (path, status)
            assert ask(c, key, path, "GET")[0] == 200, path


def check_slo(c_args):
    """An objective that can't be held refuses what comes, and says when to come again."""
    with cluster.Cluster(prefill=1, decode=1, router_args=c_args) as c:
        status, headers, answer = openai_http.request(c.http, "POST", "/v1/completions",
                                                      {**BODY, "prompt": [7] * 1000})
        assert status == 429 and "the first token is expected after" in answer["error"]["message"]
        assert int(headers["Retry-After"]) >= 1
        assert metric(c, 'baton_router_sheds_total{reason="slo"}') == 1


def main():
    with tempfile.TemporaryDirectory() as directory:
        mount = Mount(directory)
        mount.write(json.dumps(tenants()))
        args = f"--api-keys {mount.path} --prefill-depth 1ms --heartbeat 5000"
        with cluster.Cluster(prefill=1, decode=1, router_args=args) as c:
            check_who(c)
            check_limits(c)
            check_order(c)
            check_reload(c, mount)
    check_all_is_closed()
    check_slo("--slo-ttft 1us")
    print("keys are asked for, tenants kept to their limits, and served by their weights")


if __name__ == "__main__":
    sys.exit(main())
