"""Workers and router are killed, stopped and restarted at random moments of transfers.

After each round: every answer that came is bitwise that of one process without a network, what did
not come ended with an error that says why, within the deadline; no page is lost; the cluster works.
"""
import concurrent.futures
import os
import random
import signal
import sys
import time

import cluster
import fleet

ROUNDS = int(os.environ.get("BATON_TEST_ROUNDS", "8"))
AT_ONCE = 4
DEADLINE_S = 300
LEASE_S = 2
LOADS = 5       # until one of them meets the victim
LONG, SHORT = 800, 90


class Load:
    """Known requests, and what one process without a network says to them."""

    def __init__(self, seed, count=6):
        r = random.Random(seed)
        self.bodies = [fleet.body_of(seed * 100 + i, LONG if i % 3 else r.randint(1, SHORT))
                       for i in range(count)]
        self.want = fleet.expected(self.bodies)
        self.errors = []

    def one(self, base, index):
        begin = time.monotonic()
        got, error = fleet.ask(base, self.bodies[index], timeout=2 * DEADLINE_S)
        took = time.monotonic() - begin
        assert took < 1.9 * DEADLINE_S, f"request {index} took {took:.1f} s: {error}"
        if error:
            assert len(error) > 8, error
            self.errors.append(error)
        else:
            assert got == self.want[index], f"request {index}: {got} is not {self.want[index]}"
        return error


# A worker that is not scheduled for some seconds is lost: no request is to blame for that.
ROUTER = ("--heartbeat", 100, "--max-attempts", 20, "--poison-deaths", 0, "--flap-lives", 0,
          "--request-timeout", f"{DEADLINE_S}s")


def start(f):
    f.router(*ROUTER)
    for i in range(2):
        f.add("decode", f"decode-{i}", "--lease", f"{LEASE_S}s", "--kv-pages", 600).start()
        f.add("prefill", f"prefill-{i}", "--chunked-prefill-size", 128,
              "--kv-pages", 300).start()
    f.wait_ready_all()


def landing(process):
    return process.metric("baton_kv_pages", 'state="reserved"') > 0


def computing(process):
    return process.metric("vllm:num_requests_running") > 0


def in_flight(f, r, load, pool, victim):
    """Asks until the victim has a transfer: pages that are being written, or a run that writes. Returns
    what was asked last, and whether it met the victim: the others may have done all of it."""
    busy = landing if victim.role == "decode" else computing
    for _ in range(LOADS):
        picks = r.sample(range(len(load.bodies)), AT_ONCE)
        jobs = [pool.submit(load.one, f.http, i) for i in picks]
        cluster.until(lambda: busy(victim) or all(job.done() for job in jobs), 2 * DEADLINE_S,
                      f"{victim.name} has a transfer, or the requests are over")
        if not all(job.done() for job in jobs):
            return picks, jobs, True
        for job in jobs:
            job.result()
    return picks, jobs, False


def restart(r, victim):
    """Under its old name; every other time at its old address, too."""
    again = ["--listen", victim.rpc] if r.random() < 0.5 else []
    victim.start(again)
    return "at its old address" if again else "elsewhere"


def kill(f, r, victim):
    victim.kill()
    time.sleep(r.uniform(0, 0.3))       # a random moment, nothing is waited for
    return "killed, back " + restart(r, victim)


def stop(f, r, victim):
    victim.send(signal.SIGSTOP)
    seconds = LEASE_S * r.choice([0.1, 0.9, 1.5, 3])     # below the lease, around, above; above "lost"
    time.sleep(seconds)
    victim.send(signal.SIGCONT)
    return f"stopped for {seconds} s"


def rounds(f, r, load):
    """Rules 2, 3 and 5. One worker is killed or stopped in each."""
    met = answered = 0
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(ROUNDS):
            role = ["prefill", "decode"][number % 2]
            act = [kill, stop][number // 2 % 2]
            victim = r.choice(f.workers(role))
            picks, jobs, under_way = in_flight(f, r, load, pool, victim)
            met += under_way
            time.sleep(r.uniform(0, 0.4))         # a random moment of the transfer
            what = act(f, r, victim)
            errors = [job.result() for job in jobs]
            answered += errors.count(None)
            f.wait_ready_all()
            f.wait_quiet()
            again = list(pool.map(lambda i: load.one(f.http, i), picks))
            assert again == [None] * AT_ONCE, again
            f.wait_quiet()
            print(f"{number}: {victim.name} {what}; {errors.count(None)} right, "
                  f"errors {[e for e in errors if e]}", flush=True)
    assert met > 0 and answered > 0, (met, load.errors)


def router_restarts(f, r, load):
    """Rules 2 and 5. Clients of the old one get an error; workers find the new one, and no page
    stays behind."""
    router = f.processes["router"]
    port, endpoint = int(f.http.rsplit(":", 1)[1]), f.rpc
    for sig in (signal.SIGKILL, signal.SIGTERM):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            _, jobs, _ = in_flight(f, r, load, pool, r.choice(f.workers("decode")))
            time.sleep(r.uniform(0, 0.3))
            router.send(sig)
            router.child.wait()
            errors = [job.result() for job in jobs]
            assert all(e is None or "connection" in e or "stop" in e or "router" in e
                       for e in errors), errors
            f.router(*ROUTER, http_port=port, worker_endpoint=endpoint)
            f.wait_ready_all()
            f.wait_quiet()
            again = list(pool.map(lambda i: load.one(f.http, i), range(3)))
            assert again == [None] * 3, again
            f.wait_quiet()
            print(f"router ended by {sig.name} and came back: {errors.count(None)} had been "
                  "answered, the rest got an error; all pages free", flush=True)


def main():
    seed = fleet.seed()
    r = random.Random(seed)
    load = Load(seed)
    with fleet.Fleet() as f:
        start(f)
        assert [load.one(f.http, i) for i in range(4)] == [None] * 4
        f.wait_quiet()
        rounds(f, r, load)
        router_restarts(f, r, load)


if __name__ == "__main__":
    sys.exit(main())
