#!/usr/bin/env python3
"""Workers on the emulated GPU that are killed or told to end in the middle of requests, or whose GPU
fails there: these have the tokens that a cluster on the CPU gives undisturbed."""
import functools
import signal
import sys

import cluster
import emulated_gpus as gpus
from sse_client import Stream, join_all, run_all

BODY = {"prompt": [3 + 11 * i % 2000 for i in range(70)], "max_tokens": 7, "ignore_eos": True,
        "temperature": 0.8, "seed": 9}


@functools.cache
def undisturbed(tokens):
    with gpus.Gpus() as f:
        f.pair(device="cpu")
        return Stream(gpus.TEXT, {**BODY, "max_tokens": tokens}, "calm").run(lambda: f.http).answer()


def met(f, stream, role):
    """The worker of this role that has the request in its middle; None: it is over."""
    def look():
        for r in f.status().requests:
            name = getattr(r, role + "_worker")
            if name and (r.state == "prefilling" if role == "prefill" else stream.tokens() >= 3):
                return f.processes[name]
        return stream.over and "over"
    found = cluster.until(look, 100, f"{stream.name} is with a {role} worker")
    return None if found == "over" else found


def disturbed(f, name, act):
    """`act` is done to the prefill worker and to the decode rank that have a request in its middle: in a
    longer one, where it was over before. Returns who these were."""
    victims, tokens = {}, BODY["max_tokens"]
    while len(victims) < 2:
        stream = Stream(gpus.TEXT, {**BODY, "max_tokens": tokens}, f"{name}-{tokens}")
        running = run_all([stream], lambda: f.http)
        for role in ("prefill", "decode"):
            victim = None if role in victims else met(f, stream, role)
            if victim:
                act(victim)
                victims[role] = victim
        join_all(running)
        assert not stream.cuts, stream.cuts
        got, want = stream.answer(), undisturbed(tokens)
        assert got == want, f"{name}:\n got {got}\nwant {want}"
        tokens *= 2
    return victims.values()


def failed():
    """A GPU fails in the middle of a prompt: its worker says so and ends, another one takes over."""
    with gpus.Gpus(batch=1, ends=(0, 1)) as f:
        broken = f.begin("prefill", "prefill-0", prefix=(
            "env", "BATON_EMULATED_FAIL_LAUNCH=40", "BATON_EMULATED_LEAKS=say"))
        f.begin("decode", "decode-0")
        f.wait_ready_all(100)
        stream = Stream(gpus.TEXT, BODY, "failed")
        running = run_all([stream], lambda: f.http)
        cluster.until(lambda: broken.child.poll() is not None, 100, "the worker ends")
        assert broken.child.returncode == 1, broken.text()[-2000:]
        assert "cuda:0: unspecified launch failure" in broken.text(), broken.text()[-2000:]
        f.begin("prefill", "prefill-1").wait_ready(100)
        join_all(running)
        assert not stream.cuts, stream.cuts
        want = undisturbed(BODY["max_tokens"])
        assert stream.answer() == want, f"\n got {stream.answer()}\nwant {want}"
        f.wait_quiet()
    print("failed: the same tokens", flush=True)


def main():
    gpus.choose(90)
    undisturbed(BODY["max_tokens"])
    failed()
    with gpus.Gpus(batch=1) as f:
        for role, count in (("prefill", 2), ("decode", 2)):
            for i in range(count):
                f.begin(role, f"{role}-{i}")
        f.wait_ready_all(100)
        for name, act, code in (("killed", lambda p: p.kill(), -9),
                                ("ended", lambda p: p.send(signal.SIGTERM), 0)):
            victims = disturbed(f, name, act)
            for worker in victims:
                cluster.until(lambda w=worker: w.child.poll() is not None, 60, f"{worker.name} ends")
                assert worker.child.returncode == code, worker.text()[-2000:]
            print(f"{name}: {[w.name for w in victims]}, the same tokens", flush=True)
            for worker in victims if code == -9 else []:
                worker.start()
            f.wait_ready_all(100)
            f.wait_quiet()
    return 0


if __name__ == "__main__":
    sys.exit(main())
