#!/usr/bin/env python3
"""A decode worker is lost in the middle of its answers. What their reader has of them is replayed on
other ranks, a single one and a group, and every answer goes on with the tokens and the bits of
logprobs that one process gives undisturbed. This test is the router: it reserves, runs and reads."""
import concurrent.futures
import random
import sys
import time

import baton_client
import cluster
import fleet

worker, types = baton_client.pb["worker"], baton_client.pb["types"]
REQUESTS, MANY = 12, 500
GROUP = 2


class Rank:
    """A Steps stream of one decode rank, and its requests: tokens by number."""

    def __init__(self, decode, prefill, incarnation):
        self.decode, self.prefill = baton_client.Client(decode.rpc), baton_client.Client(prefill.rpc)
        self.incarnation = incarnation
        call = self.decode.start("baton.v1.Decode/Steps",
                                 worker.StepsRequest(router_incarnation=incarnation))
        self.steps = self.decode.messages(call, worker.StepEvent, 300)
        self.got, self.finish, self.runs = {}, {}, []
        next(self.steps)        # its hello: the stream is open

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.decode.close()
        self.prefill.close()

    def begin(self, number, body, replay=()):
        sampling = types.SamplingParams(
            seed=body["seed"], temperature=body["temperature"], top_p=1, repetition_penalty=1,
            ignore_eos=True, max_tokens=body["max_tokens"])
        landing = self.decode.call("baton.v1.Decode/Reserve", worker.ReserveRequest(
            request_id=number, prompt_tokens=len(body["prompt"]), sampling=sampling,
            router_incarnation=self.incarnation, replay=[token for token, _ in replay]),
            worker.ReserveResponse, 60).landing
        self.got[number] = list(replay)
        self.runs.append(self.prefill.start("baton.v1.Prefill/Run", worker.PrefillRequest(
            request_id=number, prompt=body["prompt"], sampling=sampling, landing=landing)))

    def step(self):
        for sequence in next(self.steps).sequences:
            got = self.got[sequence.request_id]
            for token in sequence.tokens:
                assert token.index == len(got), (token.index, len(got))
                got.append((token.token, fleet.bits(token.logprob)))
            if sequence.finish:
                assert not sequence.error, sequence.error
                self.finish[sequence.request_id] = sequence.finish

    def end(self):
        while len(self.finish) < len(self.got):
            self.step()
        while self.runs:
            for _ in self.prefill.messages(self.runs.pop(), worker.PrefillEvent):
                pass
        assert set(self.finish.values()) <= {types.FINISH_LENGTH}, self.finish
        return self.got


def go_on(decode, prefill, bodies, cut, numbers, incarnation):
    with Rank(decode, prefill, incarnation) as rank:
        for number in numbers:
            rank.begin(number, bodies[number - 1], cut[number])
        return rank.end()


def lose_one(f, bodies, prefill):
    """What was read of each when the worker was gone: of the first most, of the last nothing."""
    with Rank(f.processes["decode-0"], prefill, 11) as rank:
        for number in range(1, REQUESTS + 1):
            rank.begin(number, bodies[number - 1])
            while number < REQUESTS and len(rank.got[number]) < 1 + number % 8:
                rank.step()
        f.processes["decode-0"].kill()
        return rank.got


def seconds_to(rank, number, body, index, replay=()):
    """Until the token with this number is here."""
    begin = time.monotonic()
    rank.begin(number, body, replay)
    while len(rank.got[number]) <= index:
        rank.step()
    return time.monotonic() - begin


def how_fast(f, prefill):
    body = fleet.body_of(99, 200, MANY + 20)
    with Rank(f.processes["decode-1"], prefill, 21) as rank:
        anew = seconds_to(rank, 1001, body, MANY)
        rank.end()
        replayed = seconds_to(rank, 1002, body, MANY, rank.got[1001][:MANY])
        assert rank.end()[1002] == rank.got[1001]
    print(f"token {MANY}: anew {anew:.3f} s, by replay {replayed:.3f} s, {anew / replayed:.1f} times",
          flush=True)


def main():
    r = random.Random(fleet.seed())
    numbers = list(range(1, REQUESTS + 1))
    bodies = [fleet.body_of(r.randrange(10 ** 6), r.randrange(1, 400), r.randrange(150, 250))
              for _ in numbers]
    want = [list(zip(tokens, logprobs)) for tokens, logprobs in fleet.expected(bodies)]
    with fleet.Fleet() as f:
        f.router()
        prefill = f.add("prefill", "prefill-0").start()
        f.add("decode", "decode-0").start()
        f.add("decode", "decode-1").start()
        secret = f.dir / "secret"
        secret.write_text("of this test alone\n")
        secret.chmod(0o600)
        for rank in range(GROUP):
            f.add("decode", f"decode-g.{rank}", "--data-parallel-size", GROUP, "--rank", rank,
                  "--group-endpoint", f"ipc://{f.dir}/meet", "--group-secret-file", secret).start()
        f.wait_ready_all()
        cut = lose_one(f, bodies, prefill)
        print("cut after", [len(cut[n]) for n in numbers], "of", [len(w) for w in want], flush=True)
        open_ones = [n for n in numbers if len(cut[n]) < len(want[n - 1])]
        assert any(len(cut[n]) > 1 for n in open_ones), cut
        ranks = [f.processes[name] for name in ("decode-1", "decode-g.0", "decode-g.1")]
        with concurrent.futures.ThreadPoolExecutor(len(ranks)) as pool:
            jobs = [pool.submit(go_on, ranks[i], prefill, bodies, cut, open_ones[i::len(ranks)], 12 + i)
                    for i in range(len(ranks))]
            for job in jobs:
                cut.update(job.result(timeout=300))
        for n in numbers:
            assert cut[n] == want[n - 1], f"request {n}: {cut[n]}\nexpected {want[n - 1]}"
        how_fast(f, prefill)
        f.wait_quiet()
    return 0


if __name__ == "__main__":
    sys.exit(main())
