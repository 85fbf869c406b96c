#!/usr/bin/env python3
"""The scaling verbs of batonctl on a cluster of `up`, under load: the ratio goes 1:3 -> 3:1 -> 1:3, workers
change their role, are drained and resumed, die and are replaced, and what begins to scale is interrupted;
every answer is bitwise that of an undisturbed run."""
import contextlib
import fcntl
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import cluster
import fleet
from test_kills import Load, bodies_of

STREAMS = 6


def state_of(c):
    with open(os.path.join(c.dir, "default/cluster.json"), encoding="utf-8") as file:
        state = json.load(file)
    c.pids = {p["id"]: p["pid"] for p in state["processes"]}
    return state


def scale(c, *args, verb="scale", **more):
    return json.loads(c.ctl(verb, "--output", "json", *args, **more).stdout)


def members(c, role):
    """Names of workers that serve, as the engine and as the router see them."""
    look = scale(c, "--dry-run", "decode=1")
    names = sorted(w["worker"] for w in look["workers"] if w["role"] == role and w["ready"])
    seen = sorted({w["worker"].partition(".")[0] for w in c.status()["workers"]
                   if w["role"] == role and w["state"] == "ready"})
    return names, seen


def check_counts(c, prefill, decode):
    """Exactly so many, nothing else left over; the router agrees."""
    state = state_of(c)
    wanted = {role: state["workers"][role]["wanted"] for role in ("prefill", "decode")}
    assert wanted == {"prefill": prefill, "decode": decode}, wanted
    for role, count in wanted.items():
        names, _ = members(c, role)
        assert len(names) == count, (role, names)
        cluster.until(lambda: members(c, role)[1] == names, 30, f"the router has {names}")
    ranks = sum(state["workers"][role]["ranks"] * count for role, count in wanted.items())
    assert len(state["processes"]) == ranks + len(state["routers"]), state["processes"]
    assert all(c.alive(name) for name in c.pids)


def check_ratio(c, load):
    look = c.ctl("ratio", "2:3", "--total", "4", "--dry-run")
    assert "1.60:2.40" in look.stderr and "2:2" in look.stderr, look.stderr
    for args, counts in ((("prefill=3", "decode=1"), (3, 1)), (("prefill=1", "decode=3"), (1, 3))):
        load.wait_ended(2)
        done = scale(c, *args)
        assert (done["after"]["prefill"], done["after"]["decode"]) == counts, done
        check_counts(c, *counts)
    load.wait_ended(STREAMS)
    load.check()
    # Those that a worker was sent while it said that it takes nothing new.
    print(f"1:3 -> 3:1 -> 1:3 with {load.ended} answers, {load.again} attempts repeated", flush=True)
    # No time at all: what runs goes on elsewhere.
    for ratio, counts in (("3:1", (3, 1)), ("2:2", (2, 2))):
        scale(c, ratio, "--drain-deadline", "0s", verb="ratio")
        check_counts(c, *counts)
        load.wait_ended(2)
    print(f"2:2, at once; {load.again} attempts repeated", flush=True)


def loaded(c, load, role):
    """A worker that has something now."""
    found = []

    def there():
        load.check()
        for request in c.status()["requests"]:
            if request[role]:
                found.append(request[role])
        return found
    cluster.until(there, 60, f"a {role} worker has a request")
    return found[0]


def check_switch(c, load):
    worker = loaded(c, load, "decode")
    done = scale(c, worker, "prefill", "--drain-deadline", "0s", verb="switch-role")
    assert done["after"] == {"prefill": 3, "decode": 1}, done
    assert worker not in state_of(c)["workers"] and worker not in c.pids
    check_counts(c, 3, 1)
    worker = members(c, "decode")[0][0]
    refused = c.ctl("switch-role", worker, "prefill", check=False)
    assert refused.returncode == 2 and "one decode worker" in refused.stderr, refused
    scale(c, loaded(c, load, "prefill"), "decode", verb="switch-role")
    check_counts(c, 2, 2)
    load.wait_ended(2)
    print("workers of both roles switched", flush=True)


def is_idle(c, worker):
    """As the router has it of heartbeats."""
    seen = {w["worker"]: w for w in c.status()["workers"]}[worker]
    return seen["state"] == "draining" and seen["load"]["running"] == seen["load"]["waiting"] == 0


def work_of(c, rpc):
    """What counts the tokens that a worker has read and made."""
    return [value for key, value in sorted(c.metrics(rpc).items())
            if key.startswith(("vllm:prompt_tokens_total", "vllm:generation_tokens_total"))]


def check_drain(c, load):
    for role in ("decode", "prefill"):
        worker = loaded(c, load, role)
        c.ctl("drain", worker)
        cluster.until(lambda: is_idle(c, worker), 30, f"the router sees {worker} drained")
        rpc = json.loads(pathlib.Path(c.dir, "default", worker + ".ready").read_text())["rpc"]
        before = work_of(c, rpc)
        load.wait_ended(STREAMS)
        assert before and work_of(c, rpc) == before, "it got something"
        c.ctl("drain", "--worker", rpc, "--deadline", "60s")        # of whom nobody else is asked
        c.ctl("resume", worker)
        cluster.until(lambda: worker in members(c, role)[1], 30, f"{worker} serves again")
        c.ctl("resume", "--worker", rpc)
    nobody = c.ctl("drain", "decode-77", check=False)
    assert nobody.returncode == 3 and "decode-77" in nobody.stderr, nobody
    print("drained, resumed", flush=True)


@contextlib.contextmanager
def held_lock(c):
    with open(os.path.join(c.dir, ".default.lock"), "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        os.unlink(file.name)


def start(c, verb, *args):
    return subprocess.Popen([str(cluster.BATONCTL), verb, "--state-dir", c.dir, *args],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def check_concurrent(c):
    with held_lock(c):
        refused = c.ctl("scale", "decode=1", check=False)
        assert refused.returncode == 1 and "another batonctl" in refused.stderr, refused
    at_once = [start(c, "scale", f"prefill={n}", "decode=2") for n in (1, 2, 3)]
    told = [(p.communicate()[1], p.returncode) for p in at_once]
    assert any(code == 0 for _, code in told), told
    assert all(code == 0 or "another batonctl" in text for text, code in told), told
    scale(c, "prefill=2")
    check_counts(c, 2, 2)
    print(f"at the same time: {[code for _, code in told]}", flush=True)


def check_killed(c, load):
    worker = members(c, "decode")[0][0]
    state_of(c)
    c.kill(worker)
    cluster.until(lambda: not c.alive(worker), 30, f"{worker} is dead")
    look = {w["worker"]: w for w in scale(c, "--dry-run", "decode=2")["workers"]}
    assert look[worker]["gone"] and not look[worker]["ready"], look[worker]
    scale(c, "decode=2")
    check_counts(c, 2, 2)
    assert worker not in c.pids, "another took its place, and its name"
    load.wait_ended(2)
    print(f"{worker} was killed, and is replaced", flush=True)


def check_dead_router(c):
    """Another comes in its place, where clients and workers look for it; once nobody asks it."""
    before = state_of(c)["routers"]
    c.kill("router")
    cluster.until(lambda: not c.alive("router"), 30, "the router is dead")
    done = c.ctl("scale", "decode=2")
    assert "ended by itself: router" in done.stderr, done.stderr
    assert state_of(c)["routers"] == before
    check_counts(c, 2, 2)
    print("the router was killed, and is replaced", flush=True)


def interrupt(c, at, *args):
    """SIGINT when it says that it is at that; its exit code and all it says."""
    process = start(c, "scale", *args)
    said = ""
    for line in process.stderr:
        said += line
        if at in line:
            process.send_signal(signal.SIGINT)
    return process.wait(), said


def check_interrupted(c, load):
    def interrupted():
        before = dict(state_of(c) and c.pids)
        code, said = interrupt(c, "starting", "prefill=4")
        if code == 0:                               # they were ready before
            scale(c, "prefill=2")
            return False
        assert code == 1 and "SIGINT" in said, (code, said)
        check_counts(c, 2, 2)
        assert c.pids == before, "something is left of what it started"
        return True
    cluster.until(interrupted, 100, "an interrupt in time")
    code, said = interrupt(c, "draining", "decode=1")
    if code == 0:                                   # it was drained before
        scale(c, "decode=2")
    else:
        assert "SIGINT" in said and "takes requests again" in said, said
    check_counts(c, 2, 2)
    load.wait_ended(STREAMS)
    print("interrupted at both ends", flush=True)


def check_load(r):
    shared = "You are told a story. " * 12
    requests = [list(bodies_of(stream, r, shared))[:2] for stream in range(STREAMS)]
    with cluster.Cluster(prefill=1, decode=3, prefill_args="--chunked-prefill-size 128") as c:
        load = Load(c.http, requests)
        load.undisturbed()
        with load:
            check_ratio(c, load)
            check_switch(c, load)
            check_drain(c, load)
            check_concurrent(c)
            check_killed(c, load)
            check_interrupted(c, load)
        load.check()
        check_dead_router(c)
        answers = dict(load.want)
        load.undisturbed()
        assert load.want == answers, "another answer"
        print(f"{load.ended} answers equal", flush=True)
        refused = c.ctl("scale", "decode=0", check=False)
        assert refused.returncode == 2 and "decode worker" in refused.stderr, refused
        refused = c.ctl("scale", "prefill=0", check=False)
        assert refused.returncode == 2 and "prefill worker" in refused.stderr, refused
        c.wait_quiet()


def check_secured(r):
    """Newcomers have keys of their own, which all that run learn; groups, and no prefill worker at all."""
    requests = [list(bodies_of(stream, r, "Short."))[:1] for stream in range(2)]
    with cluster.Cluster(prefill=1, decode=1, decode_dp=2, curve=True, local_prefill="auto") as c:
        load = Load(c.http, requests)
        load.undisturbed()
        with load:
            scale(c, "prefill=2", "decode=2")
            check_counts(c, 2, 2)
            c.ctl("drain", "decode-0.1")            # a rank's name is its group's
            cluster.until(lambda: is_idle(c, "decode-0") and is_idle(c, "decode-0.1"), 30,
                          "the router sees both ranks drained")
            load.wait_ended(2)
            c.ctl("resume", "decode-0")
            cluster.until(lambda: "decode-0" in members(c, "decode")[1], 30, "the group serves again")
            scale(c, "prefill=0", "decode=1")
            check_counts(c, 0, 1)
            load.wait_ended(2)
            scale(c, "prefill=1")                   # its name was another's before
            check_counts(c, 1, 1)
            load.wait_ended(2)
        load.check()
        last = start(c, "scale", "decode=3")
        assert "starting" in last.stderr.readline()
        c.ctl("down")                               # ends that, too
        told = last.stderr.read()
        assert last.wait() == 1 or "ready: decode" in told, told    # all were ready before
        last.stderr.close()
        assert not any(c.alive(name) for name in c.pids)
    print("secured, groups, without prefill workers", flush=True)


def main():
    r = random.Random(fleet.seed())
    check_load(r)
    check_secured(r)
    return 0


if __name__ == "__main__":
    sys.exit(main())
