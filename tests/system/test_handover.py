#!/usr/bin/env python3
"""A router's HTTP port goes to its successor under load: no connection is refused or reset, every
answer is whole, streams that run end on the old one, and the old one ends by itself."""
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import cluster
import fleet
import openai_http

TEXT = "/v1/completions"
# Longer than any stream takes, and any client that is told to leave.
DRAIN = ("--drain-timeout", "10m")


class Askers:
    """Ask again and again, each on a connection of its own or on one that is kept."""

    def __init__(self, http, bodies, expected):
        self.http, self.bodies, self.expected = http, bodies, expected
        self.stop, self.failures, self.count = threading.Event(), [], 0
        self.threads = [threading.Thread(target=self.run, args=(i, i % 2 == 1)) for i in range(4)]
        for thread in self.threads:
            thread.start()

    def ask(self, connection, index):
        connection.request("POST", TEXT, json.dumps(self.bodies[index]),
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        parsed = json.loads(answer.read())
        assert answer.status == 200, parsed
        assert parsed["choices"][0]["text"] == self.expected[index], "another answer"
        return answer.getheader("Connection") == "close"

    def run(self, number, keeps):
        connection, turn = None, number
        try:
            while not self.stop.is_set():
                connection = connection or openai_http.connect(self.http, 300)
                closes = self.ask(connection, turn % len(self.bodies))
                turn, self.count = turn + 1, self.count + 1
                if closes or not keeps:
                    connection.close()
                    connection = None
        except Exception as error:  # of any kind
            self.failures.append(f"asker {number}: {error!r}")

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.failures, self.failures


def more(askers, count):
    goal = askers.count + count
    cluster.until(lambda: askers.failures or askers.count >= goal, 60, "requests go on")
    assert not askers.failures, askers.failures


def inode_of(path):
    return os.stat(path).st_ino if os.path.exists(path) else None


def start_successor(f, path, number, *args):
    """A router that waits for workers, with workers of its own."""
    router = f.add("router", f"router-{number}", "--worker-endpoint", "tcp://127.0.0.1:*",
                   "--handover", path, *DRAIN, *args)
    router.start().wait_ready()
    return router


def add_workers(f, router, number):
    f.registry = router.rpc
    for role in ("decode", "prefill"):
        f.add(role, f"{role}-{number}", "--kv-pages", "256").start()


def check_under_load(f, path):
    bodies = [dict(fleet.body_of(i, 20 + 30 * i, 24)) for i in range(4)]
    expected = [openai_http.post(f.http, TEXT, body)["choices"][0]["text"] for body in bodies]
    old = f.processes["router"]
    askers = Askers(f.http, bodies, expected)
    try:
        more(askers, 6)
        for number in (1, 2):
            idle = openai_http.connect(f.http, 300)
            idle.connect()  # accepted or in the queue: somebody answers
            before = inode_of(path)
            successor = start_successor(f, path, number)
            assert successor.ready["http"] == f.http, (successor.ready, f.http)
            more(askers, 4)  # it has no workers, and the old one goes on
            assert old.child.poll() is None and inode_of(path) == before
            add_workers(f, successor, number)
            cluster.until(lambda: inode_of(path) not in (None, before), 60, "the successor offers")
            more(askers, 6)
            askers.ask(idle, 0)
            idle.close()
            cluster.until(lambda: old.child.poll() is not None, 60, "the old router ends by itself")
            assert old.child.returncode == 0, old.child.returncode
            assert "has the HTTP port now" in old.text()
            old = successor
            f.rpc = successor.rpc
            more(askers, 6)
    finally:
        askers.stop.set()
    askers.end()


def check_stream_ends_on_the_old(f, path):
    """A stream that began before goes on to its end on the router that it began at: its decode rank
    stands still until another has the port."""
    body = {"prompt": [7] * 100, "max_tokens": 800, "ignore_eos": True, "temperature": 0}
    events = openai_http.stream(f.http, TEXT, body)
    next(events)
    old = f.processes["router-2"]
    with fleet.held([f.processes["decode-2"]]):
        successor = start_successor(f, path, 3)
        add_workers(f, successor, 3)
        cluster.until(lambda: "has the HTTP port now" in old.text(), 60, "the successor has the port")
    text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
    assert len(text) > 0
    cluster.until(lambda: old.child.poll() is not None, 60, "the old router ends")
    whole = openai_http.post(f.http, TEXT, body)["choices"][0]["text"]
    assert whole.endswith(text), "the stream is not whole"


def check_strangers(f, path):
    """Whoever connects and says nothing, nonsense, or dies changes nothing."""
    owner = f.processes["router-3"]
    for data in (b"", b"X", b"XT" * 100):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            s.sendall(data)
    openai_http.request(f.http, "GET", "/health")
    dead = start_successor(f, path, 4)
    second = f.add("router", "router-6", "--worker-endpoint", "tcp://127.0.0.1:*", "--handover", path)
    second.start().child.wait()     # while another waits for its workers
    assert second.child.returncode != 0 and "does not hand its port over" in second.text()
    dead.kill()  # has the listener, and never took it
    status, _, _ = openai_http.request(f.http, "GET", "/ready")
    assert status == 200 and owner.child.poll() is None
    signalled = start_successor(f, path, 5)
    signalled.send(signal.SIGTERM)
    signalled.child.wait()
    assert signalled.child.returncode == 0
    assert openai_http.request(f.http, "GET", "/ready")[0] == 200


def check_mistakes(f):
    for path, what in (("x" * 200, "--handover"), ("", "--handover"),
                       (str(f.dir / "none" / "sock"), "--handover")):
        done = subprocess.run([str(cluster.BUILD / fleet.PROGRAMS["router"]), "--model", str(cluster.MODEL),
                               "--port", "0", "--worker-endpoint", "tcp://127.0.0.1:*",
                               "--handover", path], capture_output=True, text=True, timeout=300)
        assert done.returncode != 0 and what in done.stderr, done.stderr


def main():
    fleet.seed()
    with fleet.Fleet() as f:
        path = str(f.dir / "handover")
        f.router("--handover", path, *DRAIN)
        assert oct(os.stat(path).st_mode & 0o777) == "0o600"
        for role in ("decode", "prefill"):
            f.add(role, f"{role}-0", "--kv-pages", "256").start()
        f.wait_ready_all()
        check_under_load(f, path)
        check_stream_ends_on_the_old(f, path)
        check_strangers(f, path)
        check_mistakes(f)
    assert not os.path.exists(path)
    print("ok")


if __name__ == "__main__":
    sys.exit(main())
