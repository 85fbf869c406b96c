"""The least of an OpenAI client over http.client, so that tests see bytes, codes and headers."""
import http.client
import json
import urllib.parse


def connect(base, timeout=120):
    url = urllib.parse.urlsplit(base)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)


def request(base, method, path, body=None, headers=None, timeout=120):
    """(status, headers, parsed JSON or text)"""
    connection = connect(base, timeout)
    try:
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body,
                           {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        data = answer.read()
        try:
            parsed = json.loads(data)
        except ValueError:
            parsed = data.decode("utf-8", "replace")
        return answer.status, dict(answer.getheaders()), parsed
    finally:
        connection.close()


def post(base, path, body, timeout=120):
    status, _, parsed = request(base, "POST", path, body, timeout=timeout)
    if status != 200:
        raise AssertionError(f"{path} gave {status}: {parsed}")
    return parsed


def stream(base, path, body, timeout=120):
    """Yields the JSON of each event; checks the form of the stream and its [DONE]."""
    connection = connect(base, timeout)
    try:
        connection.request("POST", path, json.dumps({**body, "stream": True}),
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise AssertionError(f"{path} gave {answer.status}: {answer.read()!r}")
        assert answer.getheader("Content-Type").startswith("text/event-stream")
        done = False
        for line in answer:
            line = line.decode().rstrip("\r\n")
            if not line:
                continue
            assert line.startswith("data: "), line
            assert not done, "an event after [DONE]"
            if line == "data: [DONE]":
                done = True
            else:
                yield json.loads(line[6:])
        assert done, "the stream ended without [DONE]"
    finally:
        connection.close()
