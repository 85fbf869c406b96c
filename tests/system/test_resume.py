#!/usr/bin/env python3
"""A router is killed in the middle of its streams, and another one starts where it was. Clients come
back with the names of their requests and what they have; every answer, put together from what all
connections gave, is the one of an undisturbed run: where a rank went on by itself and was taken
over, where it was lost as well, where it keeps nothing, and where there was nothing yet. Then
connections that take over from others, and what is refused."""
import itertools
import json
import random
import signal
import sys
import threading
import time

import cluster
import fleet
import openai_http
from sse_client import Stream, join_all, run_all

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOKENS = 200


def bodies(r, tokens):
    """(path, body): sampled without a seed, with held-back text, of several choices, greedy."""
    def ids(count):
        return [r.randrange(3, 2046) for _ in range(count)]
    common = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.9}
    return [
        (TEXT, {**common, "prompt": ids(30)}),
        (TEXT, {**common, "prompt": ids(60), "stop": ["e\x01", " \x02", "a\x03"]}),
        (CHAT, {**common, "messages": [{"role": "user", "content": "Tell me of ships."}]}),
        (TEXT, {**common, "prompt": ids(20), "n": 2}),
        (TEXT, {**common, "prompt": ids(40), "temperature": 0, "presence_penalty": 0.5}),
        (TEXT, {**common, "prompt": ids(10), "repetition_penalty": 1.2}),
    ]


def same(streams, references):
    for stream, reference in zip(streams, references):
        assert stream.answer() == reference.answer(), (
            stream.name, stream.connections, stream.answer(), reference.answer())
        assert stream.path != CHAT or stream.roles == [1], (stream.name, stream.roles)


def adopted(f):
    _, _, text = openai_http.request(f.http, "GET", "/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith("baton_router_adopted_total"))


def restart(f, port, *also):
    """The router dies, and what is named as well; those come back with it."""
    f.processes["router"].kill()
    for process in also:
        process.kill()
    began = time.monotonic()
    for process in also:
        process.start()
    f.router("--heartbeat", "200", http_port=port, worker_endpoint=f.registry)
    return began


def interrupted(f, port, streams, also=()):
    """All streams, with one death of the router in the middle. Returns how many were adopted, and how
    many a rank went on with. None: fewer than two streams were in their middle."""
    rank, decode = f.processes["decode-0"], f.workers("decode")
    again = threading.Event()       # clients come back when the ranks have told what they go on with
    again.set()
    running = run_all(streams, lambda: again.wait() and f.http)
    cluster.until(lambda: all(s.over or s.tokens() >= 8 for s in streams), 120, "all have begun")
    before = fleet.made_orphans(rank)
    again.clear()
    try:
        with fleet.held(decode):
            f.processes["router"].kill()
        restart(f, port, *also)
        f.wait_ready_all()
        if rank not in also:
            cluster.until(lambda: fleet.made_orphans(rank) > before or not rank.metric("vllm:num_requests_running"),
                          60, "decode-0 has noticed")
        f.wait_heard(decode)
    finally:
        again.set()
    join_all(running)
    made = fleet.made_orphans(rank) - (0 if rank in also else before)
    cut = sum(s.connections >= 2 for s in streams)
    return (adopted(f), made) if cut >= 2 and (made or also) else None


def make(described, prefix):
    return [Stream(path, body, f"{prefix}-{i}") for i, (path, body) in enumerate(described)]


def in_the_middle(f, port, seed, also=()):
    """Streams that were interrupted, with longer answers where they were over before."""
    for tokens in (TOKENS, 5 * TOKENS, 25 * TOKENS):
        described = bodies(random.Random(seed), tokens)
        references = make(described, "one")
        join_all(run_all(references, lambda: f.http))
        assert all(s.connections == 1 for s in references)
        streams = make(described, "one")
        counts = interrupted(f, port, streams, also)
        same(streams, references)
        if counts:
            return described, references, *counts
    raise AssertionError("nobody goes on with anything")


def check_killed_routers(f, port, seed):
    described, references, count, made = in_the_middle(f, port, seed)
    # Other names are other requests, with other seeds.
    other = Stream(*described[0], "other").run(lambda: f.http)
    assert other.answer() != references[0].answer()
    # Of decode-0 all go on; decode-1 keeps nothing, and what ran there is computed again.
    generations = sum(len(s.ids) for s in references)
    print(f"{count:.0f} of {generations} generations were taken over")
    assert 0 < count == made < generations, (count, made)
    _, _, count, made = in_the_middle(f, port, seed, also=[f.processes["decode-0"]])
    assert count == made == 0, (count, made)
    return described, references


def interrupt_prefill(f, port, stream, prefill, decode):
    """The router dies while the prompt is computed. What that leaves behind: (runs that ended as
    cancelled, pages of the prefix cache). None: it was computed before the router was dead."""
    runs = prefill.metric("baton_prefill_runs_total", 'result="cancelled"')
    pages = prefill.metric("baton_prefix_pages")
    running = run_all([stream], lambda: f.http)
    cluster.until(lambda: stream.over or any(q.state == "prefilling" for q in f.status().requests),
                  60, "a prompt is computed")
    prefill.send(signal.SIGSTOP)        # sees the end of the router, and nothing before it
    f.processes["router"].kill()
    prefill.send(signal.SIGCONT)

    def quiet():
        return not any(p.metric("vllm:kv_cache_usage_perc") for p in (prefill, *decode)) and (
            not prefill.metric("baton_quiesced_unacknowledged"))
    cluster.until(quiet, 60, "all pages are back though there is no router")
    left = (prefill.metric("baton_prefill_runs_total", 'result="cancelled"') - runs,
            prefill.metric("baton_prefix_pages") - pages)
    f.router("--heartbeat", "200", http_port=port, worker_endpoint=f.registry)
    join_all(running)
    f.wait_ready_all()
    return left


def check_nothing_yet(f, port, r):
    """The router dies while a prompt is computed. The run ends, its pages are free, and what was
    computed of the prompt is there for the run that follows."""
    prefill, pages = f.processes["prefill-0"], 1900 // 64
    numbers = itertools.count()

    def middle():
        stream = Stream(TEXT, {"prompt": [r.randrange(3, 2046) for _ in range(1900)], "max_tokens": 6,
                               "ignore_eos": True, "temperature": 0.7}, f"long-{next(numbers)}")
        runs, kept = interrupt_prefill(f, port, stream, prefill, f.workers("decode"))
        assert runs <= 1 and (runs == 1 or kept in (0, pages)), (runs, kept)
        return (stream, kept) if runs and 0 < kept < pages else None
    stream, kept = cluster.until(middle, 60, "a prompt in its middle")
    cached = stream.usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == kept * 64, (cached, kept)
    prefill.kill()
    prefill.start()
    f.wait_ready_all()
    reference = Stream(TEXT, stream.body, stream.name).run(lambda: f.http)
    same([stream], [reference])
    print(f"a run ended with {kept:.0f} of {pages} pages, which the next began with")


def check_cancel_of_adopted(f, port, described):
    """A client that leaves after its request was taken over cancels it, as any other."""
    path, body = described[0]
    tokens, left = 750, False
    while not left:                 # with a longer answer where it was over before
        tokens *= 2
        stream = Stream(path, {**body, "max_tokens": tokens}, "leaves")
        running = run_all([stream], lambda: f.http)
        cluster.until(lambda: stream.over or stream.tokens() >= 8, 60, "it streams")
        restart(f, port)
        cluster.until(lambda: stream.over or (stream.connections >= 2 and stream.tokens() >= 40), 60,
                      "it goes on")
        left = stream.connections >= 2 and not stream.over
        stream.stop = lambda s: True
        cluster.until(lambda: stream.over, 60, "the client left")
        join_all(running)
        left = left and stream.finish == [None]
    f.wait_quiet()


def refused(f, body, name, code, part, path=TEXT, **headers):
    status, got, answer = openai_http.request(
        f.http, "POST", path, body, {"X-Request-Id": name, **headers})
    assert status == code and part in answer["error"]["message"], (status, answer)
    assert got.get("X-Request-Id"), got
    return got


def taken_over(f, path, body, name, reference):
    """The same name again while it runs. False: it did not run any more."""
    first, second = Stream(path, body, name), Stream(path, body, name)
    other = Stream(path, {**body, "max_tokens": 7}, name)   # of this name, and another request
    running = run_all([first], lambda: f.http)
    cluster.until(lambda: first.over or first.tokens() >= 8, 60, "it streams")
    with fleet.held(f.workers("decode")):
        taking = run_all([other, second], lambda: f.http)   # from the start, though the first has some
        cluster.until(lambda: first.over or first.cuts, 60, "the first has lost it")
    join_all(taking)
    same([second], [reference])
    join_all(running)                   # which came back, and took over or ran it again
    same([first], [reference])
    assert not other.cuts, other.cuts
    cuts = first.cuts + second.cuts
    assert not cuts or "taken over" in " ".join(cuts), cuts
    return bool(cuts)


def check_other_connections(f, described, references):
    for i in (0, 3):
        (path, body), reference = described[i], references[i]
        while not taken_over(f, path, body, f"one-{i}", reference):
            body = {**body, "max_tokens": 2 * body["max_tokens"]}
            reference = Stream(path, body, f"one-{i}").run(lambda: f.http)

    # A client that hangs up in between and comes back: what was cancelled runs again.
    stream = Stream(*described[0], "one-0")
    for tokens in range(20, TOKENS, 75):
        assert not stream.connect(f.http, stop=lambda s, at=tokens: s.tokens() >= at)
    stream.run(lambda: f.http)
    same([stream], [references[0]])


def check_any_position(f, described, references):
    """The rest after every number of tokens is the rest of the text after the ids so far."""
    path, body = described[1]
    whole = references[1]
    cut = {0: ""}
    stream = Stream(path, body, "one-1")
    stream.connect(f.http, stop=lambda s: cut.update({int(s.last_id or 0): s.text[0]}))
    for count in sorted(cut)[:: max(1, len(cut) // 6)] + [max(cut)]:
        rest = Stream(path, body, "one-1")
        if count:
            rest.last_id, rest.ids = str(count), [list(whole.ids[0][:count])]
        rest.run(lambda: f.http)
        assert cut[count] + rest.text[0] == whole.text[0], count
        assert rest.usage["completion_tokens"] == whole.usage["completion_tokens"]


def check_refusals(f):
    body = {"prompt": [5, 6], "max_tokens": 4, "stream": True}
    refused(f, body, "x" * 129, 400, "X-Request-Id")
    refused(f, body, "with space", 400, "X-Request-Id")
    for bad in ("-1", "x", "1,", "1,2", "6", "99999999999999999999", "0x1", " 1 2"):
        refused(f, body, "bad", 400, "Last-Event-ID", **{"Last-Event-ID": bad})
    refused(f, {**body, "n": 2}, "bad", 400, "Last-Event-ID", **{"Last-Event-ID": "1"})
    refused(f, {**body, "stream": False}, "bad", 400, "Last-Event-ID", **{"Last-Event-ID": "1"})
    for path in ("/health", "/metrics", "/nowhere", "/v1/models"):
        _, headers, _ = openai_http.request(f.http, "GET", path, headers={"X-Request-Id": "me"})
        assert headers["X-Request-Id"] == "me", (path, headers)


def check_start(f, port):
    """A router without workers says when to come again, and soon has them."""
    f.processes["router"].kill()
    began = time.monotonic()
    f.router("--heartbeat", "200", http_port=port, worker_endpoint=f.registry)
    codes = set()
    while True:
        code, headers, answer = openai_http.request(
            f.http, "POST", TEXT, {"prompt": [5, 6, 7], "max_tokens": 2})
        codes.add(code)
        if code == 200:
            break
        assert code == 503 and int(headers["Retry-After"]) >= 1, (code, answer)
        assert time.monotonic() < began + 30 * cluster.PATIENCE
        time.sleep(0.02)
    print(f"a restarted router serves after {time.monotonic() - began:.2f} s; codes {codes}")


def check_tenants(f, port, described):
    """Two tenants with the same name and body at once, over the death of a router: two requests."""
    keys = f.dir / "keys.json"
    keys.write_text(json.dumps({"tenants": [
        {"name": name, "keys": [f"sk-{name}-12345678"]} for name in ("a", "b")]}))
    arguments = ("--heartbeat", "200", "--api-keys", keys)

    def both():
        return [Stream(*described[0], "one-0", {"Authorization": f"Bearer sk-{name}-12345678"})
                for name in ("a", "b")]

    f.processes["router"].kill()
    f.router(*arguments, http_port=port, worker_endpoint=f.registry)
    references = both()
    join_all(run_all(references, lambda: f.http))
    assert references[0].answer() != references[1].answer()
    assert not any(s.cuts for s in references), [s.cuts for s in references]
    streams = both()
    running = run_all(streams, lambda: f.http)
    cluster.until(lambda: all(s.tokens() >= 8 for s in streams), 60, "both stream")
    f.processes["router"].kill()
    f.router(*arguments, http_port=port, worker_endpoint=f.registry)
    join_all(running)
    same(streams, references)


def main():
    r = random.Random(fleet.seed())
    with fleet.Fleet() as f:
        f.router("--heartbeat", "200")
        port = int(f.http.rsplit(":", 1)[1])
        f.add("prefill", "prefill-0", "--chunked-prefill-size", 128).start()
        f.add("decode", "decode-0").start()
        f.add("decode", "decode-1", "--router-grace", "0s").start()
        f.wait_ready_all()
        described, references = check_killed_routers(f, port, r.random())
        f.wait_ready_all()
        check_nothing_yet(f, port, r)
        f.wait_ready_all()
        check_cancel_of_adopted(f, port, described)
        f.wait_ready_all()
        check_other_connections(f, described, references)
        check_any_position(f, described, references)
        check_refusals(f)
        check_tenants(f, port, described)
        check_start(f, port)
        f.wait_ready_all()
        f.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
