"""batonctl bench against a real cluster: what it counts is what the router counted, its summary is
what follows from its single requests, and it says so when it was not served or was interrupted."""
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import cluster
import openai_http


class Bench:
    """Runs of bench against a cluster, each with its files in a folder of its own."""

    def __init__(self, c, folder):
        self.c, self.folder, self.number = c, pathlib.Path(folder), 0

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def run(self, *args, code=0):
        """(the one JSON, requests)"""
        self.number += 1
        requests = self.folder / f"requests-{self.number}.jsonl"
        done = self.c.ctl("bench", "--timeout", "120s", "--output", "json", "--per-request", requests,
                          *args, check=False)
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
        report = json.loads(done.stdout)
        lines = [json.loads(line) for line in requests.read_text().splitlines()]
        for run in report["runs"]:
            rate = run["asked_requests_per_s"] if len(report["runs"]) > 1 else None
            check_run(run, [r for r in lines if r.get("asked_requests_per_s") == rate])
        return report, lines


def quantile(values, q):
    """As numpy's linear method."""
    values = sorted(values)
    place = q * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


def near(a, b, slack=1e-8):
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=slack)


def check_samples(samples, values):
    assert samples["count"] == len(values) and samples["exact"], (samples, values)
    if not values:
        return
    for name, wanted in [("mean", sum(values) / len(values)), ("min", min(values)),
                         ("max", max(values)), ("p50", quantile(values, 0.5)),
                         ("p90", quantile(values, 0.9)), ("p99", quantile(values, 0.99))]:
        assert near(samples[name], wanted), (name, samples[name], wanted)


def check_run(run, requests):
    """Everything that is said of a run, once more from its requests."""
    counted = [r for r in requests if not r["warmup"]]
    good = [r for r in counted if r["error"] is None]
    unfinished = [r for r in counted if r["error"] == "unfinished"]
    failed = [r for r in counted if r["error"] not in (None, "unfinished")]
    assert len({r["index"] for r in requests}) == len(requests)
    assert [run[k] for k in ("sent", "succeeded", "failed", "unfinished", "warmup")] == [
        len(counted), len(good), len(failed), len(unfinished), len(requests) - len(counted)], run
    check_samples(run["ttft_s"], [r["ttft_s"] for r in good])
    check_samples(run["e2e_s"], [r["e2e_s"] for r in good])
    check_samples(run["tpot_s"], [r["tpot_s"] for r in good if r["output_tokens"] > 1])
    check_samples(run["send_lag_s"], [r["sent_s"] - r["scheduled_s"] for r in counted])
    for name, field in [("input_tokens", "prompt_tokens"), ("output_tokens", "output_tokens"),
                        ("cached_tokens", "cached_tokens")]:
        assert run[name] == sum(r[field] for r in good), name
    if counted:
        duration = max(r["end_s"] for r in counted) - min(r["scheduled_s"] for r in counted)
        assert near(run["duration_s"], duration), (run["duration_s"], duration)
        assert near(run["requests_per_s"] * duration, len(good))
        assert near(run["output_tokens_per_s"] * duration, run["output_tokens"])
    errors = {e["code"]: e["count"] for e in run["errors"]}
    assert errors == {code: sum(r["error"] == code for r in failed)
                      for code in {r["error"] for r in failed}}, (errors, failed)
    for r in counted:
        assert 0 <= r["scheduled_s"] <= r["sent_s"] <= r["end_s"], r
        if r["error"] is None:
            assert 0 < r["ttft_s"] <= r["e2e_s"], r
            # To the last token as to the end, but for what follows it.
            assert r["ttft_s"] + r["tpot_s"] * (r["output_tokens"] - 1) <= r["e2e_s"] + 1e-6, r
    if run["goodput"]:
        limits = [(r, run["goodput"][r]) for r in ("ttft_s", "tpot_s", "e2e_s") if run["goodput"][r]]
        within = [r for r in good if all(r[name] <= limit for name, limit in limits)]
        assert [r["good"] for r in good] == [r in within for r in good]
        assert run["goodput"]["good_requests"] == len(within)
        assert near(run["goodput"]["requests_per_s"] * run["duration_s"], len(within))
        assert near(run["goodput"]["share"], len(within) / len(good + failed))
    series = run["series"]["sent_ended_tokens"]
    assert sum(b[0] for b in series) == len(requests)
    assert sum(b[1] for b in series) == len(requests) - len([r for r in requests
                                                            if r["error"] == "unfinished"])


def counted(c):
    """[ended well, prompt tokens, output tokens] since the router's start."""
    sums = {"vllm:request_success_total": 0, "vllm:prompt_tokens_total": 0,
            "vllm:generation_tokens_total": 0}
    for line in openai_http.request(c.http, "GET", "/metrics")[2].splitlines():
        name = line.split("{")[0].split(" ")[0]
        if name in sums:
            sums[name] += float(line.rsplit(" ", 1)[1])
    return list(sums.values())


def closed_loop(b):
    before = counted(b.c)
    report, requests = b.run("--concurrency", 3, "--num-requests", 14, "--warmup", 4, "--input-len",
                             "90:130", "--output-len", "1:9", "--seed", 5, "--ttft", "30s",
                             "--save", b.folder / "saved.json", "--svg", b.folder / "run.svg")
    run = report["runs"][0]
    assert report["model"] == "tiny" and report["seed"] == "5" and report["concurrency"] == 3
    assert run["succeeded"] == 14 and run["warmup"] == 4 and run["peak_open"] == 3, run
    assert run["asked_requests_per_s"] is None and run["cached_tokens"] == 0
    for r in requests:
        assert r["prompt_tokens"] == r["input_tokens_asked"] and 90 <= r["prompt_tokens"] <= 130, r
        assert r["output_tokens"] == r["output_tokens_asked"] and 1 <= r["output_tokens"] <= 9, r
        assert (r["finish_reason"], r["prefill_worker"], r["decode_worker"]) == (
            "length", "prefill-0", "decode-0"), r
    itl = run["itl_s"]
    tokens = [r for r in requests if not r["warmup"]]
    assert itl["count"] == sum(r["output_tokens"] - 1 for r in tokens)
    assert near(itl["mean"] * itl["count"], sum(r["tpot_s"] * (r["output_tokens"] - 1)
                                                for r in tokens), 1e-5), itl
    spent = [a - b for a, b in zip(counted(b.c), before)]
    assert spent == [18, sum(r["prompt_tokens"] for r in requests),
                     sum(r["output_tokens"] for r in requests)], spent
    assert json.loads((b.folder / "saved.json").read_text()) == report
    xml.etree.ElementTree.parse(b.folder / "run.svg")
    # The same seed is the same load: what was computed then is there now.
    again, _ = b.run("--concurrency", 1, "--num-requests", 14, "--warmup", 4, "--input-len", "90:130",
                     "--output-len", "1:9", "--seed", 5)
    assert again["runs"][0]["input_tokens"] == run["input_tokens"]
    assert again["runs"][0]["cached_tokens"] > 0


def open_loop(b):
    report, requests = b.run("--rate", 40, "--num-requests", 30, "--burstiness", 0.5, "--input-len",
                             16, "--output-len", 4, "--seed", 9, "--ttft", "0.001ms")
    run = report["runs"][0]
    assert report["arrivals"] == "gamma" and report["burstiness"] == 0.5
    assert run["succeeded"] == 30 and run["asked_requests_per_s"] == 40
    assert run["goodput"]["good_requests"] == 0, "no token comes within a microsecond"
    times = sorted(r["scheduled_s"] for r in requests)
    again, requests = b.run("--rate", 40, "--num-requests", 30, "--burstiness", 0.5, "--input-len",
                            16, "--output-len", 4, "--seed", 9)
    assert sorted(r["scheduled_s"] for r in requests) == times, "the seed says when they come"
    assert again["runs"][0]["goodput"] is None
    # By its endpoint, over as many connections as an open loop takes.
    _, requests = b.run("--rpc", b.c.rpc, "--rate", "inf", "--num-requests", 20, "--input-len", 16,
                        "--output-len", 2)
    assert [r["scheduled_s"] for r in requests] == [0] * 20
    # Nothing is due after the end.
    _, requests = b.run("--burst", 2, "--every", "100ms", "--duration", "250ms", "--input-len", 16,
                        "--output-len", 2)
    assert sorted(r["scheduled_s"] for r in requests) == [0, 0, 0.1, 0.1, 0.2, 0.2]


def traces(b):
    rows = [(1000, 40, 3, [1]), (1050, 600, 2, [7, 8]), (1400, 1100, 4, [7, 8, 9]), (1200, 5, 1, [])]
    text = "".join(json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": h})
                   + "\n" for t, i, o, h in rows)
    path = b.file("trace.jsonl", text)
    report, requests = b.run("--trace", path, "--time-scale", 2, "--length-scale", 0.5)
    assert report["arrivals"] == "trace" and report["runs"][0]["succeeded"] == 4
    requests.sort(key=lambda r: r["index"])
    assert [r["scheduled_s"] for r in requests] == [0, 0.1, 0.4, 0.8]
    assert [r["prompt_tokens"] for r in requests] == [20, 300, 3, 550]
    assert [r["output_tokens"] for r in requests] == [2, 1, 1, 2]
    path = b.file("trace.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                  "2023-11-16 18:17:03.5,30,3\n2023-11-16 18:17:03.75,20,2\n")
    report, requests = b.run("--trace", path)
    requests.sort(key=lambda r: r["index"])
    assert [(r["prompt_tokens"], r["output_tokens"]) for r in requests] == [(30, 3), (20, 2)]
    assert near(requests[1]["scheduled_s"], 0.25, 1e-5)


def found(c):
    """Tokens that the prefill worker did not have to compute, as it counts them."""
    rpc = next(w["rpc"] for w in c.status()["workers"] if w["role"] == "prefill")
    return sum(value for key, value in c.metrics(rpc).items()
               if key.startswith("vllm:prefix_cache_hits_total"))


def shared_prefixes(b):
    """What requests share comes from the cache, when the pages of the one before are left behind."""
    of_four = ["--concurrency", 1, "--prefix-len", 256, "--input-len", 32, "--output-len", 2, "--seed", 41]
    before = found(b.c)
    _, first = b.run(*of_four, "--num-requests", 1)
    b.c.wait_quiet()
    assert [r["prompt_tokens"] for r in first] == [288] and found(b.c) == before, first
    _, requests = b.run(*of_four, "--num-requests", 4)
    b.c.wait_quiet()
    assert [r["prompt_tokens"] for r in requests] == [288] * 4 and found(b.c) == before + 4 * 256, requests
    rows = "".join(json.dumps({"timestamp": 0, "input_length": 1000, "output_length": 1,
                               "hash_ids": [1, 2 + i]}) + "\n" for i in range(3))
    path = b.file("shared.jsonl", rows)
    # One after the other, as a closed loop does it: the trace's times are its own.
    before = found(b.c)
    b.run("--trace", path, "--num-requests", 1, "--seed", 77)
    b.c.wait_quiet()
    assert found(b.c) == before
    second, _ = b.run("--trace", path, "--seed", 77)
    b.c.wait_quiet()
    assert found(b.c) >= before + 3 * 448, second["runs"][0]


def prompts_of_all_forms(b):
    path = b.file("dataset.jsonl", '{"prompt": "Once upon a time", "output_tokens": 3}\n'
                  '{"messages": [{"role": "user", "content": "Who are you?"}]}\n')
    report, requests = b.run("--dataset", path, "--num-requests", 4, "--output-len", 5,
                             "--concurrency", 1)
    requests.sort(key=lambda r: r["index"])
    assert [r["output_tokens"] for r in requests] == [3, 5, 3, 5]
    assert requests[0]["prompt_tokens"] == requests[2]["prompt_tokens"]
    report, requests = b.run("--prompts", "text", "--input-len", 100, "--output-len", 2,
                             "--num-requests", 5)
    assert all(70 <= r["prompt_tokens"] <= 130 for r in requests), requests
    report, requests = b.run("--natural-end", "--dataset", path, "--num-requests", 2, "--output-len",
                             200, "--concurrency", 1)
    assert {r["finish_reason"] for r in requests} == {"length", "stop"}, requests


def sweep(b):
    report, requests = b.run("--sweep", "20,40", "--num-requests", 8, "--warmup", 2, "--input-len", 64,
                             "--output-len", 2, "--e2e", "3600s", "--svg", b.folder / "sweep.svg")
    assert [r["asked_requests_per_s"] for r in report["runs"]] == [20, 40]
    assert all(r["goodput"]["share"] == 1 and r["cached_tokens"] == 0 for r in report["runs"])
    assert len(requests) == 20
    xml.etree.ElementTree.parse(b.folder / "sweep.svg")
    table = b.c.ctl("bench", "--timeout", "120s", "--sweep", "30", "--num-requests", 3, "--input-len",
                    16, "--output-len", 2).stdout
    assert "asked/s" in table and "    30.00" in table, table


def failures(b):
    """Counted by their code, with the exit code that says so."""
    report, requests = b.run("--concurrency", 2, "--num-requests", 3, "--input-len", 20000,
                             "--output-len", 4, code=1)
    assert report["runs"][0]["errors"][0]["code"] == "invalid_argument", report["runs"][0]["errors"]
    assert all(r["error"] == "invalid_argument" and "tokens" in r["error_text"] for r in requests)
    done = b.c.ctl("bench", "--num-requests", 1, "--model", "another", check=False)
    assert done.returncode == 3 and "another" in done.stderr, done


def interrupted(b):
    """The results so far, of requests that never end; nothing of them is left behind."""
    requests = b.folder / "interrupted.jsonl"
    child = subprocess.Popen(
        [str(cluster.BATONCTL), "bench", "--state-dir", b.c.dir, "--timeout", "120s", "--output",
         "json", "--concurrency", "2", "--num-requests", "100000", "--input-len", "16",
         "--output-len", "12000", "--per-request", str(requests)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        cluster.until(lambda: len(b.c.status()["requests"]) == 2, 60, "two requests run")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=300)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 1, (child.returncode, err)
    report = json.loads(out)
    run = report["runs"][0]
    assert run["interrupted"] and run["unfinished"] == 2 and run["failed"] == 0, run
    check_run(run, [json.loads(line) for line in requests.read_text().splitlines()])
    b.c.wait_quiet()


def wrong_usage(b):
    for args, text in [
            (["--rate", "0"], "0"), (["--rate", "5", "--concurrency", "2"], "never waits"),
            (["--rate", "5", "--burst", "2", "--every", "1s"], "one of"),
            (["--burst", "2"], "--every"), (["--sweep", "1,x"], "'x'"),
            (["--rate", "inf", "--duration", "1s"], "--num-requests"),
            (["--input-len", "5:1"], "5:1"), (["--output-len", "0"], "at least 1"),
            (["--trace", b.file("bad.jsonl", '{"timestamp": 1}\n')], "line 1: input_length"),
            (["--trace", b.file("empty.csv", "")], "empty.csv"),
            (["--trace", b.file("evil.csv", "\x1b[2J,\x07\n1,2\n")], "header"),
            (["--dataset", b.file("bad.set", '{"prompt": "a"}\n{"prompt": 7}\n')], "line 2"),
            (["--nonsense"], "nonsense")]:
        done = b.c.ctl("bench", *args, check=False)
        assert done.returncode == 2 and text in done.stderr, (args, done)
        assert "\x1b" not in done.stderr and "\x07" not in done.stderr
    for args in (["--trace", "/does/not/exist"], ["--dataset", b.folder],
                 ["--num-requests", "1", "--output-len", "1", "--per-request", "/does/not/exist/x"],
                 ["--num-requests", "1", "--output-len", "1", "--save", "/does/not/exist/x"],
                 ["--num-requests", "1", "--output-len", "1", "--svg", "/does/not/exist/x"]):
        done = b.c.ctl("bench", *args, check=False)
        assert done.returncode == 1 and done.stderr, (args, done)
    nobody = subprocess.run([str(cluster.BATONCTL), "bench", "--rpc", "tcp://127.0.0.1:1",
                             "--timeout", "300ms"], capture_output=True, text=True, timeout=100)
    assert nobody.returncode == 3, nobody


def main():
    with cluster.Cluster(served_model_name="tiny") as c, tempfile.TemporaryDirectory(
            prefix="baton-test-") as folder:
        b = Bench(c, folder)
        for part in (closed_loop, open_loop, traces, shared_prefixes, prompts_of_all_forms, sweep,
                     failures, wrong_usage, interrupted):
            part(b)
            print(f"{part.__name__}: fine", flush=True)
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
