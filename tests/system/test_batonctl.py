"""The operator's verbs against a real cluster, and what they say when something is wrong."""
import json
import os
import subprocess
import sys
import tempfile
import urllib.request

import cluster


def run(*args):
    done = subprocess.run([str(cluster.BATONCTL), *map(str, args)], capture_output=True, text=True,
                          timeout=120)
    return done.returncode, done.stdout, done.stderr


def wrong_usage(state):
    code, out, _ = run("--help")
    assert code == 0 and "chat" in out
    for args, code_wanted, text in [
            ([], 2, "verbs:"), (["fly"], 2, "fly"), (["up"], 2, "--model"),
            (["up", "--model", "/does/not/exist", "--state-dir", state], 1, "/does/not/exist"),
            (["up", "--model", state, "--state-dir", state], 3, "config.json"),
            (["up", "--model", state, "--prefill", "0"], 2, "--prefill"),
            (["up", "--model", state, "--name", "../x"], 2, "--name"),
            (["up", "--model", cluster.MODEL, "--port", "0", "--decode-cpus", "0-x", "--state-dir", state],
             2, "no number at 'x'"),
            (["down", "--state-dir", state], 3, "default"),
            (["status", "--state-dir", state], 3, "default"),
            (["status", "--rpc", "tcp://127.0.0.1:1", "--timeout", "500ms"], 3, ""),
            (["get", "--state-dir", state, "nothing"], 2, "nothing"),
            (["generate", "--state-dir", state], 2, "prompt"),
            (["chat", "--state-dir", state, "--temperature", "hot", "x"], 2, "--temperature")]:
        code, out, err = run(*args)
        assert code == code_wanted, (args, code, out, err)
        assert text in out + err, (args, err)


def cores_of_their_own():
    """Workers run on the cpus given, in the arithmetic given; the metrics say which."""
    cpus = sorted(os.sched_getaffinity(0))
    with cluster.Cluster(prefill_cpus=cpus[0], decode_cpus=cpus[-1], dtype="bfloat16") as c:
        assert os.sched_getaffinity(c.pids["prefill-0"]) == {cpus[0]}
        assert os.sched_getaffinity(c.pids["decode-0"]) == {cpus[-1]}
        assert "router" in c.pids and os.sched_getaffinity(c.pids["router"]) == set(cpus)
        answer = c.ctl("chat", "--temperature", "0", "Who are you?").stdout
        assert "small model" in answer, answer
        log = c.logs()
        assert log.count("bfloat16 arithmetic") == 2, log
        c.wait_quiet()


def main():
    cores_of_their_own()
    with tempfile.TemporaryDirectory(prefix="baton-test-") as state:
        wrong_usage(state)
    with cluster.Cluster(prefill=1, decode=1, served_model_name="tiny") as c:
        workers = json.loads(c.ctl("get", "--output", "json", "workers").stdout)
        assert {w["role"] for w in workers} == {"prefill", "decode"}
        assert all(w["state"] == "ready" for w in workers), workers
        assert "prefill-0" in c.ctl("get", "workers").stdout
        assert json.loads(c.ctl("get", "--output", "json", "requests").stdout) == []
        assert c.status()["model"] == "tiny"
        again = c.ctl("up", *c.args, check=False)
        assert again.returncode == 1 and "is running" in again.stderr, again
        answer = c.ctl("chat", "--temperature", "0", "--timing",
                       "Tell me a story about a fox.").stdout
        assert answer.startswith("Once upon a time there was a playful fox named Lucy."), answer
        for word in ("TTFT", "TPOT", "KV pushed", "transport", "hidden"):
            assert word in answer, answer
        workers = json.loads(c.ctl("get", "--output", "json", "workers").stdout)
        assert {w["transport"] for w in workers} <= {"shm", "tcp", "rdma"}, workers
        with urllib.request.urlopen(f"{c.http}/metrics", timeout=20) as metrics:
            assert "# TYPE baton_http_clients_gone_total" in metrics.read().decode()
        text = c.ctl("generate", "--temperature", "0", "--max-tokens", "5", "Once upon a time").stdout
        assert text.startswith("Once upon a time there was a playful"), text
        talk = subprocess.run([str(cluster.BATONCTL), "chat", "--state-dir", c.dir, "--temperature",
                               "0"], input="Who are you?\nWhat is 7 + 5?\n", capture_output=True,
                              text=True, timeout=120)
        assert talk.returncode == 0 and "small model" in talk.stdout, talk
        bad = c.ctl("generate", "--max-tokens", "100000", "x", check=False)
        assert bad.returncode == 2 and "max_tokens" in bad.stderr, bad
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
