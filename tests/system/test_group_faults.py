"""Ranks of groups are killed, stopped and told to end, under load: a group ends as one, what it had
runs elsewhere, every answer is bitwise the one of an undisturbed cluster, and pages come back."""
import os
import signal
import sys

import cluster
import test_faults

RANKS = 2
GROUP_TIMEOUT_S = 5


def group(name):
    return [name] + [f"{name}.{rank}" for rank in range(1, RANKS)]


def expect_end(c, name):
    """All ranks of the group end by themselves; they are not part of the cluster any more."""
    ranks = group(name)
    cluster.until(lambda: not any(c.alive(rank) for rank in ranks), 60, f"the end of {ranks}")
    for rank in ranks:
        del c.pids[rank]
    cluster.until(lambda: not [w for w in c.status()["workers"] if w["worker"] in ranks
                               and w["state"] != "lost"], 60, f"the router to know of {ranks}")


def start(decode_timeout="10m"):
    """With timeouts that no pause reaches, but where one has to."""
    return cluster.Cluster(prefill=2, prefill_tp=RANKS, decode=2, decode_dp=RANKS,
                           prefill_args="--layerwise-threshold 100 --chunked-prefill-size 256 "
                                        "--group-timeout 10m",
                           decode_args=f"--group-timeout {decode_timeout}")


def disturb(c, seeds, want, what, victim, sig):
    name = victim.split(".")[0]
    answers = test_faults.under_load(c, seeds, lambda: c.kill(victim, sig))
    assert answers == want, what
    if sig == signal.SIGSTOP:      # it finds its group over when it goes on
        cluster.until(lambda: sum(c.alive(r) for r in group(name)) == 1, 60, "the end of the others")
        c.kill(victim, signal.SIGCONT)
    expect_end(c, name)
    c.wait_quiet(90)
    print(f"{what}: every answer equal, the group is gone, all pages free", flush=True)


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "7"))
    print(f"seed {seed}")
    seeds = list(range(seed, seed + 10))
    with start() as c:
        want = {s: test_faults.ask(c.http, s) for s in seeds}
        c.wait_quiet()

        def pause():
            for victim in ("decode-1.1", "prefill-1.1"):
                c.kill(victim, signal.SIGSTOP)
            c.status()
            for victim in ("decode-1.1", "prefill-1.1"):
                c.kill(victim, signal.SIGCONT)

        assert test_faults.under_load(c, seeds, pause) == want
        c.wait_quiet()
        print("ranks stopped for a moment: nothing shows", flush=True)
        disturb(c, seeds, want, "rank 1 of a decode group killed", "decode-1.1", signal.SIGKILL)
        disturb(c, seeds, want, "rank 1 of a prefill group killed", "prefill-1.1", signal.SIGKILL)

    with start(decode_timeout=f"{GROUP_TIMEOUT_S}s") as c:
        assert {s: test_faults.ask(c.http, s) for s in seeds[:2]} == {s: want[s] for s in seeds[:2]}
        disturb(c, seeds, want, "rank 0 of a decode group stopped for too long", "decode-1", signal.SIGSTOP)
        disturb(c, seeds, want, "rank 0 of a prefill group killed", "prefill-1", signal.SIGKILL)

    with start() as c:
        disturb(c, seeds, want, "rank 1 of a decode group told to end", "decode-1.1", signal.SIGTERM)
        disturb(c, seeds, want, "rank 1 of a prefill group told to end", "prefill-1.1", signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
