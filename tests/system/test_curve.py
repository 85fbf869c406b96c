"""A cluster whose RPC is encrypted: it answers as a plain one, it deals with the keys of its list
and nobody else, and its secrets stay in their files."""
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile

import zmq
import zmq.utils.z85

import baton_client
import cluster
import openai_http

pb = baton_client.pb
RANKS = ["prefill-0", "prefill-0.1", "decode-0", "decode-0.1"]
ASK = ["generate", "--temperature", "0", "--max-tokens", "5"]
PROMPT = "Once upon a time"
ANSWER = "Once upon a time there was a playful"


def answers(c, seed):
    """Greedy and sampled ones, short prompts and one of several pages: (tokens, logprobs)."""
    r = random.Random(seed)
    got = []
    for i, length in enumerate([1, 3, 64, 65, 400]):
        answer = openai_http.post(c.http, "/v1/completions", {
            "prompt": [r.randrange(3, 2046) for _ in range(length)], "max_tokens": 20,
            "ignore_eos": True, "temperature": 0.8 * (i % 2), "seed": seed + i, "logprobs": 1,
            "return_token_ids": True}, timeout=500)["choices"][0]
        got.append((answer["token_ids"], answer["logprobs"]["token_logprobs"]))
    return got


def keygen(directory, name, *args, code=0):
    done = subprocess.run([str(cluster.BATONCTL), "keygen", "--out", str(directory / name), *args],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done
    return done.stdout if code == 0 else done.stderr


def allowed(c):
    """What the list of the cluster holds: {name: key}."""
    lines = [line.split() for line in c.home.joinpath("allow").read_text().splitlines()]
    return {line[1]: line[0] for line in lines if line and line[0] != "#"}


def replace(path, text):
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)


def refused(c, reason):
    text = openai_http.request(c.http, "GET", "/metrics")[2]
    return int(re.search(rf'^baton_rpc_refused_total{{reason="{reason}"}} (\d+)$', text, re.M)[1])


def log(c, name):
    return c.home.joinpath(name + ".log").read_text(errors="replace")


def serves(c):
    text = c.ctl(*ASK, PROMPT).stdout
    assert text.startswith(ANSWER), text


def keys_are_made(directory):
    line = keygen(directory, "one.key")
    public, name = line.split()
    assert name == "one" and re.fullmatch("[0-9a-f]{64}", public), line
    text = directory.joinpath("one.key").read_text()
    secret = re.search("^secret-key ([0-9a-f]{64})$", text, re.M)[1]
    assert secret not in line and directory.joinpath("one.key").stat().st_mode & 0o777 == 0o600
    assert zmq.curve_public(zmq.utils.z85.encode(bytes.fromhex(secret))) == \
        zmq.utils.z85.encode(bytes.fromhex(public))
    assert "exists" in keygen(directory, "one.key", code=1)
    assert directory.joinpath("one.key").read_text() == text
    assert keygen(directory, "two", "--name", "another").split()[1] == "another"
    assert "--name" in keygen(directory, "three", "--name", "a b", code=2)
    assert "--name" in keygen(directory, "x y.key", code=2)
    assert "--out" in subprocess.run([str(cluster.BATONCTL), "keygen"], capture_output=True, text=True,
                                     timeout=60).stderr
    assert sorted(p.name for p in directory.iterdir()) == ["one.key", "two"]


def operators_find_the_keys(c):
    """Endpoints are whole wherever they are shown and passed on."""
    keys = allowed(c)
    assert set(keys) == {"operator", "router", *RANKS} and len(set(keys.values())) == 6, keys
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+#" + keys["router"], c.rpc), c.rpc
    workers = {w["worker"]: w["rpc"] for w in c.status()["workers"]}
    assert set(workers) == {"prefill-0", "decode-0", "decode-0.1"}, workers
    for name, endpoint in workers.items():
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+#" + keys[name], endpoint), (name, endpoint)
    assert "prefill-0 0/2" in c.ctl("get", "workers").stdout
    assert "small model" in c.ctl("chat", "--temperature", "0", "Who are you?").stdout
    far = c.ctl("doctor", "--timeout", "120s", "prefill-0", "decode-0.1", check=False)
    assert far.returncode in (0, 1) and "prefill-0 to decode-0.1" in far.stdout, far
    serves(c)
    own = c.home / "operator.key"
    by_flags = c.ctl("generate", "--rpc", c.rpc, "--curve-secret-file", own, "--curve-allow-file",
                     c.home / "allow", *ASK[1:], PROMPT)
    assert by_flags.stdout.startswith(ANSWER), by_flags


def refuses_batonctl(c, reason, code, *args):
    """In bounded time: the answer itself has no deadline."""
    done = c.ctl("generate", *args, PROMPT, check=False, timeout=120)
    assert done.returncode == code and re.search(reason, done.stderr), done


def descriptors_suffice(c):
    """Connections are limited by the hard limit, whatever the soft one is that a process inherits."""
    for pid in c.pids.values():
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard, (soft, hard)


def clients_without_key(c):
    address = c.rpc.partition("#")[0]
    refuses_batonctl(c, "--curve-secret-file", 2, "--rpc", c.rpc)
    refuses_batonctl(c, "wants? CURVE", 3, "--rpc", address)
    refuses_batonctl(c, "names no key", 2, "--rpc", address, "--curve-secret-file",
                     c.home / "operator.key", "--curve-allow-file", c.home / "allow")
    before = refused(c, "handshake")
    with baton_client.Client(address) as plain:
        plain.start("baton.v1.Router/Status", pb["router"].StatusRequest())
        cluster.until(lambda: refused(c, "handshake") > before, 30, "a plain client is counted")
        assert not plain.socket.poll(0), "a client without key had an answer"
    serves(c)


def clients_with_strange_keys(c, directory):
    stranger = keygen(directory, "stranger.key").split()[0]
    strangers = directory / "strangers"
    strangers.write_text("".join(f"{key} {name}\n" for name, key in allowed(c).items()))
    flags = ["--curve-secret-file", directory / "stranger.key", "--curve-allow-file", strangers]
    before = refused(c, "key")
    refuses_batonctl(c, f"does not admit our key {stranger}", 3, "--rpc", c.rpc, *flags)
    assert refused(c, "key") > before
    other = c.rpc.partition("#")[0] + "#" + stranger
    strangers.write_text(strangers.read_text() + f"{stranger} stranger\n")
    refuses_batonctl(c, "its key is not the one in the endpoint", 3, "--rpc", other,
                     "--curve-secret-file", c.home / "operator.key", "--curve-allow-file", strangers)
    for name in RANKS:      # ranks admit no more than the router does
        text = c.home.joinpath(name + ".ready").read_text()
        with baton_client.Client(json.loads(text)["rpc"], directory / "stranger.key") as client:
            client.start("baton.v1.Worker/Metrics", pb["worker"].MetricsRequest())
            cluster.until(lambda: stranger in log(c, name), 30, f"{name} says whom it refused")
            assert not client.socket.poll(0), f"{name} answered a stranger"
    serves(c)
    return stranger, flags


def strange_worker(c, directory, stranger, flags):
    """It says why, and is never a part of the cluster."""
    out = directory / "worker.log"
    before = refused(c, "key")
    with open(out, "w", encoding="utf-8") as file:
        worker = subprocess.Popen(
            [str(cluster.BUILD / "decode-node/baton-decode"), "--model", str(cluster.MODEL), "--router",
             c.rpc, "--worker-id", "stranger", "--die-with-parent", *map(str, flags)],
            stdout=file, stderr=subprocess.STDOUT)
    try:
        cluster.until(lambda: f"does not admit our key {stranger}" in out.read_text() or
                      worker.poll() is not None, 60, "the worker says why")
        cluster.until(lambda: refused(c, "key") > before, 30, "the router counts it")
        assert worker.poll() is None, out.read_text()
        assert "stranger" not in {w["worker"] for w in c.status()["workers"]}
        serves(c)
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(timeout=120)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    assert worker.returncode == 0 and "ERROR: " not in out.read_text(), out.read_text()
    return out.read_text()


def list_changes(c, directory):
    """A second operator comes onto the list and leaves it while others are served."""
    line, path = keygen(directory, "second.key"), c.home / "allow"
    flags = ["--rpc", c.rpc, "--curve-secret-file", directory / "second.key", "--curve-allow-file", path]
    refuses_batonctl(c, f"does not admit our key {line.split()[0]}", 3, *flags)
    text = path.read_text()
    replace(path, text + line)
    cluster.until(lambda: c.ctl("status", *flags, check=False).returncode == 0, 30, "the key is admitted")
    before = refused(c, "removed")
    with baton_client.Client(c.rpc, directory / "second.key") as second, \
            baton_client.Client(c.rpc, c.home / "operator.key") as first:
        assert len(second.status().workers) == len(first.status().workers) == 3
        replace(path, "not a list\n")
        cluster.until(lambda: "keys read before stay admitted" in log(c, "router"), 30, "it complains")
        assert len(second.status().workers) == 3, "a broken list changes nothing"
        replace(path, text)
        cluster.until(lambda: refused(c, "removed") > before, 30, "the connection is broken")
        serves(c)
        assert len(first.status().workers) == 3, "another key's connection was touched"
        second.socket.sndtimeo = 0              # once it was turned away its socket takes nothing
        try:
            second.start("baton.v1.Router/Status", pb["router"].StatusRequest())
        except zmq.Again:
            pass
        assert not second.socket.poll(500), "a key that left the list had an answer"
    refuses_batonctl(c, f"does not admit our key {line.split()[0]}", 3, *flags)
    serves(c)


def metrics_of(c, name):
    with baton_client.Client(json.loads(c.home.joinpath(name + ".ready").read_text())["rpc"],
                             c.home / "operator.key") as client:
        return client.call("baton.v1.Worker/Metrics", pb["worker"].MetricsRequest(),
                           pb["worker"].MetricsResponse, 120).text


def secrets_stay(c, directory, other_texts):
    """Neither in a log nor among arguments, environment, metrics or what is told to operators."""
    paths = [*c.home.glob("*.key"), *c.home.glob("*.secret"), *directory.glob("*.key")]
    assert len(paths) == 6 + 2 + 3, paths
    secrets = []
    for path in paths:
        assert path.stat().st_mode & 0o777 == 0o600, path
        text = path.read_text()
        key = re.search("^secret-key (.*)$", text, re.M)
        secrets.append((key[1] if key else text).lower().encode())
        if key:
            secrets += [bytes.fromhex(key[1]), zmq.utils.z85.encode(bytes.fromhex(key[1])).lower()]
    texts = {path.name: path.read_bytes() for path in c.home.iterdir()
             if path.is_file() and path not in paths}
    assert {"router.log", "cluster.json", "allow", "decode-0.1.ready"} <= set(texts), texts.keys()
    for name, pid in c.pids.items():
        for what in ("cmdline", "environ"):
            texts[f"{what} of {name}"] = pathlib.Path(f"/proc/{pid}/{what}").read_bytes()
        assert b"--curve-secret-file" in texts[f"cmdline of {name}"]
    for name in RANKS:
        texts[f"metrics of {name}"] = metrics_of(c, name).encode()
        assert re.search(rb'^baton_rpc_refused_total{reason="key"} [1-9]', texts[f"metrics of {name}"],
                         re.M), texts[f"metrics of {name}"]
    texts["metrics of the router"] = openai_http.request(c.http, "GET", "/metrics")[2].encode()
    texts["status"] = json.dumps(c.status()).encode()
    texts["others"] = "".join(other_texts).encode()
    for name, text in texts.items():
        for secret in secrets:
            assert secret not in text.lower() and secret not in text, f"a secret in {name}"


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20261122"))
    print(f"seed {seed}")
    layout = {"prefill_tp": 2, "decode_dp": 2}
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1000), hard))
    with cluster.Cluster(**layout) as c:
        want = answers(c, seed)
        assert not list(pathlib.Path(c.dir, "default").glob("*.key")) and "#" not in c.rpc
    with tempfile.TemporaryDirectory(prefix="baton-test-") as name:
        directory = pathlib.Path(name)
        keys_are_made(directory)
        with cluster.Cluster(curve=True, **layout) as c:
            c.home = pathlib.Path(c.dir, "default")
            assert answers(c, seed) == want
            operators_find_the_keys(c)
            descriptors_suffice(c)
            print("secured: answers equal, operators need no flags", flush=True)
            clients_without_key(c)
            stranger, flags = clients_with_strange_keys(c, directory)
            told = strange_worker(c, directory, stranger, flags)
            print("strangers are refused", flush=True)
            list_changes(c, directory)
            print("the list changes while it serves", flush=True)
            secrets_stay(c, directory, [told])
            assert answers(c, seed) == want
            c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
