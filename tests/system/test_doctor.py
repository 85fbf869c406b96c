"""batonctl doctor: this machine, any two workers of a cluster, one on a slower transport, workers that
have nothing in common, a stopped worker.

How fast anything is, and how much memory this machine has, decides nothing here: levels are looked
at of those findings only that do not depend on it.
"""
import json
import os
import signal
import subprocess
import sys
import time

import cluster
import fleet

FINE, DEGRADED, BROKEN, NOT_ASKED = 0, 1, 2, 3
LEVELS = ["fine", "degraded", "broken"]
# A busy test machine may be far below memcpy for a moment, and one with little memory has a small
# /dev/shm: that is "degraded", and no failure here.
WORKS = {FINE, DEGRADED}


def run(*args):
    done = subprocess.run([str(cluster.BATONCTL), "doctor", *map(str, args)], capture_output=True,
                          text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def report(*args):
    begin = time.monotonic()
    code, out, err = run("--output", "json", *args)
    assert code <= BROKEN, (args, code, out, err)
    told = json.loads(out)
    assert told["verdict"] == LEVELS[code], (code, told)
    assert max(LEVELS.index(f["level"]) for f in told["findings"]) == code, told
    # What was measured took no longer than all of it.
    for transfer in told["transfers"]:
        assert 0 < transfer["latency_us"] < 1e6 * (time.monotonic() - begin), transfer
        assert transfer["bytes"] * 8 / (transfer["gbps"] * 1e9) < time.monotonic() - begin, transfer
    return code, told


def stopped(*args):
    """The report on a worker that stands still; asked again where not even the router was in time."""
    def asked():
        code, _, _ = done = run("--output", "json", "--timeout", "3s", *args)
        return done if code != NOT_ASKED else None
    code, out, err = cluster.until(asked, 30, "a report")
    assert code == BROKEN, (code, out, err)
    return json.loads(out)


def levels(told, what, word=""):
    """Of the findings of this name that say this."""
    return [f["level"] for f in told["findings"] if f["what"] == what and word in f["text"]]


def has_ports():
    return os.path.isdir("/sys/class/infiniband") and os.listdir("/sys/class/infiniband")


def machine():
    code, told = report()
    ports = has_ports()
    what = {finding["what"] for finding in told["findings"]}
    assert {"rdma", "memlock", "/dev/shm", "huge pages", "gpu memory"} <= what, told
    assert levels(told, "gpus") or levels(told, "gpu cuda:0"), told
    carried = {t["transport"]: t for t in told["transfers"]}
    assert {"shm", "tcp"} <= set(carried), told
    for transfer in carried.values():
        # 16 pages of 64 tokens, 27 layers, 576 elements of bf16
        assert transfer["bytes"] == 16 * 64 * 27 * 576 * 2, transfer
    assert code in WORKS or ports, told
    if not ports:
        code, told = report("--expect", "rdma")
        assert code == BROKEN and "no usable port" in json.dumps(told), told
    code, told = report("--expect", "tcp")
    assert code in WORKS and {t["transport"] for t in told["transfers"]} == {"tcp"}, told


def usage():
    for args, text in [(["one"], "two workers"), (["--expect", "pigeon"], "--expect"),
                       (["a", "b", "c"], "two workers"),
                       (["--rpc", "tcp://127.0.0.1:1", "--timeout", "300ms", "a", "b"], "")]:
        code, _, err = run(*args)
        assert code == NOT_ASKED and text in err, (args, code, err)
    code, out, _ = run("--help")
    assert code == 0 and "exit codes: 0 fine, 1 degraded" in out, out


def fine_cluster():
    with cluster.Cluster(prefill=1, decode=1) as c:
        where = ["--state-dir", c.dir]
        for pair in (["prefill-0", "decode-0"], ["decode-0", "prefill-0"]):
            code, told = report(*where, *pair)
            assert code in WORKS, told
            transfer, = told["transfers"]
            assert transfer["from"] == "prefill-0" and transfer["to"] == "decode-0", transfer
            assert transfer["transport"] == "shm" and transfer["gbps"] > 0, transfer
            assert levels(told, "transport") == ["fine"], told
            assert levels(told, "decode-0 to prefill-0", "no KV ever flows") == ["fine"], told
            assert levels(told, "prefill-0, decode-0", "in common: shm") == ["fine"], told
            both_ends(told, ["prefill-0", "decode-0"])
        code, told = report(*where, "--tokens", 130, "prefill-0", "decode-0")
        assert told["transfers"][0]["bytes"] * 1024 == transfer["bytes"] * 130, told
        code, told = report(*where, "--expect", "rdma", "prefill-0", "decode-0")
        assert code == BROKEN, told
        assert "shm is in use, and not rdma" in json.dumps(told) or not has_ports() and levels(
            told, "prefill-0, decode-0", "rdma is not offered by both") == ["broken"], told
        code, _, err = run(*where, "prefill-0", "decode-9")
        assert code == NOT_ASKED and "decode-9" in err and "decode-0, prefill-0" in err, err
        code, _, err = run(*where, "decode-0", "decode-0")
        assert code == NOT_ASKED and "twice" in err, err
        code, told = report(*where, "--tokens", 1 << 20, "prefill-0", "decode-0")
        assert code == BROKEN, told  # longer than the model's context: said, and nothing is left over
        c.wait_quiet()

        cluster.stand_still(c.pids["prefill-0"])
        told = stopped(*where, "prefill-0", "decode-0")
        c.kill("prefill-0", signal.SIGCONT)
        text = json.dumps(told)
        assert "prefill-0" in text and "in time" in text, told
        c.wait_quiet(60)
        cluster.until(lambda: all(w["state"] == "ready" for w in c.status()["workers"]), 30,
                      "prefill-0 is ready again")
        code, told = report(*where, "prefill-0", "decode-0")
        assert code in WORKS, told

        cluster.stand_still(c.pids["decode-0"])
        told = stopped(*where, "prefill-0", "decode-0")
        c.kill("decode-0", signal.SIGCONT)
        assert any(
            f["what"] == "decode-0" and f["level"] == "broken" for f in told["findings"]), told
        c.wait_quiet(60)


def both_ends(told, names):
    """Each worker says itself what it has; control messages are measured to each."""
    for name in names:
        for part in ("rdma", "memlock", "/dev/shm", "huge pages", "gpu memory", "network"):
            assert levels(told, f"{name} {part}"), (name, part, told)
        assert levels(told, name, "offers shm") == ["fine"], told
    assert {t["worker"] for t in told["round_trips"]} == set(names), told
    assert all(0 < t["us"] for t in told["round_trips"]), told


def one_role():
    """Between two workers of one role nothing flows: what they offer is compared. A worker tells what
    its own process has: one of them may lock no more than 1 MiB of memory."""
    with fleet.Fleet() as f:
        f.router()
        f.add("decode", "decode-0", "--kv-pages", 64).start()
        f.add("decode", "decode-1", "--kv-pages", 64, "--transport", "tcp",
              prefix=["prlimit", "--memlock=1048576"]).start()
        f.add("decode", "decode-2", "--kv-pages", 64, "--transport", "shm").start()
        f.add("prefill", "prefill-0", "--kv-pages", 64, "--transport", "shm").start()
        f.wait_ready_all()
        where = ["--rpc", f.rpc, "--timeout", "60s"]
        code, told = report(*where, "decode-0", "decode-1")
        assert code in WORKS and not told["transfers"], told
        assert levels(told, "decode-0, decode-1", "no KV ever flows") == ["fine"], told
        assert levels(told, "decode-0, decode-1", "in common: tcp;") == ["fine"], told
        assert levels(told, "decode-1 memlock", "1 MiB"), told
        assert not levels(told, "decode-0 memlock", "1 MiB;"), told
        assert {t["worker"] for t in told["round_trips"]} == {"decode-0", "decode-1"}, told
        code, told = report(*where, "--expect", "shm", "decode-0", "decode-1")
        assert code == BROKEN, told
        assert levels(told, "decode-0, decode-1", "shm is not offered by both") == ["broken"], told
        # Nothing in common is found without a push, in whichever roles.
        for pair in (["decode-1", "decode-2"], ["decode-1", "prefill-0"]):
            code, told = report(*where, *pair)
            assert code == BROKEN and not told["transfers"], told
            assert any("no transport in common" in x["text"] and x["level"] == "broken"
                       for x in told["findings"]), told
        f.wait_quiet()


def slower_cluster():
    with cluster.Cluster(prefill=1, decode=1, prefill_args="--transport tcp",
                         decode_args="--transport tcp") as c:
        code, told = report("--state-dir", c.dir, "prefill-0", "decode-0")
        assert code == DEGRADED and levels(told, "transport", "tcp is in use instead of shm") == [
            "degraded"], told
        code, told = report("--state-dir", c.dir, "--expect", "tcp", "prefill-0", "decode-0")
        assert code in WORKS and levels(told, "transport") == ["fine"], told
        assert told["transfers"][0]["transport"] == "tcp", told
        c.wait_quiet()


def main():
    usage()
    machine()
    fine_cluster()
    one_role()
    slower_cluster()


if __name__ == "__main__":
    sys.exit(main())
