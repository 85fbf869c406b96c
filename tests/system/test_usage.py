#!/usr/bin/env python3
"""Flags and environment that can't have been meant: every program exits with 2 and names them."""
import os
import subprocess
import sys

import cluster

ROUTER, PREFILL, DECODE = ("router/baton-router", "prefill-node/baton-prefill", "decode-node/baton-decode")
MODEL = ["--model", str(cluster.MODEL)]
WORKER = ["--worker-id", "w", *MODEL]
# (programs, flags, what the message names)
WRONG = [
    ([ROUTER, PREFILL, DECODE], [], ["--model"]),
    ([ROUTER, PREFILL, DECODE], ["--model"], ["--model"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, "--no-such-flag", "1"], ["--no-such-flag"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, "surplus"], ["surplus"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, *MODEL], ["--model"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, "--log-level", "loud"], ["--log-level", "loud"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, "--die-with-parent=perhaps"], ["--die-with-parent", "perhaps"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, "--curve-secret-file", "/x"], ["--curve-secret-file", "--curve-allow-file"]),
    ([ROUTER, PREFILL, DECODE], [*MODEL, "--curve-allow-file", "/x"], ["--curve-secret-file", "--curve-allow-file"]),
    ([ROUTER], [*MODEL, "--port", "70000"], ["--port", "70000"]),
    ([ROUTER], [*MODEL, "--request-timeout", "soon"], ["--request-timeout", "soon"]),
    ([ROUTER], [*MODEL, "--tls-cert", "/x"], ["--tls-cert", "--tls-key"]),
    ([ROUTER], [*MODEL, "--api-key", "k", "--api-keys", "/x"], ["--api-key", "--api-keys"]),
    ([PREFILL, DECODE], ["--worker-id", "two words", *MODEL], ["--worker-id", "two words"]),
    ([PREFILL, DECODE], [*WORKER, "--kv-pages", "0"], ["--kv-pages", "0"]),
    ([PREFILL, DECODE], [*WORKER, "--kv-pages", "many"], ["--kv-pages", "many"]),
    ([PREFILL], [*WORKER, "--tensor-parallel-size", "2"], ["--group-endpoint"]),
    ([DECODE], [*WORKER, "--data-parallel-size", "2"], ["--group-endpoint"]),
    ([DECODE], [*WORKER, "--rank", "3"], ["--rank", "3"]),
]


def run(program, flags, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
    return subprocess.run([str(cluster.BUILD / program), *flags], env={**clean, **environment}, text=True,
                          capture_output=True, timeout=300)


def main():
    for programs, flags, words in WRONG:
        for program in programs:
            done = run(program, flags)
            name = os.path.basename(program)
            assert done.returncode == 2, (program, flags, done)
            assert done.stderr.startswith(name + ": ") and done.stderr.count("\n") == 1, (flags, done)
            assert all(word in done.stderr for word in words) and not done.stdout, (flags, done)
    for program in (ROUTER, PREFILL, DECODE):
        done = run(program, MODEL, BATON_LOG_LEVEL="loud")
        assert done.returncode == 2 and "BATON_LOG_LEVEL" in done.stderr, done
        done = run(program, ["--help"])
        assert done.returncode == 0 and done.stdout and not done.stderr, done
        # What is there on this machine is another matter.
        done = run(program, ["--model", "/nowhere"])
        assert done.returncode == 1 and "/nowhere" in done.stderr, done
    done = run("deploy/batonctl/batonctl", ["status", "--no-such-flag"])
    assert done.returncode == 2 and "--no-such-flag" in done.stderr, done
    print("usage errors are told apart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
