#!/usr/bin/env python3
"""check_device.py engine|plan|transfer|groups PROGRAM MODEL: the bench on the emulated GPU of
BATON_CUDA_MODULE. Every figure is there, once; values and limits are numbers, and not 0; the ratio is
theirs. What is measured says nothing. And without a driver, or a second GPU: exit 77, and why."""

import math
import os
import re
import subprocess
import sys

LINE = re.compile(r"^figure (\S+) (\S+) (\S+) (\S+) (\S+)$")
BENCHES = {
    "engine": [
        "prefill_model_70_own_cuda",
        "decode_model_0_own_cuda",
        "decode_model_70_own_b3_cuda",
    ],
    "plan": [
        "plan_prefill_32_error_cuda",
        "plan_decode_32_x2_error_cuda",
        "plan_mean_error_cuda",
        "plan_worst_error_cuda",
    ],
    "transfer": [
        f"{way}_{form}_{layers}_cuda"
        for way, counts in (("cuda_ipc", (27, 61)), ("staged_shm", (27,)), ("staged_tcp", (27,)))
        for layers in counts
        for form in ("layerwise", "whole")
    ],
    "groups": [f"{call}_{rows}rows_cuda" for rows in (1, 8) for call in ("dispatch", "combine")]
    + ["allreduce_4m_cuda", "wire_bytes_over_formula_cuda"],
}


def run(program, args, **env):
    return subprocess.run(
        [program, "--device", "cuda", "--quick", *args],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def close(ratio, exact):
    """Values have 4 digits, ratios 3 places."""
    return abs(float(ratio) - exact) <= 0.0006 + 0.003 * exact


def check_figure(name, value, limit, ratio):
    value = float(value)
    assert math.isfinite(value), (name, value)
    if name.startswith("plan_"):
        assert limit == "0", (name, limit)
        if not re.match("plan_(mean|worst)_", name):
            assert close(ratio, 1 + value / 100), (name, value, ratio)
        return
    limit = float(limit)
    assert value > 0 and limit > 0 and math.isfinite(limit), (name, value, limit)
    assert close(ratio, value / limit) or close(ratio, limit / value), (name, value, limit, ratio)


def refused(done, *words):
    assert done.returncode == 77, done
    assert not done.stdout and all(word in done.stderr for word in words), done


def main():
    bench, program, model = sys.argv[1:]
    args = ["--model", model] if bench in ("engine", "plan") else []
    done = run(program, args)
    assert done.returncode == 0, done
    figures = [m.groups() for m in map(LINE.match, done.stdout.splitlines()) if m]
    names = sorted(name for name, *_ in figures)
    wanted = sorted(BENCHES[bench])
    if bench == "transfer":
        assert "# rdma: not here: " in done.stdout or any(n.startswith("rdma_") for n in names), done
        names = [n for n in names if not n.startswith("rdma_")]
    assert names == wanted, (set(names) ^ set(wanted), done.stdout)
    for name, value, _, limit, ratio in figures:
        check_figure(name, value, limit, ratio)
    if bench == "engine":
        seen = re.findall(r"^serial (\S+) ", done.stdout, re.M)
        assert sorted(seen) == [n for n in wanted if n.startswith("decode")], done.stdout
        assert len(re.findall(r"^breakdown .*experts \d", done.stdout, re.M)) == len(wanted), done
    refused(run(program, args, BATON_EMULATED_DRIVER="none"), "no NVIDIA driver", "--device cpu")
    if bench == "groups":
        refused(run(program, args, BATON_EMULATED_DEVICES="1"), "take two GPUs", "there is 1")


if __name__ == "__main__":
    main()
