#!/usr/bin/env python3
"""What Prometheus reads of a cluster: /metrics of the router and /metrics/workers are valid exposition
text, have the names that dashboards know, and count what was asked of the cluster."""
import collections
import os
import random
import re
import signal
import sys

import cluster
import openai_http

try:
    from prometheus_client import parser
except ImportError:
    cluster.skip("no python3-prometheus-client here")

KNOWN = {   # of the router, with its type
    "vllm:num_requests_running": "gauge", "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge", "vllm:cache_config_info": "gauge",
    "vllm:time_to_first_token_seconds": "histogram", "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram", "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_inference_time_seconds": "histogram", "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram", "vllm:request_params_max_tokens": "histogram",
    "vllm:prompt_tokens": "counter", "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter", "vllm:num_preemptions": "counter",
    "vllm:prefix_cache_queries": "counter", "vllm:prefix_cache_hits": "counter",
}
NAME = 'a"b\\c'     # of the model: what has to be escaped


def check_form(page):
    """What the format asks for and readers rely on, and the parser forgives."""
    seen, kind, series = set(), {}, set()
    current = None
    for line in page.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            if word == "TYPE":
                assert name not in kind, f"TYPE of {name} twice"
                kind[name] = rest
            assert name == current or name not in seen, f"{name} stands in two places"
            current = name
            seen.add(name)
            continue
        name = re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line)[0]
        base = name
        if kind.get(current) == "histogram":
            base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert base == current, f"{line!r} stands under {current}"
        assert line.rsplit(" ", 1)[0] not in series, f"{line!r} is there twice"
        series.add(line.rsplit(" ", 1)[0])


def check_histograms(families):
    for family in families.values():
        if family.type != "histogram":
            continue
        buckets, counts = collections.defaultdict(list), {}
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "le"}
            key = tuple(sorted(labels.items()))
            if sample.name.endswith("_bucket"):
                buckets[key].append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[key] = sample.value
        assert set(buckets) == set(counts), family.name
        for key, rows in buckets.items():
            assert rows == sorted(rows) and [v for _, v in rows] == sorted(v for _, v in rows), rows
            assert rows[-1] == (float("inf"), counts[key]), (family.name, rows)


def read(c, path):
    status, head, page = openai_http.request(c.http, "GET", path)
    assert status == 200 and head["Content-Type"].startswith("text/plain; version=0.0.4"), head
    check_form(page)
    families = {f.name: f for f in parser.text_string_to_metric_families(page)}
    check_histograms(families)
    return families


def value(families, name, sample=None, **labels):
    found = [s.value for s in families[name].samples if s.name == (sample or name)
             and all(s.labels.get(k) == v for k, v in labels.items())]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def ask(c, r, tokens, output):
    openai_http.post(c.http, "/v1/completions", {
        "prompt": [r.randrange(10, 400) for _ in range(tokens)], "max_tokens": output,
        "temperature": 0, "ignore_eos": True, "model": NAME})


def check_router(c, asked):
    families = read(c, "/metrics")
    for name, kind in KNOWN.items():
        assert families[name].type == kind, (name, kind)
        assert all(s.labels["model_name"] == NAME for s in families[name].samples), name
    assert value(families, "vllm:prompt_tokens", "vllm:prompt_tokens_total") == sum(
        tokens for tokens, _ in asked)
    assert value(families, "vllm:generation_tokens", "vllm:generation_tokens_total") == sum(
        output for _, output in asked)
    assert value(families, "vllm:request_params_max_tokens",
                 "vllm:request_params_max_tokens_sum") == sum(output for _, output in asked)
    assert value(families, "vllm:request_success", "vllm:request_success_total",
                 finished_reason="length") == len(asked)
    decisions = collections.Counter()
    for sample in families["baton_router_decisions"].samples:
        decisions[sample.labels["role"]] += sample.value
    assert decisions["decode"] == len(asked), decisions
    causes = {s.labels["cause"]: s.value for s in families["baton_router_retries"].samples}
    assert set(causes.values()) == {0} and {"worker_lost", "refused", "preempted"} < set(causes)
    states = collections.Counter()
    for sample in families["baton_rank_pages"].samples:
        states[sample.labels["worker"]] += sample.value
    pages = {w["worker"]: w["load"]["pages_total"] for w in c.status()["workers"]}
    assert states == pages, (states, pages)
    config = families["vllm:cache_config_info"].samples[0].labels
    assert int(config["num_gpu_blocks"]) == sum(v for k, v in pages.items() if "decode" in k)
    assert value(families, "baton_decode_kv_imbalance_ratio") >= 1
    assert value(families, "baton_decode_kv_utilisation_stddev") >= 0
    assert value(families, "baton_rank_kv_pushed_bytes", "baton_rank_kv_pushed_bytes_total",
                 worker="prefill-0") > 0


def check_workers(c, asked):
    def all_answer():
        families = read(c, "/metrics/workers")
        up = {s.labels["worker"]: s.value for s in families["baton_worker_scrape_up"].samples}
        return families if up == {"prefill-0": 1, "decode-0": 1, "decode-1": 1} else None
    families = cluster.until(all_answer, 30, "a page of all workers")
    up = {"prefill-0", "decode-0", "decode-1"}
    assert {s.value for s in families["baton_worker_scrape_rejected_lines"].samples} == {0}
    running = {s.labels["worker"] for s in families["vllm:num_requests_running"].samples}
    assert running == up, running
    tokens = sum(s.value for s in families["vllm:generation_tokens"].samples)
    assert tokens == sum(output for _, output in asked) - len(asked)    # token 0 is prefill's
    assert value(families, "vllm:prompt_tokens", "vllm:prompt_tokens_total",
                 worker="prefill-0") == sum(tokens for tokens, _ in asked)


def check_silent_worker(c):
    """One that does not answer takes nobody else's lines away."""
    c.kill("decode-1", signal.SIGSTOP)
    try:
        def silent():
            families = read(c, "/metrics/workers")
            up = {s.labels["worker"]: s.value for s in families["baton_worker_scrape_up"].samples}
            return up.get("decode-1") == 0 and up["decode-0"] == up["prefill-0"] == 1
        cluster.until(silent, 20, "a page without the worker that sleeps")
    finally:
        c.kill("decode-1", signal.SIGCONT)


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20260131"))
    print(f"seed {seed}")
    r = random.Random(seed)
    asked = [(r.randrange(1, 200), r.randrange(2, 12)) for _ in range(12)]
    with cluster.Cluster(decode=2, served_model_name=NAME) as c:
        read(c, "/metrics")         # of a router that nobody asked for anything
        for tokens, output in asked:
            ask(c, r, tokens, output)
        c.wait_quiet()
        check_router(c, asked)
        check_workers(c, asked)
        check_silent_worker(c)


if __name__ == "__main__":
    sys.exit(main())
