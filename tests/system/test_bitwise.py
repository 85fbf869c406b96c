"""Tokens and logprobs of a cluster are bitwise those of one process without a network.

100 prompts of 1 to 4000 tokens, chunk sizes 64 to 2048, 1 to 16 requests at once, layer-wise and
whole pushes, greedy and seeded sampling; half through HTTP, half through the ZeroMQ RPC.
"""
import concurrent.futures
import json
import os
import random
import struct
import subprocess
import sys

import baton_client
import cluster
import openai_http

SOLO = cluster.BUILD / "tests/solo/baton-solo"
VOCABULARY = 2046          # the ordinary tokens of the tiny model
SPECIAL = 3                # ids below are BOS, EOS and pad

# chunk size, layer-wise threshold, decode ranks, requests at once, chunk size of the single process
SHAPES = [(64, 0, 1, 1, 2048), (2048, 8192, 2, 16, 64), (512, 0, 2, 8, 333), (300, 900, 1, 4, 512)]


def make_requests(r, count):
    """Lengths are log-uniform, with the edges of pages and chunks among them."""
    edges = [1, 2, 63, 64, 65, 127, 128, 512, 513, 2047, 2048, 2049, 4000]
    out = []
    for i in range(count):
        length = edges[i] if i < len(edges) else int(2 ** r.uniform(0, 11.96))
        prompt = [r.randrange(SPECIAL, VOCABULARY) for _ in range(length)]
        if r.random() < 0.5:          # repeats, so that the model is not only surprised
            prompt = (prompt[:max(1, length // 7)] * 8)[:length]
        sampling = {"max_tokens": r.randint(1, 24), "logprobs": r.choice([0, 3]),
                    "seed": r.randrange(2 ** 63), "temperature": 0.0, "ignore_eos": True}
        if r.random() < 0.6:
            sampling.update(temperature=r.choice([0.7, 1.0, 1.5]), top_p=r.choice([1.0, 0.9]),
                            top_k=r.choice([0, 40]), min_p=r.choice([0.0, 0.02]))
        if r.random() < 0.3:
            sampling.update(repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2)
        out.append({"id": str(i), "prompt": prompt, "sampling": sampling})
    return out


def solo(requests, chunk):
    lines = "".join(json.dumps(q) + "\n" for q in requests)
    done = subprocess.run([SOLO, "--model", cluster.MODEL, "--chunked-prefill-size", str(chunk)],
                          input=lines, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return {a["id"]: a for a in map(json.loads, done.stdout.splitlines())}


def bits(value):
    return struct.pack("<f", value).hex()


def by_http(base, q):
    s = dict(q["sampling"])
    s["logprobs"] = max(s["logprobs"], 0)
    body = {"prompt": q["prompt"], "return_token_ids": True, **s}
    choice = openai_http.post(base, "/v1/completions", body, timeout=600)["choices"][0]
    return choice["token_ids"], [bits(v) for v in choice["logprobs"]["token_logprobs"]]


def by_rpc(endpoint, q):
    with baton_client.Client(endpoint) as client:
        tokens = []
        for event in client.generate(600, prompt_ids=q["prompt"], token_ids=True, **q["sampling"]):
            tokens += event.tokens
    assert [t.index for t in tokens] == list(range(len(tokens)))
    return [t.token for t in tokens], [bits(t.logprob) for t in tokens]


def compare(q, got, want):
    tokens, logprobs = got
    where = f"request {q['id']}: {len(q['prompt'])} prompt tokens, {q['sampling']}"
    assert tokens == want["tokens"], f"{where}\n got {tokens}\nwant {want['tokens']}"
    expected = [bits(v) for v in want["logprobs"]]
    assert logprobs == expected, f"{where}: logprobs differ\n got {logprobs}\nwant {expected}"


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20260131"))
    count = int(os.environ.get("BATON_TEST_PROMPTS", "100"))
    print(f"seed {seed}, {count} prompts")
    r = random.Random(seed)
    requests = make_requests(r, count)
    r.shuffle(requests)
    for at, (chunk, threshold, ranks, at_once, solo_chunk) in enumerate(SHAPES):
        part = requests[at::len(SHAPES)]
        want = solo(part, solo_chunk)
        with cluster.Cluster(decode=ranks, prefill_args=f"--chunked-prefill-size {chunk} "
                             f"--layerwise-threshold {threshold}") as c:
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                jobs = {pool.submit(by_http if i % 2 else by_rpc, c.http if i % 2 else c.rpc, q): q
                        for i, q in enumerate(part)}
                for job in concurrent.futures.as_completed(jobs):
                    compare(jobs[job], job.result(), want[jobs[job]["id"]])
            c.wait_quiet()
        print(f"{len(part)} equal: chunk {chunk}, layer-wise above {threshold}, {ranks} decode "
              f"ranks, {at_once} at once; single process with chunk {solo_chunk}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
