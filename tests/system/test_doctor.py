"""batonctl doctor: this machine, a cluster that is fine, one on a slower transport, a stopped worker."""
import json
import os
import signal
import subprocess
import sys
import time

import cluster

FINE, DEGRADED, BROKEN, NOT_ASKED = 0, 1, 2, 3
LEVELS = ["fine", "degraded", "broken"]
# A busy test machine may be far below memcpy for a moment: that is "degraded", and no failure here.
SLOW_IS_FINE = {FINE, DEGRADED}


def run(*args):
    done = subprocess.run([str(cluster.BATONCTL), "doctor", *map(str, args)], capture_output=True,
                          text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def report(*args):
    code, out, err = run("--output", "json", *args)
    assert code <= BROKEN, (args, code, out, err)
    told = json.loads(out)
    assert told["verdict"] == LEVELS[code], (code, told)
    assert max(LEVELS.index(f["level"]) for f in told["findings"]) == code, told
    return code, told


def machine():
    code, told = report()
    ports = os.listdir("/sys/class/infiniband") if os.path.isdir("/sys/class/infiniband") else []
    what = {finding["what"] for finding in told["findings"]}
    assert {"rdma", "memlock", "/dev/shm", "huge pages", "gpu memory"} <= what, told
    carried = {t["transport"]: t for t in told["transfers"]}
    assert {"shm", "tcp"} <= set(carried), told
    for transfer in carried.values():
        # 16 pages of 64 tokens, 27 layers, 576 elements of bf16
        assert transfer["bytes"] == 16 * 64 * 27 * 576 * 2, transfer
        assert 0 < transfer["gbps"] < 1000 and 0 < transfer["latency_us"] < 1e6, transfer
    assert code in SLOW_IS_FINE or ports, told
    if not ports:
        code, told = report("--expect", "rdma")
        assert code == BROKEN and "no usable port" in json.dumps(told), told
    code, told = report("--expect", "tcp")
    assert code == FINE and {t["transport"] for t in told["transfers"]} == {"tcp"}, told


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
            assert code in SLOW_IS_FINE, told
            transfer, = told["transfers"]
            assert transfer["from"] == "prefill-0" and transfer["to"] == "decode-0", transfer
            assert transfer["transport"] == "shm" and transfer["gbps"] > 0, transfer
        code, told = report(*where, "--tokens", 130, "prefill-0", "decode-0")
        assert told["transfers"][0]["bytes"] * 1024 == transfer["bytes"] * 130, told
        code, told = report(*where, "--expect", "rdma", "prefill-0", "decode-0")
        assert code == BROKEN and "shm is in use, and not rdma" in json.dumps(told), told
        code, _, err = run(*where, "prefill-0", "decode-9")
        assert code == NOT_ASKED and "decode-9" in err and "decode-0, prefill-0" in err, err
        code, _, err = run(*where, "decode-0", "decode-0")
        assert code == NOT_ASKED and "one role" in err, err
        code, told = report(*where, "--tokens", 1 << 20, "prefill-0", "decode-0")
        assert code == BROKEN, told  # longer than the model's context: said, and nothing is left over
        c.wait_quiet()

        c.kill("prefill-0", signal.SIGSTOP)
        begin = time.monotonic()
        code, told = report(*where, "--timeout", "3s", "prefill-0", "decode-0")
        took = time.monotonic() - begin
        c.kill("prefill-0", signal.SIGCONT)
        text = json.dumps(told)
        assert code == BROKEN and "prefill-0" in text and "in time" in text, told
        assert took < 30, took
        c.wait_quiet(60)
        code, told = report(*where, "prefill-0", "decode-0")
        assert code in SLOW_IS_FINE, told

        c.kill("decode-0", signal.SIGSTOP)
        begin = time.monotonic()
        code, told = report(*where, "--timeout", "3s", "prefill-0", "decode-0")
        took = time.monotonic() - begin
        c.kill("decode-0", signal.SIGCONT)
        assert code == BROKEN and any(
            f["what"] == "decode-0" and f["level"] == "broken" for f in told["findings"]), told
        assert took < 30, took
        c.wait_quiet(60)


def slower_cluster():
    with cluster.Cluster(prefill=1, decode=1, prefill_args="--transport tcp",
                         decode_args="--transport tcp") as c:
        code, told = report("--state-dir", c.dir, "prefill-0", "decode-0")
        assert code == DEGRADED and "tcp is in use instead of shm" in json.dumps(told), told
        code, told = report("--state-dir", c.dir, "--expect", "tcp", "prefill-0", "decode-0")
        assert code == FINE and told["transfers"][0]["transport"] == "tcp", told
        c.wait_quiet()


def main():
    usage()
    machine()
    fine_cluster()
    slower_cluster()


if __name__ == "__main__":
    sys.exit(main())
