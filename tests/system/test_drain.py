"""SIGTERM to the router: what runs goes on to its end, nothing new is taken; a second one, or the time
that is over, ends what is left."""
import concurrent.futures
import contextlib
import http.client
import json
import signal
import sys

import baton_client
import cluster
import openai_http

BODY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 150, "ignore_eos": True}
LONG = {**BODY, "max_tokens": 12000}


class Stream:
    """One that has begun."""

    def __init__(self, base, body):
        self.connection = openai_http.connect(base, timeout=300)
        self.connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}),
                                {"Content-Type": "application/json"})
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        self.text, self.error, self.done = "", None, False
        while not self.text:
            assert self.line(), "the stream ended at once"

    def line(self):
        try:
            line = self.answer.readline().decode()
        except http.client.IncompleteRead:
            return False
        if line.strip() == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            self.error = event.get("error", self.error)
            self.text += "".join(c["text"] for c in event.get("choices", []))
        return line != ""

    def finish(self):
        while self.line():
            pass
        self.connection.close()


@contextlib.contextmanager
def held(c, name):
    """The worker stands still. What it has does not end meanwhile, but for what it sent before."""
    cluster.stand_still(c.pids[name])
    try:
        yield
    finally:
        c.kill(name, signal.SIGCONT)


def drains(c):
    """As it says itself, while it listens. None: it has ended."""
    try:
        return openai_http.request(c.http, "GET", "/health")[2]["status"] == "draining"
    except OSError:
        return False if c.alive("router") else None


def terminate(c):
    """Until the router says that it drains, or is gone as it had nothing left. True: it drains."""
    c.kill("router", signal.SIGTERM)
    return cluster.until(lambda: [d for d in [drains(c)] if d is not False], 10, "the router drains")[0]


def refuses_what_is_new(c):
    status, _, answer = openai_http.request(c.http, "GET", "/ready")
    assert status == 503 and answer["reason"] == "draining", (status, answer)
    for prompt in ("Once upon a time", [0, 500, 600]):
        status, headers, answer = openai_http.request(c.http, "POST", "/v1/completions", {"prompt": prompt})
        assert status == 503 and int(headers["Retry-After"]) > 0, (status, headers)
        assert answer["error"]["code"] == "unavailable", answer
        assert headers["Connection"].lower() == "close", headers
    with baton_client.Client(c.rpc) as client:
        try:
            list(client.generate(prompt="Once upon a time"))
        except baton_client.RpcError as error:
            assert error.status == "unavailable", error
        else:
            raise AssertionError("a draining router took a call")


def gone(c):
    cluster.until(lambda: not c.alive("router"), 20, "the router ends")


def goes_on(c):
    """What runs ends well: a stream that has begun, and a request that can't end before, as who computes
    its prompt stands still."""
    want = openai_http.post(c.http, "/v1/completions", BODY, timeout=300)["choices"][0]["text"]
    stream = Stream(c.http, BODY)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with held(c, "prefill-0"):
            job = pool.submit(openai_http.post, c.http, "/v1/completions", BODY, 300)
            cluster.until(lambda: any(r["state"] != "decoding" for r in c.status()["requests"]), 30,
                          "a prompt waits for the worker that stands still")
            with held(c, "decode-0"):
                assert terminate(c), "it ended though something runs"
                refuses_what_is_new(c)
        stream.finish()
        assert stream.done and stream.error is None and stream.text == want, (stream.error, stream.text)
        assert job.result()["choices"][0]["text"] == want, job.result()
    gone(c)


def is_ended(timeout, signals):
    """A stream ends with an error. False: it was over before its decode worker stood still."""
    with cluster.Cluster(prefill=1, decode=1, router_args=f"--drain-timeout {timeout}") as c:
        stream = Stream(c.http, LONG)
        with held(c, "decode-0"):
            if signals == 1 or terminate(c):
                c.kill("router", signal.SIGTERM)
            stream.finish()
        assert stream.done or "stopping" in stream.error["message"], stream.error
        gone(c)
        return not stream.done


def main():
    args = "--tokenizer-threads 1 --tokenizer-queue 64 --tokenizer-cache 0"
    with cluster.Cluster(prefill=1, decode=1, router_args=args + " --drain-timeout 10m") as c:
        goes_on(c)
    print("what ran went on to its end, nothing new was taken")
    for name, timeout, signals in (("a second signal", "10m", 2), ("the time that was over", "300ms", 1)):
        cluster.until(lambda t=timeout, n=signals: is_ended(t, n), 100, "a stream in its middle")
        print(f"{name} ended a stream with an error")


if __name__ == "__main__":
    sys.exit(main())
