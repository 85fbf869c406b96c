#!/usr/bin/env python3
"""Where the time of a request goes: the trace that a client began goes through router, prefill and
decode worker, `batonctl trace` gives it as Chrome trace JSON, its spans nest and add up, and in it
layers are seen to be pushed while later ones compute. The stages of the time to the first token add
up to it but for what is named."""
import json
import os
import random
import sys
import time

import baton_client
import cluster
import openai_http

SLACK_US = 1                # of doubles
LAYERS = json.loads((cluster.MODEL / "config.json").read_text())["num_hidden_layers"]


def prompt(r, tokens):
    return [r.randrange(10, 400) for _ in range(tokens)]


def ask(c, body, headers=None):
    begin = time.monotonic()
    status, head, answer = openai_http.request(c.http, "POST", "/v1/completions",
                                               {"temperature": 0, "ignore_eos": True, **body},
                                               {"X-Baton-Timing": "1", **(headers or {})})
    assert status == 200, (status, answer)
    return {k.lower(): v for k, v in head.items()}, {**answer, "asked": begin}


def trace(c, *args):
    """The spans of the JSON, checked for its form."""
    document = json.loads(c.ctl("trace", *args).stdout)
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}, set(document)
    processes, rows, spans = {}, {}, []
    for event in document["traceEvents"]:
        assert event["ph"] in ("M", "X"), event
        if event["ph"] == "M":
            names = processes if event["name"] == "process_name" else rows
            key = event["pid"] if names is processes else (event["pid"], event["tid"])
            assert key not in names and event["args"]["name"], event
            names[key] = event["args"]["name"]
        else:
            assert event["ts"] >= 0 and event["dur"] >= 0, event
            assert isinstance(event["pid"], int) and isinstance(event["tid"], int), event
            event["process"] = processes[event["pid"]]
            event["row"] = rows[event["pid"], event["tid"]]
            event["end"] = event["ts"] + event["dur"]
            spans.append(event)
    check_rows(spans)
    return spans


def whole_trace(c, name):
    """What the prefill worker says of its times may come last."""
    def whole():
        spans = trace(c, name)
        return spans if any(s["name"] == "compute" for s in spans) else None
    return cluster.until(whole, 10, "the times of prefill")


def check_rows(spans):
    """What viewers want: in one row a span is inside another, or apart from it."""
    by_row = {}
    for span in spans:
        by_row.setdefault((span["pid"], span["tid"]), []).append(span)
    for row in by_row.values():
        row.sort(key=lambda s: (s["ts"], -s["dur"]))
        open_until = []
        for span in row:
            while open_until and open_until[-1] <= span["ts"] + SLACK_US:
                open_until.pop()
            assert not open_until or span["end"] <= open_until[-1] + SLACK_US, (span, open_until)
            open_until.append(span["end"])


def one(spans, name):
    found = [s for s in spans if s["name"] == name]
    assert len(found) == 1, (name, found)
    return found[0]


def check_coarse(spans, answer):
    timing = answer["baton"]
    late = timing["kv_bytes"] == 0      # the last token overtook what prefill says of its times
    names = ("tokenize", "queue", "reserve", "prefill", "decode")
    request, parts = one(spans, "request"), [one(spans, name) for name in names]
    end = request["ts"]
    for part in parts:          # one begins where the one before ended, and all are in the request
        assert abs(part["ts"] - end) <= SLACK_US, (part, end)
        end = part["end"]
    assert end <= request["end"] + SLACK_US
    ttft_us = sum(p["dur"] for p in parts[:4])
    assert abs(ttft_us / 1e3 - timing["ttft_ms"]) < 0.01, (ttft_us, timing)
    # The router looks at its clock for the answer first, then for the trace, and both before now.
    passed_ms = 1e3 * (time.monotonic() - answer["asked"])
    assert timing["e2e_ms"] - 0.01 <= request["dur"] / 1e3 <= passed_ms, (request, timing, passed_ms)
    compute, visible = one(spans, "compute"), one(spans, "visible transfer")
    assert late or abs(compute["dur"] / 1e3 - timing["prefill_compute_ms"]) < 0.01
    assert abs(visible["ts"] - compute["end"]) <= SLACK_US
    assert compute["process"] == timing["prefill_worker"]
    first = one(spans, "first step")
    assert first["process"] == timing["decode_worker"]
    assert abs(one(spans, "decode queue")["end"] - first["ts"]) <= SLACK_US
    # Of other processes by their wall clocks, which on one machine are one, but may be set while
    # the test runs: an order, to a second.
    assert one(spans, "prefill")["ts"] - 1e6 < compute["ts"] < one(spans, "prefill")["end"] + 1e6
    assert first["ts"] > compute["end"] - 1e6
    return parts[3]["dur"] - compute["dur"]


def layer_spans(spans, kind):
    return {(s["args"]["chunk"], s["args"]["layer"]): s for s in spans
            if s["name"].startswith(kind + " ")}


def check_layers(spans, chunks, layers):
    """Whether most layers went out while later ones computed."""
    computed, pushed = layer_spans(spans, "layer"), layer_spans(spans, "push")
    want = {(chunk, layer) for chunk in range(chunks) for layer in range(layers)}
    assert set(computed) == set(pushed) == want, (len(computed), len(pushed), chunks, layers)
    compute = one(spans, "compute")
    end = compute["ts"]
    for key in sorted(want):            # one after the other, inside of compute
        assert computed[key]["ts"] >= end - SLACK_US, key
        end = computed[key]["end"]
        assert pushed[key]["ts"] >= end - SLACK_US, key     # nothing goes before it is computed
        assert pushed[key]["args"]["bytes"] > 0
    assert end <= compute["end"] + SLACK_US
    bytes_pushed = sum(s["args"]["bytes"] for s in pushed.values())
    assert bytes_pushed == one(spans, "visible transfer")["args"]["kv_bytes"]
    inside = sum(pushed[key]["ts"] < end for key in want if key != max(want))
    return inside >= len(want) // 2


def check_w3c(c, r):
    trace_id, parent = f"{r.getrandbits(128) | 1:032x}", f"{r.getrandbits(64) | 1:016x}"
    head, answer = ask(c, {"prompt": prompt(r, 300), "max_tokens": 6},
                       {"traceparent": f"00-{trace_id}-{parent}-01"})
    version, answered, span, flags = head["traceresponse"].split("-")
    assert (version, answered, flags) == ("00", trace_id, "01") and span not in (parent, "0" * 16)
    assert answer["baton"]["trace_id"] == trace_id
    spans = whole_trace(c, trace_id)
    request = one(spans, "request")
    assert request["args"]["trace_id"] == trace_id
    assert str(request["args"]["parent"]).zfill(16) == parent, (request, parent)
    check_coarse(spans, answer)
    steps = [s for s in spans if s["name"] == "step"]
    assert sum(s["args"]["tokens"] for s in steps) == 5, steps
    # Without a header, and with one that is none: traces of their own.
    for wrong in (None, f"00-{trace_id}-{'0' * 16}-01", f"00-{trace_id.upper()}-{parent}-01", "x"):
        head, answer = ask(c, {"prompt": "x", "max_tokens": 2},
                           {"traceparent": wrong} if wrong else None)
        own = head["traceresponse"].split("-")[1]
        assert own not in (trace_id, "0" * 32) and answer["baton"]["trace_id"] == own
        spans = whole_trace(c, own)
        check_coarse(spans, answer)
        assert not layer_spans(spans, "layer")      # nobody asked for more


def check_rpc(c, r):
    trace_id = f"{r.getrandbits(128) | 1:032x}"
    with baton_client.Client(c.rpc) as client:
        *_, last = client.generate(prompt="x", max_tokens=3, ignore_eos=True, request_id="by-rpc",
                                   traceparent=f"00-{trace_id}-{7:016x}-01")
        assert last.timing.trace_id == trace_id and last.timing.request_id == "by-rpc", last
        router = baton_client.pb["router"]
        traces = client.call("baton.v1.Router/Trace", router.TraceRequest(request_id="by-rpc"),
                             router.TraceResponse).traces
    assert [t.trace_id for t in traces] == [trace_id], traces
    assert traces[0].client_request_id == "by-rpc" and len(traces[0].spans) > 5, traces


def check_overlap(c, r):
    def seen():
        head, answer = ask(c, {"prompt": prompt(r, 1900), "max_tokens": 3},
                           {"traceparent": f"00-{r.getrandbits(128) | 1:032x}-{1:016x}-01"})
        spans = whole_trace(c, head["traceresponse"].split("-")[1])
        check_coarse(spans, answer)
        return check_layers(spans, 4, LAYERS)
    cluster.until(seen, 60, "a prompt whose layers went out while later ones computed")


def stages_of(c):
    sums, counts = {}, {}
    _, _, page = openai_http.request(c.http, "GET", "/metrics")
    for line in page.splitlines():
        value = line.rsplit(" ", 1)[1]
        if line.startswith("baton_ttft_stage_seconds_"):
            stage = line.split('stage="')[1].split('"')[0]
            (sums if "_sum{" in line else counts if "_count{" in line else {})[stage] = float(value)
        elif line.startswith("vllm:time_to_first_token_seconds_sum"):
            ttft = float(value)
        elif line.startswith("vllm:time_to_first_token_seconds_count"):
            requests = int(value)
    return sums, counts, ttft, requests


def check_stages(c, r):
    """Of every request the stages cover the time to the first token, but for a rest."""
    rest = []
    for _ in range(12):
        head, answer = ask(c, {"prompt": prompt(r, 300), "max_tokens": 3})
        t = answer["baton"]
        assert t["attempts"] == 1 and t["request_id"] == head["x-request-id"], t
        assert t["reserve_ms"] > 0 and t["first_step_ms"] > 0 and t["decode_queue_ms"] >= 0, t
        # queue_ms is until the prefill worker got it: with reserve_ms inside
        assert t["reserve_ms"] <= t["queue_ms"] and t["queue_ms"] <= t["ttft_ms"], t
        covered = t["queue_ms"] + t["prefill_compute_ms"]
        rest.append(t["ttft_ms"] - covered)
        assert rest[-1] >= -0.01, t
        assert t["first_step_ms"] + t["decode_queue_ms"] <= t["e2e_ms"], t
    print(f"not covered, ms: median {sorted(rest)[6]:.2f}")
    names = ("tokenize", "queue", "earlier_attempts", "reserve", "prefill_queue", "prefill_compute",
             "delivery", "local_prefill")
    def told():
        sums, counts, ttft, requests = stages_of(c)
        return counts["delivery"] == requests and (sums, counts, ttft, requests)
    sums, counts, ttft, requests = cluster.until(told, 10, "what prefill says of all")
    total = sum(sums[name] for name in names)
    assert abs(total - ttft) < 1e-6 * requests, (sums, ttft)
    for name in ("tokenize", "queue", "reserve", "prefill_compute", "delivery", "visible_transfer",
                 "decode_queue", "first_step"):
        assert counts[name] == requests, (name, counts, requests)
    assert counts["earlier_attempts"] == counts["local_prefill"] == 0, counts


def check_verb(c, r):
    for _ in range(3):
        head, _ = ask(c, {"prompt": "x", "max_tokens": 2})
    spans = trace(c, "--last", "3")
    assert len({s["args"]["trace_id"] for s in spans}) == 3
    own = head["traceresponse"].split("-")[1]
    assert {s["args"]["trace_id"] for s in trace(c)} == {own}
    ask(c, {"prompt": "x", "max_tokens": 2}, {"X-Request-Id": "named-7"})
    assert one(trace(c, "named-7"), "request")["args"]["request"] == "named-7"
    table = c.ctl("trace", "--output", "table", own).stdout
    assert own in table and "first step" in table and "visible transfer" in table, table
    path = os.path.join(c.dir, "trace.json")
    assert c.ctl("trace", "--file", path, own).stdout == ""
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["traceEvents"]
    missing = c.ctl("trace", "0" * 32, check=False)
    assert missing.returncode == 1 and "remembers no such request" in missing.stderr, missing
    assert c.ctl("trace", "a", "b", check=False).returncode == 2


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20260131"))
    print(f"seed {seed}")
    r = random.Random(seed)
    with cluster.Cluster(router_args="--trace-sample 0",
                         prefill_args="--layerwise-threshold 100 --chunked-prefill-size 512") as c:
        check_w3c(c, r)
        check_rpc(c, r)
        check_overlap(c, r)
        check_stages(c, r)
        check_verb(c, r)
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
