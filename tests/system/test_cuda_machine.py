#!/usr/bin/env python3
"""Workers and a GPU, the emulated one: what is not there is named, auto is the CPU then, ends that
share no transport say so, and batonctl starts a cluster on it and looks at it."""
import json
import os
import subprocess
import sys

import cluster
import emulated_gpus as gpus
import openai_http

SMALL = {"prefill": gpus.PREFILL, "decode": ["--max-num-seqs", 1]}
QUESTION = gpus.TEXT, {"prompt": [5, 6, 7], "temperature": 0, "max_tokens": 3, "ignore_eos": True}


def refused(role, *args, env=(), words):
    done = subprocess.run([cluster.BUILD / f"{role}-node/baton-{role}", "--model", cluster.MODEL,
                           "--router", "tcp://127.0.0.1:9", "--die-with-parent",
                           *map(str, [*gpus.WORKER, *SMALL[role], *args])], capture_output=True, text=True,
                          timeout=400, env={**os.environ, **dict(env)}, check=False)
    assert 0 < done.returncode < 128, (done.returncode, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), (words, done.stderr)
    print(f"{role} {' '.join(args)} {dict(env)}: {last}", flush=True)


def refusals():
    for role in ("prefill", "decode"):
        refused(role, "--device", "cuda", "--transport", "shm",
                words=("shm", "--kv-staging host"))
    refused("decode", "--device", "cuda:7", words=("cuda:7", "GPU"))
    refused("prefill", "--device", "cuda", env={"BATON_EMULATED_DRIVER": "none"}, words=("driver",))


def mixed():
    """One end staged, the other not: nothing reaches both memories, and both are named."""
    with gpus.Gpus("--max-attempts", 2, batch=1) as f:
        f.begin("prefill", "prefill-0", "--kv-staging", "host")
        f.begin("decode", "decode-0")
        f.wait_ready_all(100)
        code, _, answer = openai_http.request(f.http, "POST", gpus.TEXT, {"prompt": [5]}, timeout=400)
        assert code >= 500 and "shm,tcp here, cuda_ipc there" in json.dumps(answer), (code, answer)
        print(f"mixed: {code} {answer['error']['message']}", flush=True)
        f.wait_quiet()


def fallen_back():
    """No driver: auto is the CPU, and says why."""
    with gpus.Gpus(batch=1) as f:
        for role in ("prefill", "decode"):
            f.begin(role, f"{role}-0", device="auto", prefix=["env", "BATON_EMULATED_DRIVER=none"])
        f.wait_ready_all(100)
        assert gpus.ask(f.http, *QUESTION)[1]
        for name in ("prefill-0", "decode-0"):
            worker = f.processes[name]
            assert "device auto: the cpu, as cuda: no NVIDIA driver here" in worker.text(), worker.text()
            assert worker.metric("baton_device_info", 'device="cpu"') == 1


def by_batonctl():
    with cluster.Cluster(device="cuda", prefill_args="--chunked-prefill-size 64 --kv-pages 64",
                         decode_args="--kv-pages 64 --max-num-seqs 1") as c:
        chat = c.ctl("chat", "--temperature", "0", "--max-tokens", "3", "Who are you?").stdout
        assert chat.strip(), chat
        done = subprocess.run([cluster.BATONCTL, "doctor", "--state-dir", c.dir, "--output", "json",
                               "prefill-0", "decode-0"], capture_output=True, text=True, timeout=400,
                              check=False)
        told = json.loads(done.stdout)
        assert [t["transport"] for t in told["transfers"]] == ["cuda_ipc"], told
        about = {f["what"]: f["text"] for f in told["findings"]}
        assert about["transport"].startswith("cuda_ipc"), told
        for name in ("prefill-0", "decode-0"):
            assert about[f"{name} gpu memory"] and "offers cuda_ipc" in about[name], told
        c.wait_quiet()
    print(f"by batonctl: {chat.strip()!r}", flush=True)


def main():
    gpus.choose(90)
    refusals()
    fallen_back()
    mixed()
    by_batonctl()
    return 0


if __name__ == "__main__":
    sys.exit(main())
