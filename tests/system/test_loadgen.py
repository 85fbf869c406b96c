#!/usr/bin/env python3
"""A public load generator, guidellm from PyPI, unchanged: streams of chat and of text completions
against a cluster. By its own report every request succeeded, and what it counted is what the
router's usage says."""
import json
import os
import subprocess
import sys
import time

import cluster
import openai_http

VENV = cluster.BUILD / "venv-guidellm"
# The newest whose own dependencies do without torch; theirs as they were when this was written.
PACKAGES = ["guidellm==0.3.1", "transformers==5.17.0", "datasets==5.0.1", "pydantic==2.14.3"]
REQUESTS, CONCURRENCY, PROMPT, OUTPUT = 16, 4, 64, 24


def install():
    """Once a build directory, as it takes longer than all the rest."""
    marker = VENV / "installed"
    if marker.exists():
        return
    begin = time.monotonic()
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0:
        cluster.skip(f"no virtual environment: {made.stderr or made.stdout}")
    got = subprocess.run([str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--no-compile",
                          "--only-binary=:all:", "--disable-pip-version-check", *PACKAGES],
                         capture_output=True, text=True)
    if got.returncode != 0:
        cluster.skip(f"PyPI gives no {PACKAGES}: {got.stderr.strip().splitlines()[-1:]}")
    marker.write_text("")
    print(f"installed in {time.monotonic() - begin:.0f} s", flush=True)


def run(c, route):
    """The one benchmark of its report."""
    report = os.path.join(c.dir, f"{route}.json")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": c.dir,
                   "TOKENIZERS_PARALLELISM": "false", "GUIDELLM__PREFERRED_ROUTE": route}
    done = subprocess.run([
        str(VENV / "bin/guidellm"), "benchmark", "run", "--target", c.http, "--model", "tiny",
        "--processor", str(cluster.MODEL), "--data", f"prompt_tokens={PROMPT},output_tokens={OUTPUT}",
        "--rate-type", "concurrent", "--rate", str(CONCURRENCY), "--max-requests", str(REQUESTS),
        "--random-seed", "7", "--disable-progress", "--output-path", report],
        env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    with open(report, encoding="utf-8") as file:
        benchmarks = json.load(file)["benchmarks"]
    assert len(benchmarks) == 1
    return benchmarks[0]


def prompt_tokens(c, route, prompt):
    """As usage has it, of a request of ours."""
    body = {"model": "tiny", "max_tokens": 1}
    if route == "chat_completions":
        body["messages"] = [{"role": "user", "content": prompt}]
        return openai_http.post(c.http, "/v1/chat/completions", body)["usage"]["prompt_tokens"]
    return openai_http.post(c.http, "/v1/completions", {**body, "prompt": prompt})["usage"]["prompt_tokens"]


def counted(c):
    """[ended well, prompt tokens, output tokens] since the router's start."""
    _, _, text = openai_http.request(c.http, "GET", "/metrics")
    sums = {"vllm:request_success_total": 0, "vllm:prompt_tokens_total": 0,
            "vllm:generation_tokens_total": 0}
    for line in text.splitlines():
        name = line.split("{")[0].split(" ")[0]
        if name in sums:
            sums[name] += float(line.rsplit(" ", 1)[1])
    return list(sums.values())


def look(c, route):
    before = counted(c)
    benchmark = run(c, route)
    spent = [after - b for after, b in zip(counted(c), before)]
    totals = benchmark["request_totals"]
    assert totals == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}, totals
    done = benchmark["requests"]["successful"]
    assert len(done) == REQUESTS
    for request in done:
        assert request["request_type"] == route, request["request_type"]
        assert request["output_tokens"] == OUTPUT, request["output_tokens"]
        assert request["prompt_tokens"] == prompt_tokens(c, route, request["prompt"]), request
        assert request["start_time"] <= request["first_token_time"] <= request["last_token_time"]
    own = [len(done), sum(r["prompt_tokens"] for r in done), sum(r["output_tokens"] for r in done)]
    # It asks a few times more before it begins, to see whether somebody is there.
    more = [s - o for s, o in zip(spent, own)]
    assert 0 <= more[0] <= 8 and all(m >= more[0] for m in more), (spent, own)
    ttft = benchmark["metrics"]["time_to_first_token_ms"]["successful"]["median"]
    print(f"{route}: {REQUESTS} requests, {CONCURRENCY} at once, {own[1]} + {own[2]} tokens, "
          f"TTFT {ttft:.1f} ms in the median", flush=True)


def main():
    install()
    with cluster.Cluster(served_model_name="tiny") as c:
        for route in ("chat_completions", "text_completions"):
            look(c, route)
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
