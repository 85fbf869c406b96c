"""Clients that ask for much and read nothing: they cost bounded memory, and nobody else's answer."""
import json
import os
import pathlib
import socket
import sys
import threading
import urllib.parse

import zmq

import baton_client
import cluster
import openai_http

STALLED_HTTP = 6
STALLED_RPC = 2
HEALTHY = 4
MEMORY_MIB = 1 << 20
# What is left for a stream by its reader, twice for the buffer that grows by doubling; and what else
# a stream holds: its request, its texts, and the queue of messages of its connection.
STREAM_BYTES = 3 * MEMORY_MIB
# For all that is not by stream: the heap's own, and what the healthy ones need.
REST_BYTES = 64 * MEMORY_MIB
# With the log-probabilities of twenty a step of eight choices is some 20 KiB: long before its end
# a stream is more than sockets and limit hold.
GREEDY = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 1900,
          "ignore_eos": True, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
STALLED_RPC_STREAMS = 6


def rss_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def stalled_http(base):
    url = urllib.parse.urlsplit(base)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(300)
    connection.connect((url.hostname, url.port))
    data = json.dumps(GREEDY).encode()
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                       b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return connection


def stalled_rpc(endpoint):
    client = baton_client.Client(endpoint)
    client.socket.rcvhwm = 1
    client.socket.setsockopt(zmq.RCVBUF, 4096)
    client.socket.disconnect(endpoint)      # options are for connections to come
    client.socket.connect(endpoint)
    request = baton_client.pb["generate"].GenerateRequest()
    request.prompt, request.max_tokens, request.ignore_eos = "Once upon a time", 500, True
    request.logprobs, request.token_ids = 20, True
    for _ in range(STALLED_RPC_STREAMS):
        client.start("baton.v1.Router/Generate", request)
    return client


def metric(c, name):
    text = openai_http.request(c.http, "GET", "/metrics")[2]
    return sum(float(row.rsplit(" ", 1)[1]) for row in text.splitlines()
               if row.startswith(name + " ") or row.startswith(name + "{"))


def sanitized():
    return b"__asan_init" in (cluster.BUILD / "router/baton-router").read_bytes()


def main():
    body = {"prompt": "Once upon a time", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    with cluster.Cluster(prefill=1, decode=2) as c:
        expected = openai_http.post(c.http, "/v1/completions", body)["choices"][0]["text"]
        before = rss_bytes(c.pids["router"])
        http = [stalled_http(c.http) for _ in range(STALLED_HTTP)]
        rpc = [stalled_rpc(c.rpc) for _ in range(STALLED_RPC)]
        most, over, wrong = [0], threading.Event(), []

        def watch():
            while not over.wait(0.05):
                most[0] = max(most[0], rss_bytes(c.pids["router"]))

        def healthy():
            try:
                while not over.is_set():
                    parts = [e["choices"][0]["text"]
                             for e in openai_http.stream(c.http, "/v1/completions", body, 300)
                             if e["choices"]]
                    if "".join(parts) != expected:
                        wrong.append("".join(parts))
            except Exception as error:      # told below
                wrong.append(repr(error))

        threads = [threading.Thread(target=watch),
                   *(threading.Thread(target=healthy) for _ in range(HEALTHY))]
        for thread in threads:
            thread.start()
        try:
            slow = "baton_http_slow_readers_total"
            cluster.until(lambda: metric(c, slow) >= 1, 60, "a stalled HTTP stream is dropped")
            cluster.until(lambda: len(c.status()["requests"]) <= HEALTHY, 120,
                          "nothing runs for those who do not read")
            dropped = metric(c, slow)
        finally:
            over.set()
            for thread in threads:
                thread.join()
            for connection in http:
                connection.close()
            for client in rpc:
                client.close()
        assert not wrong, wrong[:3]
        grown = max(most[0] - before, 0)
        streams = STALLED_HTTP + STALLED_RPC_STREAMS * STALLED_RPC
        limit = streams * STREAM_BYTES + REST_BYTES
        print(f"{dropped:.0f} streams were dropped; the router grew by {grown / MEMORY_MIB:.0f} MiB "
              f"of {limit / MEMORY_MIB:.0f}")
        if not sanitized():                 # there freed memory is kept
            assert grown < limit, (grown, limit)
        c.wait_quiet(60)
        again = openai_http.post(c.http, "/v1/completions", body)["choices"][0]["text"]
        assert again == expected


if __name__ == "__main__":
    sys.exit(main())
