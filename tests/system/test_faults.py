"""Real processes die, stop and come back under load: answers stay right, pages come back."""
import concurrent.futures
import os
import pathlib
import random
import signal
import sys

import cluster
import openai_http


def ask(base, seed, max_tokens=60):
    r = random.Random(seed)
    prompt = [r.randrange(3, 2046) for _ in range(r.randint(1, 1500))]
    answer = openai_http.post(base, "/v1/completions", {
        "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "seed": seed,
        "temperature": 0.8, "return_token_ids": True}, timeout=550)
    return answer["choices"][0]["token_ids"]


def under_load(c, seeds, act):
    """Runs all seeds at once, calls act() while they run, returns the answers by seed."""
    with concurrent.futures.ThreadPoolExecutor(len(seeds)) as pool:
        jobs = {seed: pool.submit(ask, c.http, seed) for seed in seeds}
        cluster.until(lambda: c.status()["requests"] or all(j.done() for j in jobs.values()), 200, "load")
        act()
        return {seed: job.result(timeout=600) for seed, job in jobs.items()}


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "7"))
    print(f"seed {seed}")
    seeds = list(range(seed, seed + 12))
    with cluster.Cluster(prefill=2, decode=2, prefill_args="--layerwise-threshold 100") as c:
        want = {s: ask(c.http, s) for s in seeds}
        c.wait_quiet()

        assert under_load(c, seeds, lambda: c.kill("decode-1")) == want
        c.wait_quiet(60)
        print("decode worker killed: every answer equal", flush=True)

        assert under_load(c, seeds, lambda: c.kill("prefill-1")) == want
        c.wait_quiet(60)
        print("prefill worker killed: every answer equal, quarantined pages free", flush=True)

        def pause():
            c.kill("prefill-0", signal.SIGSTOP)
            cluster.until(lambda: any(w["worker"] == "prefill-0" and w["last_heartbeat_s"] > 1.5
                                      for w in c.status()["workers"]), 30, "a late heartbeat")
            c.kill("prefill-0", signal.SIGCONT)

        assert under_load(c, seeds, pause) == want
        c.wait_quiet(60)
        print("prefill worker stopped and resumed: every answer equal", flush=True)

        # For so long that the decode rank gives the silent router up.
        log = pathlib.Path(c.dir, "default/decode-0.log")
        c.kill("router", signal.SIGSTOP)
        cluster.until(lambda: " left: " in log.read_text(errors="replace"), 60, "giving up the router")
        c.kill("router", signal.SIGCONT)
        assert ask(c.http, seeds[0]) == want[seeds[0]]
        c.wait_quiet(60)
        print("router stopped and resumed: it is served again", flush=True)
        del c.pids["decode-1"], c.pids["prefill-1"]


if __name__ == "__main__":
    sys.exit(main())
