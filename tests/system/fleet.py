"""Processes of a cluster that a test starts, kills, stops and restarts one by one.

Unlike cluster.Cluster it knows each process as its child, so that a worker can come back under its
old name and address, behind a proxy, or in a network namespace. All end with the test, by pid.
"""
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import baton_client
import cluster
import openai_http

PROGRAMS = {"router": "router/baton-router", "prefill": "prefill-node/baton-prefill",
            "decode": "decode-node/baton-decode"}
MARKS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:",
         "WARNING: ThreadSanitizer", "broken invariant", "assertion failed")


def seed():
    """The environment's, or one that is the same in every run."""
    value = int(os.environ.get("BATON_TEST_SEED", "20261122"))
    print(f"seed {value}", flush=True)
    return value


@contextlib.contextmanager
def held(processes):
    """They stand still; for less than the seconds after which they count as lost."""
    try:
        for process in processes:
            if process.child.poll() is None:
                cluster.stand_still(process.child.pid)
        yield
    finally:
        for process in processes:
            process.send(signal.SIGCONT)


class Process:
    """One program. `name` is the worker id; start() again after its end is a restart."""

    def __init__(self, fleet, role, name, args, prefix=()):
        self.fleet, self.role, self.name, self.prefix = fleet, role, name, list(prefix)
        self.args = list(map(str, args))
        self.log = fleet.dir / f"{name}.log"
        self.ready_file = fleet.dir / f"{name}.ready"
        self.child = None
        self.ready = {}

    def start(self, extra=()):
        self.ready_file.unlink(missing_ok=True)
        command = [*self.prefix, str(cluster.BUILD / PROGRAMS[self.role]), "--model", str(cluster.MODEL),
                   "--ready-file", str(self.ready_file), "--die-with-parent", *self.args]
        if self.role != "router":
            command += ["--worker-id", self.name, "--router", self.fleet.registry]
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(command + list(map(str, extra)), stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=log)
        return self

    def wait_ready(self, seconds=60):
        def there():
            assert self.child.poll() is None, f"{self.name} ended:\n{self.text()[-2000:]}"
            return self.ready_file.exists()
        cluster.until(there, seconds, f"{self.name} is ready")
        self.ready = json.loads(self.ready_file.read_text())
        return self

    @property
    def rpc(self):
        return self.ready["rpc"]

    def text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, sig):
        if self.child and self.child.poll() is None:
            self.child.send_signal(sig)

    def kill(self):
        self.send(signal.SIGKILL)
        self.child.wait()

    def metrics(self, seconds=60):
        """{'name{labels}': value} as the process itself says it."""
        worker = baton_client.pb["worker"]
        with baton_client.Client(self.rpc) as client:
            text = client.call("baton.v1.Worker/Metrics", worker.MetricsRequest(),
                               worker.MetricsResponse, seconds).text
        return {key: float(value) for key, value in
                (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")}

    def metric(self, name, *labels, seconds=60):
        """Sum over all whose name is this and whose labels contain these."""
        return sum(value for key, value in self.metrics(seconds).items()
                   if re.split(r"[{ ]", key)[0] == name and all(label in key for label in labels))


def made_orphans(rank):
    """How many requests of routers that were gone it has gone on with."""
    return rank.metric("baton_orphans_total", 'event="made"')


class Fleet:
    """with Fleet() as f: f.router(); f.add("decode", "decode-0").start(); …"""

    def __init__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="baton-fleet-"))
        self.processes = {}
        self.registry = None        # where workers register: the router, or a proxy before it
        self.http = self.rpc = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        clean = self.stop()
        reports = [f"{p.name}: {line}" for p in self.processes.values()
                   for line in p.text().splitlines() if any(mark in line for mark in MARKS)]
        if kind or reports or not clean:
            print(self.logs(), file=sys.stderr)
        shutil.rmtree(self.dir, ignore_errors=True)
        assert kind or not reports, reports
        assert kind or clean, "a process did not end in order"

    def logs(self):
        return "\n".join(f"---- {p.name}\n" + "\n".join(p.text().splitlines()[-60:])
                         for p in self.processes.values())

    def stop(self):
        """True: what lived until now ended in order."""
        clean, end = True, time.monotonic() + 30 * cluster.PATIENCE
        for process in reversed(self.processes.values()):
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
        for process in self.processes.values():
            if process.child is None:
                continue
            try:
                process.child.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"{process.name} does not end", file=sys.stderr)
                clean = False
                process.send(signal.SIGABRT)
                process.child.wait()
        return clean

    def add(self, role, name, *args, prefix=()):
        process = Process(self, role, name, args, prefix)
        self.processes[name] = process
        return process

    def router(self, *args, http_port=0, worker_endpoint="tcp://127.0.0.1:*", prefix=()):
        router = self.processes.get("router") or self.add("router", "router", prefix=prefix)
        router.args = ["--port", str(http_port), "--worker-endpoint", worker_endpoint,
                       *map(str, args)]
        router.start().wait_ready()
        self.http, self.rpc = router.ready["http"], router.ready["rpc"]
        self.registry = self.registry or self.rpc
        return router

    def workers(self, role):
        return [p for p in self.processes.values() if p.role == role]

    def status(self):
        with baton_client.Client(self.rpc) as client:
            return client.status()

    def wait_ready_all(self, seconds=60):
        for process in self.processes.values():
            if process.child and process.child.poll() is None:
                process.wait_ready(seconds)
        names = {p.name for p in self.processes.values() if p.role != "router" and p.child
                 and p.child.poll() is None}
        cluster.until(lambda: names <= {w.worker_id for w in self.status().workers
                                        if w.state == "ready"}, seconds, f"{names} are ready")

    def wait_heard(self, processes, seconds=60):
        """What they know now they have told the router: each heartbeat is sent after the answer to the
        one before, so the second that comes was sent after this began."""
        for _ in range(2):
            begin = time.monotonic()

            def heard():
                names, asked = {p.name for p in processes}, time.monotonic()
                return names <= {w.worker_id for w in self.status().workers
                                 if w.last_heartbeat_s < asked - begin}
            cluster.until(heard, seconds, "heartbeats")

    def quiet(self):
        """No request is left anywhere and every page of every live worker is free: as the workers
        say it themselves, as what the router knows may be a heartbeat old."""
        status = self.status()
        if status.requests or status.queued:
            return False
        for process in self.processes.values():
            if process.role == "router" or process.child.poll() is not None:
                continue
            if any(process.metric(name) for name in cluster.BUSY):
                return False
        return True

    def wait_quiet(self, seconds=60):
        try:
            cluster.until(self.quiet, seconds, "all pages free and no request left")
        except AssertionError:
            print(self.status(), file=sys.stderr)
            raise


def body_of(number, tokens, max_tokens=20):
    """The request with this number: its own prompt and sampling, the same at every call."""
    r = random.Random(number)
    prompt = [r.randrange(3, 2046) for _ in range(tokens)]
    return {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "seed": number,
            "temperature": r.choice([0.0, 0.8]), "logprobs": 0, "return_token_ids": True}


def bits(value):
    return struct.pack("<f", value).hex()


def ask(base, body, timeout=120):
    """(tokens and bits of logprobs, None) or (None, what the error says)."""
    try:
        code, _, answer = openai_http.request(base, "POST", "/v1/completions", body, timeout=timeout)
    except (OSError, http.client.HTTPException) as error:
        return None, f"connection: {error!r}"
    if code != 200:
        return None, f"{code} {answer['error']['message']}"
    choice = answer["choices"][0]
    return (choice["token_ids"], list(map(bits, choice["logprobs"]["token_logprobs"]))), None


def expected(bodies):
    """What one process without a network says: tokens and logprobs, in the form of ask()."""
    lines = "".join(json.dumps({"id": str(i), "prompt": b["prompt"], "sampling": {
        k: b[k] for k in ("max_tokens", "ignore_eos", "seed", "temperature", "logprobs")}}) + "\n"
                    for i, b in enumerate(bodies))
    done = subprocess.run([cluster.BUILD / "tests/solo/baton-solo", "--model", cluster.MODEL,
                           "--chunked-prefill-size", "512"], input=lines, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = {a["id"]: a for a in map(json.loads, done.stdout.splitlines())}
    return [(answers[str(i)]["tokens"], list(map(bits, answers[str(i)]["logprobs"])))
            for i in range(len(bodies))]
