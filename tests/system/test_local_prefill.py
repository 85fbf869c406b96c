#!/usr/bin/env python3
"""Decode ranks that compute prompts themselves, a single one and a group: whichever way a prompt goes,
and whoever is killed meanwhile, an answer has the tokens and bits of logprobs that one process gives."""
import concurrent.futures
import json
import random
import subprocess
import sys

import cluster
import fleet
import openai_http

KEYS = ("max_tokens", "ignore_eos", "seed", "temperature", "logprobs", "top_p", "top_k", "repetition_penalty",
        "presence_penalty", "frequency_penalty")
GROUP = 2


def body_of(number, tokens, max_tokens):
    r = random.Random(number)
    body = fleet.body_of(number, tokens, max_tokens)
    kind = number % 4
    body.update(top_p=[1, 0.9][kind == 1], top_k=[0, 40][kind == 2],
                repetition_penalty=[1, 1.3][kind in (1, 3)], presence_penalty=[0, 0.7][kind in (2, 3)],
                frequency_penalty=r.choice([0, 0.4]))
    return body


def expected(bodies):
    lines = "".join(json.dumps({"id": str(i), "prompt": b["prompt"],
                                "sampling": {k: b[k] for k in KEYS}}) + "\n"
                    for i, b in enumerate(bodies))
    done = subprocess.run([cluster.BUILD / "tests/solo/baton-solo", "--model", cluster.MODEL,
                           "--chunked-prefill-size", "512"], input=lines, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = {a["id"]: a for a in map(json.loads, done.stdout.splitlines())}
    return [(answers[str(i)]["tokens"], list(map(fleet.bits, answers[str(i)]["logprobs"])))
            for i in range(len(bodies))]


def compare(number, body, got, want):
    answer, why = got
    assert answer is not None, f"request {number}: {why}"
    assert answer == want, f"request {number}, {len(body['prompt'])} tokens: {answer}\nexpected {want}"


def run_all(f, bodies, want, at_once=6, during=lambda jobs: None):
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(fleet.ask, f.http, body, 300) for body in bodies]
        during(jobs)
        for number, job in enumerate(jobs):
            compare(number, bodies[number], job.result(timeout=400), want[number])


def computed(f):
    """Prompts that decode ranks which live have computed."""
    return sum(p.metric("baton_local_prefills_total") for p in f.workers("decode")
               if p.child.poll() is None)


def ready(f):
    return openai_http.request(f.http, "GET", "/ready")[0] == 200


def add_group(f, *args):
    secret = f.dir / "secret"
    secret.write_text("of this test alone\n")
    secret.chmod(0o600)
    for rank in range(GROUP):
        f.add("decode", f"decode-g.{rank}" if rank else "decode-g", "--data-parallel-size", GROUP,
              "--rank", rank, "--group-endpoint", f"ipc://{f.dir}/meet", "--group-secret-file", secret,
              *args).start()


def always(bodies, want):
    """No prefill worker is there. Chunks of several sizes; a rank is killed while it computes."""
    with fleet.Fleet() as f:
        f.router("--local-prefill", "always", "--max-attempts", "5")
        assert not ready(f)
        f.add("decode", "decode-0", "--local-prefill-chunk", 24).start()
        add_group(f, "--local-prefill-chunk", 7)
        f.wait_ready_all()
        cluster.until(lambda: ready(f), 30, "it is ready without prefill workers")
        run_all(f, bodies, want)
        assert computed(f) == len(bodies), computed(f)
        victim = f.add("decode", "decode-1", "--local-prefill-chunk", 1, "--kv-pages", 4096).start()
        f.wait_ready_all()
        tokens = 750

        def there():
            return [r for r in f.status().requests if r.decode_worker == "decode-1"]

        def kill(jobs):
            if cluster.until(lambda: there() or all(job.done() for job in jobs), 60,
                             "decode-1 has a prompt, or all is over"):
                with fleet.held([victim]):
                    if there():
                        victim.kill()
        while victim.child.poll() is None:      # with a longer prompt, where it was over before
            tokens = min(2 * tokens, 12000)
            long = body_of(tokens, tokens, 10)
            run_all(f, [long] + bodies[:6], expected([long]) + want[:6], 7, kill)
        f.wait_quiet()
        print(f"always: {len(bodies) + 7} equal, by a rank and a group of {GROUP}", flush=True)


def auto(bodies, want):
    """The only prefill worker is killed in the midst of it, and comes back."""
    with fleet.Fleet() as f:
        # Whoever stands still for a while is not silent yet: it is still given requests.
        f.router("--local-prefill", "auto", "--max-attempts", "5", "--heartbeat", 5000)
        prefill = f.add("prefill", "prefill-0", "--chunked-prefill-size", 100).start()
        f.add("decode", "decode-0", "--local-prefill-chunk", 24).start()
        f.wait_ready_all()

        def kill(_):        # while it stands still: what it has it can't end
            cluster.until(lambda: any(r.state == "prefilling" for r in f.status().requests), 60,
                          "it has a prompt")
            prefill.kill()
        cluster.stand_still(prefill.child.pid)
        run_all(f, bodies, want, during=kill)
        before = computed(f)
        assert before > 0
        cluster.until(lambda: ready(f), 30, "it is ready without prefill workers")
        run_all(f, bodies[:4], want[:4])
        assert computed(f) == before + 4
        prefill.start()
        f.wait_ready_all()
        run_all(f, bodies, want)
        f.wait_quiet()
        print(f"auto: {2 * len(bodies) + 4} equal, {computed(f):.0f} computed by the rank", flush=True)


def never(bodies, want):
    with fleet.Fleet() as f:
        f.router("--local-prefill", "never")
        f.add("decode", "decode-0").start()
        f.wait_ready_all()
        assert not ready(f)
        _, why = fleet.ask(f.http, bodies[0])
        assert why.startswith("503") and "prefill" in why, why
        f.add("prefill", "prefill-0").start()
        f.wait_ready_all()
        run_all(f, bodies, want)
        assert computed(f) == 0
        f.wait_quiet()


def main():
    r = random.Random(fleet.seed())
    lengths = [1, 63, 64, 65] + [r.randrange(2, 300) for _ in range(10)]
    bodies = [body_of(r.randrange(10 ** 6), n, r.randrange(5, 40)) for n in lengths]
    want = expected(bodies)
    always(bodies, want)
    auto(bodies, want)
    never(bodies[:6], want[:6])
    return 0


if __name__ == "__main__":
    sys.exit(main())
