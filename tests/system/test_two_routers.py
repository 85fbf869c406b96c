#!/usr/bin/env python3
"""Two routers on one set of workers: each gives answers of the same bits, knows of the other's load,
and takes the other's requests over when it is killed; the same request at both at once ends well."""
import concurrent.futures
import itertools
import random
import sys
import threading

import baton_client
import cluster
import fleet
import openai_http
from sse_client import Stream, join_all, run_all

TEXT = "/v1/completions"


def usage_seen(http):
    """Mean share of pages in use, as this router has it."""
    _, _, text = openai_http.request(http, "GET", "/metrics")
    return [float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
            if line.startswith("vllm:kv_cache_usage_perc")]


def status(rpc):
    with baton_client.Client(rpc) as client:
        return client.status()


def used(rpc):
    return sum(w.load.pages_total - w.load.pages_free for w in status(rpc).workers)


def check_load(routers):
    """A router that has no request sees the pages of the other's."""
    one, two = routers
    body = {"prompt": [7] * 500, "max_tokens": 1500, "ignore_eos": True}
    seen = threading.Event()

    def ask(client):
        for turn in itertools.count():
            Stream(TEXT, body, f"load-{client}-{turn}").run(lambda: one["http"])
            if seen.is_set():
                return
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(ask, client) for client in range(4)]
        try:
            cluster.until(lambda: used(two["rpc"]) > 0 and any(usage_seen(two["http"])), 60,
                          "the second router sees pages of the first's")
            assert not status(two["rpc"]).requests
        finally:
            seen.set()
        for job in jobs:
            job.result()
    cluster.until(lambda: used(two["rpc"]) == 0, 60, "and sees that they are free again")


def check_bits(routers, r):
    """Load on both at once."""
    bodies = [fleet.body_of(r.randrange(2 ** 30), r.choice([5, 60, 300]), 24) for _ in range(12)]
    answers, failures = {}, []

    def ask(index):
        answer, error = fleet.ask(routers[index % 2]["http"], bodies[index])
        answers[index] = answer
        if error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for index, body in enumerate(bodies):
        again, error = fleet.ask(routers[1 - index % 2]["http"], body)
        assert not error and again == answers[index], (index, error)


def check_same_request(routers):
    """The same name and body at both at once: one number on the ranks. Each ends, with one answer."""
    for number in range(3):
        body = {"prompt": [9, 8, 7] * 20, "max_tokens": 60, "ignore_eos": True, "temperature": 0.8}
        streams = [Stream(TEXT, body, f"twin-{number}") for _ in routers]
        running = [run_all([s], lambda at=router["http"]: at) for s, router in zip(streams, routers)]
        for each in running:
            join_all(each)
        assert streams[0].answer() == streams[1].answer()
        assert not any(s.cuts or s.refusals for s in streams), [s.cuts for s in streams]


def check_killed(c, seed, tokens):
    """The first is killed; its clients go on at the second. False: fewer than two were cut off."""
    routers, r = c.routers, random.Random(seed)
    where = [routers[0]["http"]]
    bodies = [{"prompt": [r.randrange(3, 2046) for _ in range(10 + 10 * i)], "max_tokens": tokens,
               "ignore_eos": True, "temperature": 0.9} for i in range(4)]
    references = [Stream(TEXT, body, f"moved-{i}") for i, body in enumerate(bodies)]
    join_all(run_all(references, lambda: routers[1]["http"]))
    streams = [Stream(TEXT, body, f"moved-{i}") for i, body in enumerate(bodies)]
    others = [Stream(TEXT, {**body, "max_tokens": 60}, f"other-{i}") for i, body in enumerate(bodies)]
    running = run_all(streams, lambda: where[0])
    beside = run_all(others, lambda: routers[1]["http"])
    cluster.until(lambda: all(s.over or s.tokens() >= 8 for s in streams), 120, "all have begun")
    c.kill("router")
    # The ranks tell of orphans when they have noticed, which is at once.
    where[0] = routers[1]["http"]
    join_all(running)
    join_all(beside)
    for stream, reference in zip(streams, references):
        assert stream.answer() == reference.answer(), stream.name
    assert all(s.connections == 1 for s in others)    # of the other router nothing was disturbed
    _, _, text = openai_http.request(routers[1]["http"], "GET", "/metrics")
    adopted = sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                  if line.startswith("baton_router_adopted_total"))
    cut = sum(s.connections >= 2 for s in streams)
    print(f"of {cut} that were cut off {adopted:.0f} were taken over by the second router")
    cluster.until(lambda: used(routers[1]["rpc"]) == 0, 60, "all pages are free")
    assert c.status()["workers"], "batonctl speaks to the router that lives"
    return cut >= 2


def check_down(c):
    c.ctl("down")
    c.pids.pop("router")
    assert not any(c.alive(name) for name in c.pids)
    c.pids.clear()


def in_the_middle(seed):
    """The death of a router again, with longer answers, as all were over before."""
    for tokens in (1000, 4000, 12000):
        with start() as c:
            if check_killed(c, seed, tokens):
                return
    raise AssertionError("answers end before their router is killed")


def start():
    return cluster.Cluster(prefill=1, decode=2, routers=2, router_args="--heartbeat 200")


def main():
    r = random.Random(fleet.seed())
    with start() as c:
        routers = c.routers
        assert len(routers) == 2
        check_load(routers)
        check_bits(routers, r)
        check_same_request(routers)
        for router in routers:
            cluster.until(lambda rpc=router["rpc"]: used(rpc) == 0, 60, "no page is in use")
        seed = r.random()
        cut = check_killed(c, seed, 250)
        check_down(c)
    if not cut:
        in_the_middle(seed)


if __name__ == "__main__":
    sys.exit(main())
