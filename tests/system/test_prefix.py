"""A conversation that grows turn by turn: turns go to the prefill worker that has the beginning,
only what is new is computed, and the bits are those of a process that has no cache.
The worker is killed: the other one goes on from nothing, and has it then.
"""
import concurrent.futures
import random
import sys
import urllib.request

import baton_client
import cluster
import openai_http
from test_bitwise import VOCABULARY, SPECIAL, bits, compare, solo

PAGE = 64
QUERIES = "vllm:prefix_cache_queries_total"
HITS = "vllm:prefix_cache_hits_total"
TURNS = 8


def request(name, prompt):
    return {"id": name, "prompt": prompt,
            "sampling": {"max_tokens": 8, "logprobs": 1, "seed": 5, "temperature": 0.8,
                         "top_p": 0.95, "ignore_eos": True}}


def ask(endpoint, q):
    return ask_and_count(endpoint, q)[0]


def ask_and_count(endpoint, q):
    """The answer, and how much of the prompt the client is told was computed before."""
    with baton_client.Client(endpoint) as client:
        tokens = []
        for event in client.generate(600, prompt_ids=q["prompt"], token_ids=True, **q["sampling"]):
            tokens += event.tokens
    return ([t.token for t in tokens], [bits(t.logprob) for t in tokens]), event.usage.cached_tokens


def value(text, name):
    """Of all lines of that metric."""
    lines = [line.split() for line in text.splitlines() if line.startswith(name)]
    assert lines, f"no {name} in\n{text}"
    return sum(float(line[-1]) for line in lines)


class Watch:
    """What workers and router count."""

    def __init__(self, c):
        self.c = c

    def endpoints(self):
        return {w["worker"]: w["rpc"] for w in self.c.status()["workers"]
                if w["role"] == "prefill" and w["state"] == "ready"}

    def worker(self, name, metric):
        pb = baton_client.pb["worker"]
        with baton_client.Client(self.endpoints()[name]) as client:
            answer = client.call("baton.v1.Worker/Metrics", pb.MetricsRequest(),
                                 pb.MetricsResponse, 60)
        return int(value(answer.text, metric))

    def router(self, metric):
        with urllib.request.urlopen(self.c.http + "/metrics", timeout=60) as answer:
            return int(value(answer.read().decode(), metric))


class Held:
    """What each worker has: the blocks of prompts that it computed."""

    def __init__(self):
        self.of = {}

    def add(self, worker, prompt):
        blocks = self.of.setdefault(worker, set())
        blocks |= {tuple(prompt[:(i + 1) * PAGE]) for i in range(len(prompt) // PAGE)}

    def tokens(self, worker, prompt):
        """That it finds; never the last one."""
        count = 0
        while (count + 1) * PAGE < len(prompt) and \
                tuple(prompt[:(count + 1) * PAGE]) in self.of.get(worker, ()):
            count += 1
        return count * PAGE

    def blocks(self):
        return sum(len(blocks) for blocks in self.of.values())


def converse(c, watch, r, held):
    """Turns of 150 to 400 tokens. Returns the worker that had most of them, and the last prompt."""
    prompt = [r.randrange(SPECIAL, VOCABULARY) for _ in range(300)]
    requests, answers, places = [], [], []
    for turn in range(TURNS):
        q = request(f"turn {turn}", list(prompt))
        queries = {w: watch.worker(w, QUERIES) for w in watch.endpoints()}
        hits = {w: watch.worker(w, HITS) for w in queries}
        best = max(held.tokens(w, prompt) for w in queries)
        answer, told = ask_and_count(c.rpc, q)
        answers.append(answer)
        requests.append(q)
        went = [w for w in queries if watch.worker(w, QUERIES) - queries[w] == len(prompt)]
        assert len(went) == 1, went
        found = watch.worker(went[0], HITS) - hits[went[0]]
        there = held.tokens(went[0], prompt)
        assert found == there, f"turn {turn}: {found} tokens found, {there} are at {went[0]}"
        assert told == found, f"turn {turn}: {found} tokens found, the client is told {told}"
        places.append((went[0], found == best))
        held.add(went[0], prompt)
        cluster.until(lambda: watch.router("baton_router_prefix_blocks") == held.blocks(), 30,
                      f"the router knows {held.blocks()} blocks")
        prompt += answers[-1][0]
        prompt += [r.randrange(SPECIAL, VOCABULARY) for _ in range(r.randint(150, 400))]
    want = solo(requests, 2048)
    for q, got in zip(requests, answers):
        compare(q, got, want[q["id"]])
    c.wait_quiet()
    # Where a turn goes is by predicted time: now and then a noisy machine makes another seem faster.
    well = sum(good for _, good in places[1:])
    print(f"{TURNS} turns of up to {len(requests[-1]['prompt'])} tokens equal, {well} of the later "
          f"{TURNS - 1} went to who has most: {[w for w, _ in places]}", flush=True)
    assert well >= TURNS // 2
    home = max(queries, key=lambda w: held.tokens(w, prompt))
    return home, requests[-1]["prompt"]


def crowd(c, watch, r, beginning):
    """Many that begin alike, at once, one token more or less of it each."""
    beginning = beginning[:1000]
    part = [request(str(i), beginning[:1000 - i % 3 * 25] +
                    [r.randrange(SPECIAL, VOCABULARY) for _ in range(r.randint(1, 200))])
            for i in range(16)]
    before = sum(watch.worker(w, HITS) for w in watch.endpoints())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda q: ask(c.rpc, q), part))
    found = sum(watch.worker(w, HITS) for w in watch.endpoints()) - before
    want = solo(part, 333)
    for q, got in zip(part, answers):
        compare(q, got, want[q["id"]])
    c.wait_quiet()
    assert found > 0
    print(f"{len(part)} at once, {found} tokens found, equal", flush=True)


def lose(c, watch, home, prompt):
    other = next(w for w in watch.endpoints() if w != home)
    c.kill(home)
    cluster.until(lambda: home not in watch.endpoints(), 60, f"{home} is lost")
    cluster.until(lambda: watch.router("baton_router_prefix_blocks") ==
                  watch.worker(other, "baton_prefix_pages"), 20, "what it had is forgotten")
    q = request("after", prompt + [SPECIAL])
    want = solo([q], 512)["after"]
    for _ in range(2):
        hits = watch.worker(other, HITS)
        compare(q, ask(c.rpc, q), want)
        found = watch.worker(other, HITS) - hits
        c.wait_quiet()              # its pages are there for the next one
    assert found == (len(prompt) + 1 - 1) // PAGE * PAGE, found
    print(f"{home} killed, {other} goes on", flush=True)


def cached(c, **fields):
    """What an answer says of its prompt, whole and as a stream."""
    body = {"max_tokens": 4, **fields}
    whole = openai_http.post(c.http, "/v1/completions", body, timeout=600)["usage"]
    c.wait_quiet()
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *_, last = openai_http.stream(c.http, "/v1/completions", body, timeout=600)
    return [(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
            for usage in (whole, last["usage"])]


def openai(c, r):
    """One prefill worker: what it has computed, it has. A prompt counts once, whatever n is."""
    prompt = [r.randrange(SPECIAL, VOCABULARY) for _ in range(5 * PAGE + 1)]
    first, second = cached(c, prompt=prompt)
    assert first == (len(prompt), 0) and second == (len(prompt), 5 * PAGE), (first, second)
    c.wait_quiet()
    both = cached(c, prompt=[prompt, prompt[:2 * PAGE]], n=2)
    # Of the second prompt the last token is always computed, and with it its page.
    assert both == [(7 * PAGE + 1, 6 * PAGE)] * 2, both
    print("cached tokens are told in usage", flush=True)


def main():
    seed = 20260817
    print(f"seed {seed}")
    r = random.Random(seed)
    args = "--chunked-prefill-size 192 --kv-pages 256"
    with cluster.Cluster(prefill=2, decode=2, prefill_args=args) as c:
        watch = Watch(c)
        home, prompt = converse(c, watch, r, Held())
        crowd(c, watch, r, prompt)
        lose(c, watch, home, prompt)
        openai(c, r)
        c.pids.pop(home)
    # Without a cache nothing is looked for.
    with cluster.Cluster(prefill_args=args + " --enable-prefix-caching=false") as c:
        watch = Watch(c)
        q = request("off", prompt)
        want = solo([q], 512)["off"]
        for _ in range(2):
            compare(q, ask(c.rpc, q), want)
        worker = next(iter(watch.endpoints()))
        assert watch.worker(worker, QUERIES) == 0 and watch.worker(worker, HITS) == 0
        assert watch.router("baton_router_prefix_blocks") == 0
        assert cached(c, prompt=prompt) == [(len(prompt), 0)] * 2
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
