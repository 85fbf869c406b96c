#!/usr/bin/env python3
"""One cut of the data connection under load, with Quiesced late and doubled: the link is made again
once, and the requests that had nothing to do with it never notice (kvtransfer/README.md, rule 5)."""
import concurrent.futures
import sys
import threading

import cluster
import fleet
import interposer

TCP = ("--transport", "tcp")
CLIENTS = 6


def connections(prefill):
    return sum(value for name, value in prefill.metrics().items()
               if name.startswith("baton_transfer_connections_total"))


class Load:
    """Clients that ask one thing after another until they are told to stop."""

    def __init__(self, base):
        self.base, self.stop, self.errors, self.done = base, threading.Event(), [], 0
        self.pool = concurrent.futures.ThreadPoolExecutor(CLIENTS)
        self.jobs = [self.pool.submit(self._client, i) for i in range(CLIENTS)]

    def _client(self, number):
        count = 0
        while not self.stop.is_set():
            _, error = fleet.ask(self.base, fleet.body_of(number * 1000 + count, 1200, 4), 590)
            count += 1
            self.done += 1
            if error:
                self.errors.append(error)

    def end(self):
        self.stop.set()
        for job in self.jobs:
            job.result()
        self.pool.shutdown()


def late_and_doubled(method, kind, to_server):
    if method.endswith("Quiesced") and to_server and kind == interposer.Frame.CALL:
        return [0.4, 0.8, 1.2]
    return [0]


def main():
    with interposer.Interposer(data=True) as between, fleet.Fleet() as f:
        f.router("--heartbeat", 200, "--max-attempts", 8, "--request-timeout", "580s")
        f.registry = between.start(f.rpc)
        f.add("decode", "decode-0", "--lease", "2s", "--kv-pages", 600, *TCP).start()
        f.add("prefill", "prefill-0", "--chunked-prefill-size", 256, "--kv-pages", 600,
              *TCP).start()
        f.wait_ready_all()
        prefill = f.processes["prefill-0"]
        between.faults = late_and_doubled
        load = Load(f.http)
        try:
            cluster.until(lambda: load.done >= 2 * CLIENTS, 120, "steady load")
            before = connections(prefill)
            for wire in list(between.wires.values()):
                wire.cut()
            cluster.until(lambda: connections(prefill) > before, 60, "the link to come up again")
            done = load.done
            # The last copy of every Quiesced comes while these run.
            cluster.until(lambda: load.done >= done + 6 * CLIENTS, 120, "more of the load")
        finally:
            load.end()
        between.faults = lambda *_: [0]
        f.wait_quiet(90)
        assert not load.errors, load.errors[:3]
        after = connections(prefill)
        assert after == before + 1, f"{after - before} connections after one cut"
        print(f"{load.done} requests, one connection more after one cut")
    return 0


if __name__ == "__main__":
    sys.exit(main())
