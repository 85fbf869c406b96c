"""Clients that go away at a random moment, 200 times: every page comes back, nothing is left."""
import json
import os
import random
import socket
import struct
import sys
import threading
import urllib.parse

import cluster
import openai_http

COUNT = 200
AT_ONCE = 8


def open_stream(base, body):
    url = urllib.parse.urlsplit(base)
    connection = socket.create_connection((url.hostname, url.port), timeout=300)
    data = json.dumps(body).encode()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                       b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return connection


def leave(connection, r):
    """Closes in order, or resets, or half-closes and then closes."""
    how = r.randrange(3)
    if how == 1:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == 2:
        connection.shutdown(socket.SHUT_WR)
    connection.close()


def one(base, seed):
    r = random.Random(seed)
    prompt = [r.randrange(3, 2046) for _ in range(int(2 ** r.uniform(0, 11)))]
    body = {"prompt": prompt, "max_tokens": 2000, "ignore_eos": True, "stream": r.random() < 0.7,
            "n": r.choice([1, 1, 2])}
    connection = open_stream(base, body)
    moment = r.random()
    if moment < 0.15:
        pass                                            # at once
    elif moment < 0.6:
        connection.settimeout(r.uniform(0.0005, 0.3))   # somewhere on the way
        try:
            connection.recv(1)
        except TimeoutError:
            pass
    elif body["stream"]:
        connection.settimeout(300)
        left = r.randint(1, 4000)                       # after so many bytes of the stream
        while left > 0:
            got = len(connection.recv(min(left, 4096)))
            if not got:
                break
            left -= got
    leave(connection, r)


def worker(base, seeds, failures):
    for seed in seeds:
        try:
            one(base, seed)
        except OSError as error:
            failures.append(f"seed {seed}: {error!r}")


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20261122"))
    print(f"seed {seed}")
    seeds = [seed * 1000 + i for i in range(COUNT)]
    with cluster.Cluster(prefill=1, decode=2, prefill_args="--layerwise-threshold 200") as c:
        before = openai_http.post(c.http, "/v1/completions", {
            "prompt": "Once upon a time", "temperature": 0, "max_tokens": 20})
        failures = []
        threads = [threading.Thread(target=worker, args=(c.http, seeds[i::AT_ONCE], failures))
                   for i in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        c.wait_quiet(60)
        after = openai_http.post(c.http, "/v1/completions", {
            "prompt": "Once upon a time", "temperature": 0, "max_tokens": 20})
        assert after["choices"] == before["choices"]
        assert all(c.alive(name) for name in c.pids)
        print(f"{COUNT} clients left; every page is free and no request is left")


if __name__ == "__main__":
    sys.exit(main())
