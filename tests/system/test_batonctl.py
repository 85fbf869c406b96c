"""The operator's verbs against a real cluster, and what they say when something is wrong."""
import json
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
            (["down", "--state-dir", state], 3, "default"),
            (["status", "--state-dir", state], 3, "default"),
            (["status", "--rpc", "tcp://127.0.0.1:1", "--timeout", "500ms"], 3, ""),
            (["get", "--state-dir", state, "nothing"], 2, "nothing"),
            (["generate", "--state-dir", state], 2, "prompt"),
            (["chat", "--state-dir", state, "--temperature", "hot", "x"], 2, "--temperature")]:
        code, out, err = run(*args)
        assert code == code_wanted, (args, code, out, err)
        assert text in out + err, (args, err)


def main():
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
