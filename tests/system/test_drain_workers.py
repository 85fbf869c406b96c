#!/usr/bin/env python3
"""Workers that are told to end, one at a time and under load: requests of all stages run to the same
bytes as undisturbed, and nothing of it counts as a failure. Then Worker/Drain together with the
signal, and of a rank with streams whose router was killed."""
import contextlib
import itertools
import random
import signal
import sys
import threading

import baton_client
import cluster
import fleet
import openai_http
from sse_client import Stream, join_all, run_all
from test_kills import Load, bodies_of

TEXT = "/v1/completions"
STREAMS = 8
GRACE = ("--router-grace", "10m",    # longer than a router is away on the slowest machine
         "--lease", "10m")           # and than anybody stands still: nothing counts as a failure
FAILURES = ('baton_router_retries_total{cause="reserve_failed"',
            'baton_router_retries_total{cause="handoff_failed"',
            "baton_router_breaker_openings_total", "baton_router_workers_kept_out_total",
            "baton_router_worker_losses_total", "baton_router_budget_refused_total")


def router_metric(f, start):
    """Sum over all series whose name, and labels in any order, have these words."""
    _, _, text = openai_http.request(f.http, "GET", "/metrics")
    name, _, label = start.partition("{")
    found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
             if line.partition("{")[0].split(" ")[0] == name and label in line]
    assert found, f"no {start}"
    return sum(found)


def check_blameless(f):
    counts = {start: router_metric(f, start) for start in FAILURES}
    assert not any(counts.values()), counts


def states_on(f, worker, of):
    return [r.state for r in f.status().requests if getattr(r, of) == worker.name]


class Drain:
    """A Drain call that waits."""

    def __init__(self, worker):
        self.kinds = baton_client.pb["worker"]
        self.client = baton_client.Client(worker.rpc)
        self.call = self.client.start("baton.v1.Worker/Drain", self.kinds.DrainRequest())

    def over(self, seconds=0.05):
        """Whether it has its answer, after this time at the latest."""
        try:
            for _ in self.client.messages(self.call, self.kinds.DrainResponse, seconds):
                raise AssertionError("a Drain with data")
        except TimeoutError:
            return False
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()


def leave_in_mid_load(f, load, worker, of, wanted, drain=False):
    """Tells `worker` to end while it has requests of each of `wanted`, which nothing takes further
    meanwhile. `drain`: and to drain, just before."""
    def left():
        load.check()
        assert worker.child.poll() is None
        if not set(wanted) & set(states_on(f, worker, of)):
            return False
        with fleet.held({*f.workers("prefill"), worker}), contextlib.ExitStack() as calls:
            had = states_on(f, worker, of)
            if not set(wanted) <= set(had):
                return False
            if drain:
                calls.enter_context(Drain(worker))
            worker.send(signal.SIGTERM)
        return had
    had = cluster.until(left, 100, f"{worker.name} has requests that are {wanted}")
    cluster.until(lambda: worker.child.poll() is not None, 30, f"{worker.name} ends")
    assert worker.child.returncode == 0, worker.child.returncode
    print(f"{worker.name} {'drained and ' if drain else ''}ended with {len(had)} requests", flush=True)
    load.wait_ended(STREAMS // 2)
    worker.start().wait_ready()


def check_leaving(f, load):
    with load:
        load.wait_ended(1)
        for drain in itertools.count():     # twice, and until somebody was disturbed
            leave_in_mid_load(f, load, f.processes["decode-0"], "decode_worker",
                              {"prefilling", "decoding"}, drain % 2 == 1)
            leave_in_mid_load(f, load, f.processes["prefill-0"], "prefill_worker", {"prefilling"},
                              drain % 2 == 1)
            if drain and load.again:
                break
    load.check()
    check_blameless(f)
    f.wait_ready_all()
    f.wait_quiet()
    print(f"{load.ended} answers equal, {load.again} attempts repeated", flush=True)


def hand_on(f, stream, times):
    """False: it ended before it was handed on so often."""
    running = run_all([stream], lambda: f.http)
    ended = set()
    while len(ended) < times and not stream.over:
        before = stream.tokens()
        cluster.until(lambda: stream.over or stream.tokens() > before, 60, "it streams")
        at = {r.decode_worker for r in f.status().requests if r.state == "decoding"} - ended
        for name in at:
            f.processes[name].send(signal.SIGTERM)
            ended.add(name)
    join_all(running)
    for name in ended:
        worker = f.processes[name]
        worker.child.wait()
        assert worker.child.returncode == 0
        worker.start()
    f.wait_ready_all()
    return len(ended) >= times


def check_handed_on(f):
    """One stream that ranks give back more often than it may fail (--max-attempts)."""
    body = {"prompt": [11, 12, 13] * 30, "max_tokens": 250, "ignore_eos": True, "temperature": 0.9}
    for rank in range(2, 5):
        f.add("decode", f"decode-{rank}", *GRACE).start()
    f.wait_ready_all()
    done = False
    while not done:             # a longer one, where it ended before
        body["max_tokens"] *= 2
        reference = Stream(TEXT, body, "handed-on").run(lambda: f.http)
        stream = Stream(TEXT, body, "handed-on")
        done = hand_on(f, stream, 4)
        assert stream.answer() == reference.answer() and stream.connections == 1, stream.cuts
        check_blameless(f)
    print("a stream was handed on 4 times", flush=True)


def leave_orphans(f, port, streams, gate):
    """Has the router killed while streams are decoded; the ranks know, and clients wait at the gate.
    None: they were too fast."""
    gate.set()
    running = run_all(streams, lambda: gate.wait() and f.http)
    cluster.until(lambda: all(s.over or s.tokens() >= 5 for s in streams), 60, "all have begun")
    ranks = f.workers("decode")
    with fleet.held(ranks):
        gate.clear()
        f.processes["router"].kill()
    cluster.until(lambda: all(fleet.made_orphans(rank) or not rank.metric("vllm:num_requests_running")
                              for rank in ranks), 60, "they have no router")
    if any(fleet.made_orphans(rank) for rank in ranks):
        return running
    f.router(http_port=port, worker_endpoint=f.registry)
    gate.set()
    join_all(running)
    f.wait_ready_all()
    return None


def check_drain_with_orphans(f, port):
    """The router is killed, then all ranks are told to drain. What they run waits for a router, the
    drain for what they run; a router that comes takes it over from ranks that take nothing new."""
    bodies = [{"prompt": [20 + i, 21, 22] * 20, "max_tokens": 200, "ignore_eos": True,
               "temperature": 0.8} for i in range(4)]

    def streams_of_all():
        return [Stream(TEXT, body, f"left-{i}") for i, body in enumerate(bodies)]
    running, gate = None, threading.Event()
    while not running:          # longer ones, where they were too fast
        for body in bodies:
            body["max_tokens"] *= 2
        references, streams = streams_of_all(), streams_of_all()
        join_all(run_all(references, lambda: f.http))
        running = leave_orphans(f, port, streams, gate)
    ranks = f.workers("decode")
    with contextlib.ExitStack() as stack:
        drains = [(rank, stack.enter_context(Drain(rank))) for rank in ranks]
        assert not any(drain.over() for rank, drain in drains if fleet.made_orphans(rank))
        f.router(http_port=port, worker_endpoint=f.registry)
        names = {rank.name for rank in ranks}
        cluster.until(lambda: names <= {w.worker_id for w in f.status().workers
                                        if w.state == "draining"}, 30, "the router sees them drain")
        f.wait_heard(ranks)
        # For what was not decoding when the router died.
        f.add("decode", "decode-new", *GRACE).start().wait_ready()
        gate.set()
        join_all(running)
        for stream, reference in zip(streams, references):
            assert stream.answer() == reference.answer(), (stream.name, stream.cuts)
        adopted = router_metric(f, "baton_router_adopted_total")
        assert adopted > 0
        assert all(drain.over(60 * cluster.PATIENCE) for _, drain in drains)
    check_blameless(f)
    print(f"{adopted:.0f} of {len(streams)} were taken over from ranks that drain", flush=True)


def main():
    r = random.Random(fleet.seed())
    shared = "You are told a story. " * 12
    requests = [list(bodies_of(stream, r, shared))[:2] for stream in range(STREAMS)]
    with fleet.Fleet() as f:
        f.router()
        port = int(f.http.rsplit(":", 1)[1])
        for i in range(2):
            f.add("prefill", f"prefill-{i}", "--chunked-prefill-size", 128).start()
            f.add("decode", f"decode-{i}", *GRACE).start()
        f.wait_ready_all()
        load = Load(f.http, requests)
        load.undisturbed()
        check_leaving(f, load)
        check_handed_on(f)
        check_drain_with_orphans(f, port)
        f.wait_quiet()
    return 0


if __name__ == "__main__":
    sys.exit(main())
