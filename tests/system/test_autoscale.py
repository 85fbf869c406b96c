#!/usr/bin/env python3
"""batonctl autoscale on a cluster of `up`, under load. Targets are far from anything that a machine's speed
could decide: a microsecond, which no fleet meets, and hours, which any does."""
import json
import pathlib
import random
import signal
import subprocess

import cluster
import fleet
from test_kills import Load, bodies_of

STREAMS = 4
NEVER = ("--ttft-p90", "1us", "--tpot-p90", "1us")
ALWAYS = ("--ttft-p90", "10h", "--tpot-p90", "10h")
AT_MOST = ("--max-prefill", "2", "--max-decode", "2")
PAIR = {"prefill": 1, "decode": 1}
TWO = {"prefill": 2, "decode": 2}


def at_once(timeout="120s", down="1s"):
    return ("--interval", "500ms", "--window", "2s", "--min-samples", "1", "--warmup", "1s",
            "--scale-up-delay", "0s", "--scale-down-delay", down, "--cooldown", "0s",
            "--timeout", timeout, "--wait", "400s")


class Autoscale:
    """The loop, beside the test; lines() are its decisions so far."""

    def __init__(self, c, *args):
        self.path = pathlib.Path(c.dir, "autoscale.json")
        self.out = open(self.path, "w", encoding="utf-8")
        self.child = subprocess.Popen(
            [str(cluster.BATONCTL), "autoscale", "--state-dir", c.dir, "--output", "json", *args],
            stdout=self.out, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.child.poll() is None:
            self.child.kill()
        _, text = self.child.communicate()
        self.out.close()
        if kind:
            print(text, self.path.read_text()[-4000:])

    def lines(self):
        assert self.child.poll() is None, self.child.communicate()
        return [json.loads(line) for line in self.path.read_text().splitlines(True)
                if line.endswith("\n")]

    def wait(self, what, condition, since=0):
        """The first decision, of those from `since` on, that is like this."""
        def look():
            return next((line for line in self.lines()[since:] if condition(line)), None)
        return cluster.until(look, 100, what)

    def interrupt(self):
        self.child.send_signal(signal.SIGINT)
        assert self.child.wait(200) == 0, self.child.returncode


def look(c, *args):
    done = c.ctl("autoscale", "--once", "--dry-run", "--output", "json", "--window", "2s",
                 "--timeout", "120s", *args)
    return json.loads(done.stdout)


def acting(told):
    return told if told["verdict"] == "act" else None


def counts(c):
    ready = [w["role"] for w in c.status()["workers"] if w["state"] == "ready"]
    return {role: ready.count(role) for role in PAIR}


def refresh(c):
    state = json.loads(pathlib.Path(c.dir, "default/cluster.json").read_text())
    c.pids = {p["id"]: p["pid"] for p in state["processes"]}


def check_words(c):
    """A dry run explains itself and does nothing; what can't be is refused."""
    text = c.ctl("autoscale", "--dry-run", "--once", "--window", "2s", "--timeout", "120s").stdout
    assert text.count("\n") == 1 and " 1:1 " in text, text
    for bad in (("--ttft-p90", "0", "--tpot-p90", "0"), ("--min-decode", "9"), ("--total", "1"),
                ("--hardware", "h20"), ("--rpc", "tcp://127.0.0.1:1,")):
        done = c.ctl("autoscale", "--once", *bad, check=False)
        assert done.returncode == 2, (bad, done)
    done = c.ctl("autoscale", "--once", "--name", "nobody", check=False)
    assert done.returncode == 3, done


def check_up(c, load):
    """To all that the limits allow, and no further; nobody is disturbed."""
    with Autoscale(c, *NEVER, *at_once(), *AT_MOST) as scaler:
        scaler.wait("it grows", lambda line: line["verdict"] == "act")
        cluster.until(lambda: counts(c) == TWO, 100, "two of each")
        since = len(scaler.lines())
        scaler.wait("peace", lambda line: line["verdict"] == "keep" and line["workers"] == TWO and
                    line["measured"]["ttft_samples"] > 0 and
                    any("more than 2 would be needed" in r for r in line["reasons"]), since)
        load.wait_ended(STREAMS)
        scaler.interrupt()
    refresh(c)
    load.check()
    told = cluster.until(lambda: acting(look(
        c, *NEVER, *AT_MOST, "--total", "3", "--min-samples", "1", "--model", str(cluster.MODEL),
        "--hardware", "cpu-avx512", "--cores", "1")), 100, "something is measured")
    assert told["dry_run"] and sum(told["wanted"].values()) == 3, told
    cluster.until(lambda: counts(c) == TWO, 30, "all are still there")
    print(f"1:1 -> 2:2, {load.ended} answers", flush=True)


def check_silent_router(c):
    """A router that says nothing: nothing is done, until it speaks again."""
    with Autoscale(c, *ALWAYS, *at_once("1s", "10h")) as scaler:
        scaler.wait("a first look", lambda line: not line["measured"]["partial"])
        c.kill("router", signal.SIGSTOP)
        try:
            lost = scaler.wait("the router is missed", lambda line: line["measured"]["partial"])
        finally:
            c.kill("router", signal.SIGCONT)
        assert lost["verdict"] == "hold" and lost["trouble"] and lost["workers"] == TWO, lost
        since = len(scaler.lines())
        scaler.wait("it is back", lambda line: not line["measured"]["partial"], since)
        scaler.interrupt()


def check_down(c):
    with Autoscale(c, *ALWAYS, *at_once(), *AT_MOST) as scaler:
        cluster.until(lambda: counts(c) == PAIR, 100, "one of each")
        since = len(scaler.lines())
        scaler.wait("peace", lambda line: line["verdict"] == "keep" and line["workers"] == PAIR,
                    since)
        scaler.interrupt()
    refresh(c)
    print("2:2 -> 1:1", flush=True)


def main():
    r = random.Random(fleet.seed())
    with cluster.Cluster(prefill=1, decode=1) as c:
        check_words(c)
        load = Load(c.http, [list(bodies_of(s, r, "shared words of the system"))
                             for s in range(STREAMS)])
        load.undisturbed()
        with load:
            load.wait_ended(1)
            check_up(c, load)
            check_silent_router(c)
        load.check()
        check_down(c)
        c.wait_quiet()


if __name__ == "__main__":
    main()
