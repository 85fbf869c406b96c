"""Groups of ranks behind the router: prefill with shared-out heads and experts, decode with shared-out
requests and experts, in every combination.

With one prefill rank every token and logprob is bitwise that of a single process, whatever the decode
group and its placement of experts. With several, bitwise the same for each number of ranks that share
the heads, wherever the experts are, and within rounding of the single process. Greedy text is the
goldens'.
"""
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import baton_client
import cluster
import openai_http
import test_bitwise

ROUNDING = 2e-3     # of a logprob; float32 sums in another order

# name, prefill ranks, prefill arguments, decode ranks, decode arguments
LAYOUTS = [
    ("P1 D2", 1, "", 2, ""),
    ("P1 D8 contiguous", 1, "", 8, "--expert-placement contiguous"),
    ("P2 heads, all experts each; D1", 2, "--expert-parallel=false", 1, ""),
    ("P2 heads and experts; D4", 2, "", 4, ""),
    ("P2 balanced, D2 balanced, bf16 to experts", 2,
     "--expert-placement balanced --redundant-experts 4", 2,
     "--expert-placement balanced --redundant-experts 8 --dispatch-dtype auto"),
    ("P4 heads, all experts each; D2", 4, "--expert-parallel=false", 2, ""),
    ("P4 heads and experts; D1", 4, "", 1, ""),
    ("P8 heads and experts; D2 contiguous", 8, "", 2, "--expert-placement contiguous"),
]


def make_requests(r, count):
    requests = test_bitwise.make_requests(r, count)
    for q in requests:          # long prompts are test_bitwise's; here are many processes on few cores
        q["prompt"] = q["prompt"][:1500]
    return requests


def run(c, requests, at_once):
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        jobs = {q["id"]: pool.submit(test_bitwise.by_http, c.http, q) for q in requests}
        return {i: job.result(timeout=600) for i, job in jobs.items()}


def value(hex_bits):
    return test_bitwise.struct.unpack("<f", bytes.fromhex(hex_bits))[0]


def close(q, got, want):
    """Same tokens as long as rounding decides nothing; logprobs of the common part within rounding."""
    tokens, logprobs = got
    same = 0
    while same < len(tokens) and same < len(want["tokens"]) and tokens[same] == want["tokens"][same]:
        same += 1
    for i in range(same):
        difference = abs(value(logprobs[i]) - want["logprobs"][i])
        assert difference < ROUNDING, f"request {q['id']}, token {i}: logprob differs by {difference}"
    return same == len(tokens) == len(want["tokens"])


def goldens(c):
    prompts = json.loads((cluster.MODEL / "golden/index.json").read_text(encoding="utf-8"))["prompts"]
    for name, golden in prompts.items():
        answer = openai_http.post(c.http, "/v1/completions", {
            "prompt": golden["text"], "temperature": 0, "max_tokens": 64, "ignore_eos": True,
            "skip_special_tokens": False}, timeout=600)
        text = answer["choices"][0]["text"]
        assert text == golden["continuation"], f"{name}: {text!r}"


HOT, PREFERENCE = (0, 2, 4, 6), 0.35    # experts that are hit about five times as often


def skewed_model(directory):
    """The tiny model, but that its routers prefer some experts."""
    for path in cluster.MODEL.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    path = pathlib.Path(directory, "model.safetensors")
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    for name, tensor in json.loads(data[8:8 + size]).items():
        if name.endswith("e_score_correction_bias"):
            for expert in HOT:
                at = 8 + size + tensor["data_offsets"][0] + 4 * expert
                struct.pack_into("<f", data, at, struct.unpack_from("<f", data, at)[0] + PREFERENCE)
    path.write_bytes(data)


def metric(c, worker, name):
    endpoint = next(w["rpc"] for w in c.status()["workers"] if w["worker"] == worker)
    messages = baton_client.pb["worker"]
    with baton_client.Client(endpoint) as client:
        text = client.call("baton.v1.Worker/Metrics", messages.MetricsRequest(),
                           messages.MetricsResponse).text
    return sum(float(v) for v in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def moving(requests):
    """Experts move while requests run: every answer is the one of a cluster where nothing moves."""
    moves = ("--expert-placement balanced --redundant-experts 4 --rebalance-interval 100ms "
             "--expert-load-window 512")
    with tempfile.TemporaryDirectory() as model:
        skewed_model(model)
        args = "--layerwise-threshold 200 --chunked-prefill-size 333 "
        with cluster.Cluster(prefill_tp=2, model=model, prefill_args=args) as c:
            want = run(c, requests, 12)
        with cluster.Cluster(prefill_tp=2, decode_dp=2, model=model, prefill_args=args + moves,
                             decode_args=moves) as c:
            before = {w: metric(c, w, "baton_expert_moves_total") for w in ("prefill-0", "decode-0")}

            def all_moved():
                assert run(c, requests, 12) == want, "an answer changed when experts moved"
                return all(metric(c, w, "baton_expert_moves_total") > n for w, n in before.items())

            cluster.until(all_moved, 60, "experts that move on both workers")
            assert run(c, requests, 12) == want, "an answer changed after experts moved"
            for w in before:
                print(f"{w}: {metric(c, w, 'baton_expert_moves_total'):.0f} experts moved, imbalance "
                      f"{metric(c, w, 'baton_expert_load_imbalance'):.3f}", flush=True)
            c.wait_quiet()


RANKS = ("prefill-0", "prefill-0.1", "decode-0", "decode-0.1")


def directly(c, rank, verb, *words):
    """(exit code, output) of a verb that asks one rank, as its container's probes and hooks do."""
    files = pathlib.Path(c.dir, "default")
    where = ["--ready-file", str(files / f"{rank}.ready")] if verb == "probe" else \
        ["--worker", json.loads((files / f"{rank}.ready").read_text(encoding="utf-8"))["rpc"]]
    done = subprocess.run([str(cluster.BATONCTL), verb, *where, "--timeout", "50s", "--curve-secret-file",
                           str(files / "operator.key"), "--curve-allow-file", str(files / "allow"), *words],
                          capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout + done.stderr


def states(c, role):
    return {w["state"] for w in c.status()["workers"] if w["role"] == role}


def by_any_rank():
    """Every rank answers the probes, and drains and resumes its whole worker."""
    ask = {"prompt": [5, 6, 7] * 40, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with cluster.Cluster(prefill_tp=2, decode_dp=2, curve=True) as c:
        want = openai_http.post(c.http, "/v1/completions", ask, timeout=600)["choices"]
        for rank in RANKS:
            for question in ("startup", "ready", "live"):
                assert directly(c, rank, "probe", question) == (0, "ok\n"), (rank, question)
        for rank in RANKS:
            role = rank.partition("-")[0]
            code, said = directly(c, rank, "drain", "--deadline", "400s")
            assert code == 0, f"{rank}: {said}"
            cluster.until(lambda: states(c, role) == {"draining"}, 30, f"{rank} drains its worker")
            code, said = directly(c, f"{role}-0", "probe", "ready")
            assert code == 1 and "draining" in said, f"{rank}: {said}"
            assert directly(c, rank, "probe", "live")[0] == 0, rank
            code, said = directly(c, rank, "resume")
            assert code == 0, f"{rank}: {said}"
            cluster.until(lambda: states(c, role) == {"ready"}, 30, f"{rank} resumes its worker")
            assert openai_http.post(c.http, "/v1/completions", ask, timeout=600)["choices"] == want
        c.wait_quiet()
    print("any rank drains its worker, and resumes it", flush=True)


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20260531"))
    count = int(os.environ.get("BATON_TEST_PROMPTS", "20"))
    only = os.environ.get("BATON_TEST_LAYOUT", "")
    print(f"seed {seed}, {count} prompts a layout")
    requests = make_requests(random.Random(seed), count)
    want = test_bitwise.solo(requests, 512)
    of_heads = {}               # prefill ranks that share the heads: what the first layout gave
    for name, prefill, prefill_args, decode, decode_args in LAYOUTS:
        if only not in name:
            continue
        with cluster.Cluster(prefill_tp=prefill, decode_dp=decode, decode_args=decode_args,
                             prefill_args="--layerwise-threshold 200 --chunked-prefill-size 333 "
                             + prefill_args) as c:
            got = run(c, requests, 12)
            if prefill == 1:
                for q in requests:
                    test_bitwise.compare(q, got[q["id"]], want[q["id"]])
            else:
                same = sum(close(q, got[q["id"]], want[q["id"]]) for q in requests)
                assert same >= 0.8 * count, f"{name}: only {same} of {count} as in one process"
                first = of_heads.setdefault(prefill, got)
                for i, answer in got.items():
                    assert answer == first[i], f"{name}: request {i} is not as with other experts"
            goldens(c)
            c.wait_quiet()
        print(f"{name}: equal", flush=True)
    moving(requests)
    by_any_rank()


if __name__ == "__main__":
    sys.exit(main())
