"""A client of streams that can be cut off anywhere and go on: events as SSE has them, with their ids."""
import json
import threading
import time

import cluster
import openai_http


class Refused(Exception):
    def __init__(self, code, headers, body):
        super().__init__(f"{code}: {body}")
        self.code, self.headers, self.body = code, headers, body


class Cut(Exception):
    """The connection ended before [DONE]."""


def events(base, path, body, headers, timeout=300):
    """Yields (id or None, parsed data) of whole events; an event "error" ends it with Cut."""
    connection = openai_http.connect(base, timeout)
    try:
        connection.request("POST", path, json.dumps({**body, "stream": True}),
                           {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        assert answer.getheader("X-Request-Id"), "a response without X-Request-Id"
        if answer.status != 200:
            raise Refused(answer.status, dict(answer.getheaders()), json.loads(answer.read()))
        assert answer.getheader("X-Request-Id") == headers.get(
            "X-Request-Id", answer.getheader("X-Request-Id"))
        event_id, data = None, None
        for line in answer:
            line = line.decode().rstrip("\r\n")
            if line.startswith("id: "):
                event_id = line[4:]
            elif line.startswith("data: "):
                data = line[6:]
            elif line == "" and data is not None:
                if data == "[DONE]":
                    return
                parsed = json.loads(data)
                if "error" in parsed:
                    raise Cut(parsed["error"]["message"])
                yield event_id, parsed
                event_id, data = None, None
        raise Cut("the end without [DONE]")
    except (OSError, ValueError) as error:
        raise Cut(repr(error)) from error
    except Exception as error:
        if type(error).__module__ == "http.client":
            raise Cut(repr(error)) from error
        raise
    finally:
        connection.close()


class Stream:
    """One request by its id, over as many connections as it takes. Of each choice the text and the
    token ids as its client has put them together, in run()."""

    def __init__(self, path, body, name, headers=None):
        self.path, self.name, self.headers = path, name, headers or {}
        self.body = {**body, "return_token_ids": True, "stream_options": {"include_usage": True}}
        n = body.get("n", 1)
        self.text, self.ids = [""] * n, [[] for _ in range(n)]
        self.finish = [None] * n
        self.roles = [0] * n
        self.usage = None
        self.last_id = None
        self.cuts, self.refusals = [], []
        self.connections = 0
        self.over = False
        self.stop = None        # leaves for good when it says so

    def tokens(self):
        return sum(map(len, self.ids))

    def take(self, event_id, event):
        for choice in event["choices"]:
            i = choice["index"]
            delta = choice.get("delta")
            self.roles[i] += delta is not None and "role" in delta
            self.text[i] += choice["text"] if delta is None else delta.get("content", "")
            self.ids[i] += choice.get("token_ids", [])
            self.finish[i] = choice["finish_reason"] or self.finish[i]
        self.usage = event.get("usage") or self.usage
        if event_id is not None:
            counts = list(map(int, event_id.split(",")))
            assert len(counts) == len(self.ids), event_id
            for count, ids in zip(counts, self.ids):
                # one more: the text that was held back until the end
                assert count in (len(ids), len(ids) + 1), (self.name, event_id, len(ids))
            self.last_id = event_id

    def connect(self, base, stop=None):
        """One connection to its end, or until stop(self) says so."""
        headers = {"X-Request-Id": self.name, **self.headers}
        if self.last_id is not None:
            headers["Last-Event-ID"] = self.last_id
        else:               # nothing to tell of: it all comes again
            self.text, self.ids = [""] * len(self.text), [[] for _ in self.ids]
            self.roles = [0] * len(self.roles)
        self.connections += 1
        for event_id, event in events(base, self.path, self.body, headers):
            self.take(event_id, event)
            if self.stop and self.stop(self):
                break
            if stop and stop(self):
                return False
        self.over = True
        return True

    def run(self, where, seconds=120):
        """Until it is over, wherever `where()` says that a router is."""
        end = time.monotonic() + seconds * cluster.PATIENCE
        while not self.over:
            assert time.monotonic() < end, (self.name, self.cuts[-3:], self.refusals[-3:])
            try:
                self.connect(where())
            except Cut as cut:
                self.cuts.append(str(cut))
                time.sleep(0.05)
            except Refused as refused:
                self.refusals.append(refused)
                assert refused.code in (503, 409), refused
                assert refused.code != 503 or int(refused.headers["Retry-After"]) >= 1
                time.sleep(0.1)
        return self

    def answer(self):
        return self.text, self.ids, self.finish, self.usage and {
            k: self.usage[k] for k in ("prompt_tokens", "completion_tokens")}


def run_all(streams, where):
    """In threads; returns them, started."""
    failures = []

    def one(stream):
        try:
            stream.run(where)
        except BaseException as error:    # told by join_all
            failures.append(error)

    threads = [threading.Thread(target=one, args=(s,), daemon=True) for s in streams]
    for thread in threads:
        thread.start()
    return threads, failures


def join_all(running, seconds=400):
    threads, failures = running
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a stream does not end"
    if failures:
        raise failures[0]
