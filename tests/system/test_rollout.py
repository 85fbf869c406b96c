#!/usr/bin/env python3
"""`batonctl rollout` under load: workers are replaced one by one while every answer stays the same,
bit for bit; another model takes over without a refused connection; what fails, is interrupted or killed
leaves the cluster as it was."""
import fcntl
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import threading

import cluster
import fleet
import openai_http

TEXT = "/v1/completions"
OTHER = pathlib.Path(tempfile.mkdtemp(prefix="baton-other-"))


def make_other():
    """The same weights, that turn keys otherwise."""
    for path in cluster.MODEL.iterdir():
        if path.is_file() and path.name != "config.json":
            (OTHER / path.name).symlink_to(path)
    config = json.loads((cluster.MODEL / "config.json").read_text())
    (OTHER / "config.json").write_text(json.dumps({**config, "rope_theta": 2.5 * config["rope_theta"]}))


def state(c):
    return json.loads(pathlib.Path(c.dir, "default/cluster.json").read_text())


def pids(c):
    return {p["pid"] for p in state(c)["processes"]}


def names(c, role=None):
    return {p["id"] for p in state(c)["processes"] if role in (None, p["role"])}


def refresh(c):
    """The processes that are there now are those that the test ends."""
    now = state(c)
    c.pids = {p["id"]: p["pid"] for p in now["processes"]}
    c.rpc = now["rpc"]
    return now


class Askers:
    def __init__(self, c, bodies, models):
        self.http, self.bodies = c.http, bodies
        self.expected = {}              # model -> answers; of models that came later, their first
        self.models, self.seen = models, set()
        self.stop, self.failures, self.count = threading.Event(), [], 0
        self.lock = threading.Lock()
        for index in range(len(bodies)):
            self.ask(index)
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(3)]
        for thread in self.threads:
            thread.start()

    def ask(self, index):
        status, _, parsed = openai_http.request(self.http, "POST", TEXT, self.bodies[index],
                                                timeout=500)
        assert status == 200, (status, parsed)
        answer = (parsed["choices"][0]["text"], parsed["choices"][0].get("token_ids"))
        with self.lock:
            self.seen.add(parsed["model"])
            first = self.expected.setdefault((parsed["model"], index), answer)
        assert parsed["model"] in self.models, parsed["model"]
        assert first == answer, f"request {index} of {parsed['model']} has two answers"

    def run(self, number):
        turn = number
        try:
            while not self.stop.is_set():
                self.ask(turn % len(self.bodies))
                turn, self.count = turn + 1, self.count + 1
        except Exception as error:  # of any kind
            self.failures.append(f"asker {number}: {error!r}")

    def more(self, count):
        goal = self.count + count
        cluster.until(lambda: self.failures or self.count >= goal, 60, "requests go on")
        assert not self.failures, self.failures

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.failures, self.failures


def check_one_by_one(c, askers):
    before = state(c)["processes"]
    done = c.ctl("rollout", "decode", "--decode-args", "--max-num-seqs 7", "--output", "json")
    parsed = json.loads(done.stdout)
    assert parsed["after"] == parsed["before"] == {"prefill": 1, "decode": 2}, parsed
    refresh(c)
    for process in before:
        assert (process["pid"] in pids(c)) == (process["role"] != "decode"), (process, state(c))
    for name in names(c, "decode"):
        command = pathlib.Path("/proc", str(c.pids[name]), "cmdline").read_bytes().split(b"\0")
        assert command[command.index(b"--max-num-seqs") + 1] == b"7", command
    askers.more(6)


def check_bad_arguments_change_nothing(c, askers):
    before = state(c)
    done = c.ctl("rollout", "prefill", "--prefill-args", "--no-such-flag 1", check=False)
    assert done.returncode != 0 and "no-such-flag" in done.stderr, done
    done = c.ctl("rollout", "--model", str(OTHER), "--decode-args", "--no-such-flag 1", check=False)
    assert done.returncode != 0 and "no-such-flag" in done.stderr, done
    done = c.ctl("rollout", "--model", "/nowhere", check=False)
    assert done.returncode == 2 and "/nowhere" in done.stderr, done
    for wrong in (["router"], ["--dtype", "float32"], ["decode", "--model", str(OTHER)]):
        assert c.ctl("rollout", *wrong, check=False).returncode == 2
    assert c.ctl("rollout", "--dry-run").returncode == 0
    assert state(c) == before, "the cluster is another one"
    refresh(c)
    askers.more(3)


class Begun:
    """A rollout to the other model that has said its first line. It can't end before somebody reads: there
    is no room for a second line, which comes when its first worker is ready."""

    def __init__(self, c):
        first = f"starting 2 routers for {OTHER}\n".encode()
        self.of, to = os.pipe()
        filler = b"." * (fcntl.fcntl(to, fcntl.F_SETPIPE_SZ, os.sysconf("SC_PAGESIZE")) - len(first) - 1)
        os.write(to, filler)
        self.child = subprocess.Popen([str(cluster.BATONCTL), "rollout", "--state-dir", c.dir, "--model",
                                       str(OTHER)], stderr=to, stdout=subprocess.DEVNULL)
        os.close(to)

        def said():
            waiting = struct.unpack("i", fcntl.ioctl(self.of, termios.FIONREAD, bytes(4)))[0]
            assert self.child.poll() is None, self.read()
            return waiting >= len(filler) + len(first)
        cluster.until(said, 60, "the first line")

    def read(self):
        with open(self.of, encoding="utf-8") as file:
            return file.read().lstrip(".")

    def kill(self):
        self.child.kill()
        self.child.wait()
        return self.read()


def check_interrupted(c, askers):
    """Ctrl-C while the other model's workers start: nothing of them is left."""
    before = state(c)
    begun = Begun(c)
    begun.child.send_signal(signal.SIGINT)
    told = begun.read()
    assert begun.child.wait() != 0 and told.startswith("starting 2 routers for"), told
    assert state(c) == before, told
    askers.more(3)


def check_killed(c, askers):
    """SIGKILL of batonctl while the other model's routers wait: what it began has to end, and does."""
    before = state(c)
    begun = Begun(c)
    try:
        cluster.until(lambda: len(names(c, "router")) == 4, 60, "the other routers start")
    finally:
        begun.kill()
    left = state(c)
    assert all(p["ending"] for p in left["processes"][len(before["processes"]):]), left
    assert {**left, "processes": 0} == {**before, "processes": 0}, left
    c.ctl("scale", "decode=2")
    assert state(c) == before, state(c)
    askers.more(3)


def check_another_model(c, askers):
    before = pids(c)
    http = c.http
    c.ctl("rollout", "--model", str(OTHER), "--served-model-name", "other")
    now = refresh(c)
    assert now["http"] == http and now["model"] == str(OTHER), now
    assert not before & pids(c), (before, state(c))
    for router in now["routers"]:
        assert openai_http.request(router["http"], "GET", "/v1/models")[2]["data"][0]["id"] == "other"
    assert len(names(c, "router")) == len(now["routers"]) == 2, now
    assert len(names(c, "decode")) == 2 and len(names(c, "prefill")) == 1, names(c)
    askers.more(6)
    assert "other" in askers.seen, askers.seen
    models = openai_http.request(c.http, "GET", "/v1/models")[2]
    assert [m["id"] for m in models["data"]] == ["other"], models
    routers = json.loads(c.ctl("get", "--output", "json", "routers").stdout)
    assert {r["router"] for r in routers} == names(c, "router"), (routers, names(c))

    def ready():
        workers = json.loads(c.ctl("get", "--output", "json", "workers").stdout)
        return {w["worker"] for w in workers if w["state"] == "ready"}
    cluster.until(lambda: ready() == names(c) - names(c, "router"), 30, "the workers alone are ready")


def main():
    fleet.seed()
    make_other()
    bodies = [{"prompt": [3 + (i * 977 + 31 * k) % 2000 for k in range(40)], "max_tokens": 12, "ignore_eos": True, "seed": i,
               "temperature": 0.0 if i % 2 else 0.9, "return_token_ids": True} for i in range(4)]
    with cluster.Cluster(prefill=1, decode=2, routers=2, curve=True) as c:
        askers = Askers(c, bodies, {"tiny", "other"})
        try:
            askers.more(3)
            check_one_by_one(c, askers)
            check_bad_arguments_change_nothing(c, askers)
            check_interrupted(c, askers)
            check_killed(c, askers)
            check_another_model(c, askers)
        finally:
            askers.stop.set()
            if os.path.exists(os.path.join(c.dir, "default/cluster.json")):
                refresh(c)
        askers.end()
        assert any(askers.expected["tiny", i] != askers.expected["other", i]
                   for i in range(len(bodies))), askers.expected
    print("ok")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(OTHER, ignore_errors=True)
