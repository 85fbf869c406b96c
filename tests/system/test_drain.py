"""SIGTERM to the router: what runs goes on to its end, nothing new is taken; a second one, or the time
that is over, ends what is left."""
import http.client
import json
import signal
import sys

import baton_client
import cluster
import openai_http

BODY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 150, "ignore_eos": True}


class Stream:
    """One that has begun."""

    def __init__(self, base):
        self.connection = openai_http.connect(base, timeout=300)
        self.connection.request("POST", "/v1/completions", json.dumps({**BODY, "stream": True}),
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


class Held:
    """The decode worker stands still, so that nothing ends meanwhile; for less than the seconds after
    which it counts as lost."""

    def __init__(self, c):
        self.c = c

    def __enter__(self):
        self.c.kill("decode-0", signal.SIGSTOP)

    def __exit__(self, *_):
        self.c.kill("decode-0", signal.SIGCONT)


def terminate(c):
    """Until the router says that it drains."""
    c.kill("router", signal.SIGTERM)
    cluster.until(lambda: openai_http.request(c.http, "GET", "/health")[2]["status"] == "draining", 10,
                  "the router drains")


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


def main():
    args = "--tokenizer-threads 1 --tokenizer-queue 64 --tokenizer-cache 0"
    with cluster.Cluster(prefill=1, decode=1, router_args=args + " --drain-timeout 10m") as c:
        want = openai_http.post(c.http, "/v1/completions", BODY, timeout=300)["choices"][0]["text"]
        stream = Stream(c.http)
        with Held(c):
            terminate(c)
            refuses_what_is_new(c)
        stream.finish()
        assert stream.done and stream.error is None and stream.text == want, (stream.error, stream.text)
        gone(c)
    print("a stream went on to its end, nothing new was taken")
    for name, timeout, signals in (("a second signal", "10m", 2), ("the time that was over", "300ms", 1)):
        with cluster.Cluster(prefill=1, decode=1, router_args=f"--drain-timeout {timeout}") as c:
            stream = Stream(c.http)
            with Held(c):
                if signals > 1:
                    terminate(c)
                c.kill("router", signal.SIGTERM)
                stream.finish()
            assert not stream.done and "stopping" in stream.error["message"], stream.error
            gone(c)
        print(f"{name} ended a stream with an error")


if __name__ == "__main__":
    sys.exit(main())
