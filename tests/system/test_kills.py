#!/usr/bin/env python3
"""24 workers are killed at random under load, some more are stopped for a while or told to end, and
come back under their old or a new name. Every request ends as if nothing had happened: texts,
tokens, logprobs, finish reasons and usage are those of the undisturbed run, to the byte.

BATON_TEST_SEED, BATON_TEST_KILLS (24), BATON_TEST_TOKENS (of an answer, about; 40).
"""
import collections
import json
import os
import random
import signal
import sys
import threading

import cluster
import fleet
import openai_http

KILLS = int(os.environ.get("BATON_TEST_KILLS", "24"))
TOKENS = int(os.environ.get("BATON_TEST_TOKENS", "40"))
STREAMS, PER_STREAM = 8, 3
# UCX 1.13 forgets a half-made endpoint where it can't attach to the memory of a peer that was killed
# this moment. Of its allocations no more than the last frame is known.
LEAKS_OF_UCX = "leak:libuct.so\nleak:ucs_malloc\n"
WORKERS = {"prefill": 2, "decode": 3}
WORDS = "fox river Lucy stone the a green morning ran to what if 17 (x) of clouds Once".split()


def bodies_of(stream, r, shared):
    """What one stream asks for, again and again: (path, body)."""
    def text(count):
        return " ".join(r.choice(WORDS) for _ in range(count))

    def messages(count):
        return [{"role": "system", "content": shared}, {"role": "user", "content": text(count)}]

    def ids(count):
        return [r.randrange(3, 2046) for _ in range(count)]
    for _ in range(PER_STREAM):
        body = {"seed": r.randrange(2 ** 31), "temperature": r.choice([0, 0.7, 1.0]),
                "max_tokens": r.randrange(TOKENS // 2, 2 * TOKENS), "ignore_eos": True,
                "return_token_ids": True, "baton_timing": True}
        kinds = [
            ("chat", {"messages": messages(20), "stream": True, "logprobs": True, "top_logprobs": 2}),
            ("", {"prompt": ids(r.randrange(1, 300)), "repetition_penalty": 1.2, "logprobs": 1,
                  "presence_penalty": 0.5, "frequency_penalty": 0.3}),
            ("", {"prompt": text(30), "n": 2, "stream": True, "logprobs": 0}),
            ("chat", {"messages": messages(60), "stop": ["e t", " fox"]}),
            ("", {"prompt": [3 + i % 2000 for i in range(400)] + ids(40), "stream": True,
                  "stream_options": {"include_usage": True}}),
            ("", {"prompt": text(10), "stop": [" the", "\n\n"], "stream": True, "ignore_eos": False}),
            ("chat", {"messages": messages(5), "n": 2, "top_k": 30, "min_p": 0.02}),
            ("", {"prompt": ids(r.randrange(500, 900)), "logit_bias": {"7": 5, "1": -100},
                  "top_p": 0.9, "logprobs": 2})]
        path, more = kinds[stream % len(kinds)]
        yield ("/v1/chat/completions" if path else "/v1/completions"), {**body, **more}


class Choice:
    """What came of one choice, whether in pieces or whole."""

    def __init__(self):
        self.text, self.tokens, self.logprobs, self.finish = "", [], [], None

    def add(self, choice):
        message = choice.get("delta") or choice.get("message") or {}
        self.text += choice.get("text") or message.get("content") or ""
        self.tokens += choice.get("token_ids") or []
        told = choice.get("logprobs") or {}
        if "content" in told:
            self.logprobs += told["content"]
        elif told:
            self.logprobs += zip(told["tokens"], told["token_logprobs"], told["top_logprobs"] or [])
        assert not (self.finish and choice.get("finish_reason")), "ended twice"
        self.finish = self.finish or choice.get("finish_reason")

    def value(self):
        return json.dumps([self.text, self.tokens, self.logprobs, self.finish])


def ask(base, path, body):
    """((what the answer says, by choice; usage), attempts)"""
    choices, usage, timings = collections.defaultdict(Choice), None, []
    if body.get("stream"):
        events = openai_http.stream(base, path, body, timeout=590)
    else:
        events = [openai_http.post(base, path, body, timeout=590)]
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            choices[choice["index"]].add(choice)
        usage = event.get("usage") or usage
        timing = event.get("baton") or []
        timings += timing if isinstance(timing, list) else [timing]
    assert sorted(choices) == list(range(body.get("n", 1))), choices
    usage = {k: v for k, v in (usage or {}).items() if k != "prompt_tokens_details"}
    value = [choices[i].value() for i in sorted(choices)], json.dumps(usage)
    return value, sum(t["attempts"] for t in timings if t) - len(timings)


class Load:
    """Streams that run until told to end; each goes over its requests again and again."""

    def __init__(self, base, requests):
        self.base, self.requests = base, requests
        self.want = {}
        self.changed = threading.Condition()
        self.ended, self.again, self.faults = 0, 0, []
        self.over = False
        self.threads = [threading.Thread(target=self.run, args=(s,)) for s in range(len(requests))]

    def undisturbed(self):
        threads = [threading.Thread(target=self.learn, args=(s,)) for s in range(len(self.requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(self.want) == sum(map(len, self.requests)), "an undisturbed request failed"

    def learn(self, stream):
        for i, (path, body) in enumerate(self.requests[stream]):
            self.want[stream, i], again = ask(self.base, path, body)
            assert again == 0, "the undisturbed run was disturbed"

    def run(self, stream):
        turn = 0
        while not self.over and not self.faults:
            index = turn % len(self.requests[stream])
            path, body = self.requests[stream][index]
            fault, again = None, 0
            try:
                got, again = ask(self.base, path, body)
                if got != self.want[stream, index]:
                    fault = f"{got}\nexpected {self.want[stream, index]}"
            except Exception as error:      # whatever it is: it is told with the request
                fault = repr(error)
            with self.changed:
                self.ended += 1
                self.again += again
                if fault:
                    self.faults.append(f"stream {stream}, request {index}: {fault}\n{body}")
                self.changed.notify_all()
            turn += 1

    def wait_ended(self, count):
        """Until so many more answers ended."""
        with self.changed:
            aim = self.ended + count
            there = self.changed.wait_for(lambda: self.faults or self.ended >= aim,
                                          100 * cluster.PATIENCE)
        self.check()
        assert there, f"no {count} answers ended: none of {len(self.threads)} streams goes on"

    def check(self):
        assert not self.faults, self.faults[0]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over = True
        for thread in self.threads:
            thread.join()


class Reaper:
    """Ends workers, and has as many come back."""

    def __init__(self, f, load, r):
        self.f, self.load, self.r = f, load, r
        self.names = collections.Counter(WORKERS)
        self.leaving = []
        self.busy = 0

    def begin(self, role, name):
        args = ["--chunked-prefill-size", 128] if role == "prefill" else []
        return self.f.add(role, name, *args).start()

    def come_back(self, worker):
        """Under the same name, where it is another process, or under a new one."""
        if self.r.random() < 0.5:
            worker.start()
            return
        self.names[worker.role] += 1
        self.begin(worker.role, f"{worker.role}-{self.names[worker.role] - 1}")

    def living(self, role=None):
        return [p for p in self.f.processes.values() if p.role in ([role] if role else WORKERS)
                and p.child.poll() is None and p not in self.leaving]

    def returned(self):
        """Those that were told to end and have ended come back."""
        for worker in [p for p in self.leaving if p.child.poll() is not None]:
            # One that was only starting had not said yet how it wants to end.
            assert worker.child.returncode == 0 or not worker.ready_file.exists(), (
                f"{worker.name} gave {worker.child.returncode}")
            self.leaving.remove(worker)
            self.come_back(worker)

    def victim(self):
        """The next one, when its time has come: some answers later, or in a stage of some request."""
        role = self.r.choice(["prefill", "decode", "decode"])
        when = self.r.choice(["answers", "stage", "stage"])
        if when == "answers":
            self.load.wait_ended(self.r.randrange(1, 5))
            return self.r.choice(cluster.until(lambda: self.returned() or self.living(role), 100,
                                               f"a {role} worker that stays"))
        state = "prefilling" if role == "prefill" else self.r.choice(["reserving", "prefilling",
                                                                      "decoding"])
        found = []

        def there():
            self.load.check()
            self.returned()
            names = {p.name: p for p in self.living(role)}
            for request in self.f.status().requests:
                name = getattr(request, role + "_worker")
                if request.state == state and name in names:
                    found.append(names[name])
            # A state may be too short to be seen: then whoever has anything.
            self.looks += 1
            return found or (self.looks > 40 and names)
        self.looks = 0
        cluster.until(there, 100, f"a request is {state}")
        self.busy += bool(found)
        return found[0] if found else self.r.choice(self.living(role))

    def pause(self, worker):
        """Stopped until the router takes it for silent or more answers ended, whatever is first."""
        worker.send(signal.SIGSTOP)
        before = self.load.ended

        def noticed():
            self.load.check()
            states = {w.worker_id: w.state for w in self.f.status().workers}
            return states.get(worker.name) != "ready" or self.load.ended >= before + 6
        try:
            cluster.until(noticed, 60, f"{worker.name} is missed")
        finally:
            worker.send(signal.SIGCONT)

    def act(self, what):
        self.returned()
        worker = self.victim()
        if what == "kill":
            worker.kill()
            self.come_back(worker)
        elif what == "pause":
            self.pause(worker)
        else:
            worker.send(signal.SIGTERM)
            self.leaving.append(worker)
        return worker.name


def main():
    r = random.Random(fleet.seed())
    shared = "You are told a story. " * 12
    requests = [list(bodies_of(stream, r, shared)) for stream in range(STREAMS)]
    acts = ["kill"] * KILLS + ["pause"] * (KILLS // 6) + ["leave"] * (KILLS // 6)
    r.shuffle(acts)
    local = r.choice(["never", "auto"])
    with fleet.Fleet() as f:
        suppressions = f.dir / "lsan.supp"
        suppressions.write_text(LEAKS_OF_UCX)
        os.environ["LSAN_OPTIONS"] = ":".join([os.environ.get("LSAN_OPTIONS", "exitcode=23"),
                                               f"suppressions={suppressions}:print_suppressions=0"])
        # A slow machine may have one request be the victim again and again: not by its own doing.
        f.router("--heartbeat", 300, "--local-prefill", local, "--poison-deaths", 50)
        load = Load(f.http, requests)
        reaper = Reaper(f, load, r)
        for role, count in WORKERS.items():
            for i in range(count):
                reaper.begin(role, f"{role}-{i}")
        f.wait_ready_all()
        load.undisturbed()
        f.wait_quiet()
        print(f"{len(load.want)} answers undisturbed, local prefill {local}", flush=True)
        done = []
        with load:
            for what in acts:
                done.append(f"{what} {reaper.act(what)}")
            while not load.again:       # on a fast machine nobody may have been disturbed yet
                done.append(f"kill {reaper.act('kill')}")
                load.wait_ended(STREAMS)
            load.wait_ended(STREAMS)
            cluster.until(lambda: reaper.returned() or not reaper.leaving, 100, "an orderly end")
        print(", ".join(done), flush=True)
        load.check()
        print(f"{KILLS} kills, {len(acts) - KILLS} pauses and orderly ends, {reaper.busy} of them in "
              f"the midst of a stage; {load.ended} answers equal, {load.again} attempts repeated",
              flush=True)
        f.wait_ready_all()
        f.wait_quiet()
    return 0


if __name__ == "__main__":
    sys.exit(main())
