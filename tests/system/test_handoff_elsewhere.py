#!/usr/bin/env python3
"""Workers in pid namespaces of their own, as in pods: no probe proves the death of one (rule 2 of
kvtransfer/README.md). One that dies or stops in the middle of a transfer gives its pages back all the
same, since its connections are closed; one that goes on after that does no harm."""
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading

import cluster
import fleet

TCP = ("--transport", "tcp")
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child")
PAGES = 400
LONG, SHORT = 9000, 300     # tokens of prompts: one is being computed when things happen, others pass


def can_unshare():
    return subprocess.run([*ELSEWHERE, "true"], check=False, capture_output=True).returncode == 0


def inner_pid(process):
    """Of the program, whose parent is unshare."""
    outer = process.child.pid
    return int(pathlib.Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])


def end(process):
    """unshare passes no signal on."""
    os.kill(inner_pid(process), signal.SIGTERM)
    assert process.child.wait(60 * cluster.PATIENCE) == 0


def pages(decode, state):
    return decode.metric("baton_kv_pages", f'state="{state}"')


class Request(threading.Thread):
    def __init__(self, f, number, tokens):
        super().__init__()
        self.base, self.body, self.answer = f.http, fleet.body_of(number, tokens, 4), None
        self.start()

    def run(self):
        self.answer = fleet.ask(self.base, self.body, 400)


def in_transfer(f, prefill, decode):
    """A request whose pages are being written; another where one was over before it was looked at."""
    for number in itertools.count(100):
        before = prefill.metric("baton_transfer_bytes_total")
        request = Request(f, number, LONG)

        def writes():
            return (pages(decode, "reserved") > 0 and prefill.metric("vllm:num_requests_running") > 0
                    and prefill.metric("baton_transfer_bytes_total") > before)
        if cluster.until(lambda: request.answer and "over" or writes(), 60, "writes") != "over":
            return request
        assert request.answer[0], request.answer[1]
        f.wait_quiet()


def all_free(decode):
    return pages(decode, "free") == PAGES


def start(f, prefill_elsewhere, decode_elsewhere):
    # A request of a decode rank that died waits out its time.
    f.router("--heartbeat", 400, "--max-attempts", 8, "--poison-deaths", 0, "--request-timeout",
             "20s" if decode_elsewhere else "5m")
    decode = f.add("decode", "decode-0", "--lease", "3s", "--kv-pages", PAGES, *TCP,
                   prefix=ELSEWHERE if decode_elsewhere else ()).start()
    prefill = f.add("prefill", "prefill-0", "--chunked-prefill-size", 64, "--kv-pages", PAGES, *TCP,
                    prefix=ELSEWHERE if prefill_elsewhere else ()).start()
    f.wait_ready_all()
    return prefill, decode


def prefill_dies(right):
    with fleet.Fleet() as f:
        prefill, decode = start(f, True, False)
        request = in_transfer(f, prefill, decode)
        os.kill(inner_pid(prefill), signal.SIGKILL)
        prefill.child.wait()
        cluster.until(lambda: all_free(decode), 60, "the pages of a dead worker elsewhere")
        prefill.start().wait_ready()
        request.join()
        assert fleet.ask(f.http, fleet.body_of(2, SHORT, 4), 400) == (right, None)
        f.wait_quiet()
        end(prefill)
        print("a prefill worker elsewhere died: its pages are free")


def prefill_stops(right):
    with fleet.Fleet() as f:
        prefill, decode = start(f, True, False)
        request = in_transfer(f, prefill, decode)
        pid = inner_pid(prefill)
        os.kill(pid, signal.SIGSTOP)
        cluster.until(lambda: all_free(decode), 60, "the pages of a stopped worker elsewhere")
        # The next owner of these pages, while the old one goes on.
        f.add("prefill", "prefill-1", "--chunked-prefill-size", 64, "--kv-pages", PAGES,
              *TCP).start().wait_ready()
        others = [Request(f, 2, SHORT) for _ in range(4)]
        os.kill(pid, signal.SIGCONT)
        for other in others:
            other.join()
            assert other.answer == (right, None), other.answer[1]
        request.join()
        f.wait_ready_all()
        f.wait_quiet()
        f.processes.pop("prefill-1").kill()
        cluster.until(lambda: fleet.ask(f.http, fleet.body_of(2, SHORT, 4), 30) == (right, None), 60,
                      "the worker that was stopped to serve again")
        f.wait_quiet()
        end(prefill)
        print("a prefill worker elsewhere was stopped and went on: no write of it came late")


def decode_dies():
    with fleet.Fleet() as f:
        prefill, decode = start(f, False, True)
        request = in_transfer(f, prefill, decode)
        os.kill(inner_pid(decode), signal.SIGKILL)
        decode.child.wait()
        request.join()
        cluster.until(lambda: prefill.metric("baton_quiesced_unacknowledged") == 0, 120,
                      "Quiesced for a dead rank elsewhere to be given up")
        f.processes.pop("decode-0")
        prefill.send(signal.SIGTERM)
        assert prefill.child.wait(60 * cluster.PATIENCE) == 0
        print("a decode rank elsewhere died: nothing waits for it")


def main():
    if not can_unshare():
        print("skipped: no pid namespaces here")
        return 77
    right = fleet.expected([fleet.body_of(2, SHORT, 4)])[0]
    prefill_dies(right)
    prefill_stops(right)
    decode_dies()
    return 0


if __name__ == "__main__":
    sys.exit(main())
