#!/usr/bin/env python3
"""A cluster whose workers run on the emulated GPU: it says what the goldens and a cluster on the CPU
say, with KV from GPU to GPU and, by another GPU, through the host's memory, and waits for its GPU
once a decode step.

Backends add up in different orders, so logits differ in their last bits. What is asked is the same
in every run, and no token of it hangs on those."""
import itertools
import sys
import time

import cluster
import emulated_gpus as gpus


def check_goldens(got):
    for name in gpus.GREEDY:
        assert got[name][1] and gpus.GOLDENS[name]["continuation"].startswith(got[name][1]), (
            name, got[name])
    assert got["stopped"][1:] == ("There on", "stop"), got["stopped"]


def counts(decode):
    return decode.metric("baton_decode_step_seconds_count"), decode.metric("baton_device_waits_total")


def check_waits(f, decode):
    """Of two requests that differ only in their length: a wait for each step that one has more."""
    took = []
    launched = decode.metric("baton_device_graph_launches_total")
    for tokens in (2, 6):
        before = counts(decode)
        gpus.ask(f.http, gpus.TEXT, {"prompt": [5, 6, 7], "temperature": 0, "max_tokens": tokens,
                                     "ignore_eos": True})
        f.wait_quiet()
        took.append([b - a for a, b in zip(before, counts(decode))])
    steps, waits = (b - a for a, b in zip(*took))
    assert steps == waits == 4, took
    assert decode.metric("baton_device_graphs") >= 1
    assert decode.metric("baton_device_graph_launches_total") >= launched + steps
    print(f"(steps, waits) of 2 and of 6 tokens: {took}", flush=True)


def check_hidden(f, prefill):
    """Of some prompt a write went while a layer was computed."""
    def hidden():
        value = prefill.metric("baton_kv_pushed_hidden_bytes_total")
        if not value:
            gpus.ask(f.http, gpus.TEXT, {"prompt": [next(first), *range(10, 110)], "max_tokens": 1})
        return value
    first = itertools.count(200)
    value = cluster.until(hidden, 100, "a write that is hidden")
    f.wait_quiet()
    assert value <= prefill.metric("baton_kv_pushed_bytes_total"), value
    return value


def check_metrics(f, prefill, decode, transport):
    for worker in (prefill, decode):
        assert worker.metric("baton_device_info", 'device="cuda:0"') == 1, worker.metrics()
    carried = prefill.metric("baton_transfer_bytes_total", f'transport="{transport}"')
    everything = prefill.metric("baton_transfer_bytes_total")
    pushed = prefill.metric("baton_kv_pushed_bytes_total")
    assert carried == everything >= pushed > 0, (carried, everything, pushed)
    print(f"{transport}: {pushed:.0f} bytes, {check_hidden(f, prefill):.0f} of them hidden", flush=True)


def direct(want):
    gpus.choose(90)
    with gpus.Gpus() as f:
        prefill, decode = f.pair()
        got = gpus.answers(f.http)
        check_goldens(got)
        gpus.same(got, want, "direct")
        f.wait_quiet()
        check_metrics(f, prefill, decode, "cuda_ipc")
        check_waits(f, decode)


def staged(want):
    """Of sm_80, whose kernels are others."""
    gpus.choose(80)
    with gpus.Gpus(batch=4) as f:
        prefill, decode = f.pair("--kv-staging", "host")
        gpus.same(gpus.answers(f.http, lambda name: name in ("story", "sampled 2", "penalised")), want,
                  "staged")
        f.wait_quiet()
        check_metrics(f, prefill, decode, "shm")


def main():
    gpus.choose(90)
    begin = time.monotonic()
    want = gpus.on_cpu()
    check_goldens(want)
    direct(want)
    print(f"{time.monotonic() - begin:.0f} s", flush=True)
    staged(want)
    print(f"{time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
