"""Malformed input on every port: a clear error, the servers stay up, other requests go on."""
import os
import random
import socket
import sys
import threading
import urllib.parse

import zmq

import baton_client
import cluster
import openai_http

pb = baton_client.pb
Frame = baton_client.Frame

# body, code, a word of the message
BODIES = [
    (b"", 400, "body"), (b"{", 400, "JSON"), (b"[]", 400, "object"), (b"null", 400, "object"),
    (b'{"prompt": "x"', 400, "JSON"), (b'{"prompt": "\xff"}', 400, "JSON"),
    (b'{"prompt": "\\ud800"}', 400, "JSON"), (b'{"a": 1, "a": 2, "prompt": "x"}', 400, "a"),
    (b"[" * 100000, 400, "JSON"), (b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, ""),
    (b'{}', 400, "prompt"), (b'{"prompt": null}', 400, "prompt"), (b'{"prompt": 5}', 400, "prompt"),
    (b'{"prompt": []}', 400, "prompt"), (b'{"prompt": ""}', 400, "prompt"),
    (b'{"prompt": [1, "x"]}', 400, "prompt"), (b'{"prompt": [-1]}', 400, "prompt"),
    (b'{"prompt": [2048]}', 400, "2048"), (b'{"prompt": [99999999999999999999]}', 400, ""),
    (b'{"prompt": [1.5]}', 400, "prompt"), (b'{"prompt": [[]]}', 400, "prompt"),
    (b'{"prompt": "x", "max_tokens": "many"}', 400, "max_tokens"),
    (b'{"prompt": "x", "max_tokens": 0}', 400, "max_tokens"),
    (b'{"prompt": "x", "max_tokens": 1e99}', 400, "max_tokens"),
    (b'{"prompt": "x", "temperature": 1e999}', 400, ""),
    (b'{"prompt": "x", "temperature": "hot"}', 400, "temperature"),
    (b'{"prompt": "x", "top_p": -0.1}', 400, "top_p"),
    (b'{"prompt": "x", "top_k": -7}', 400, "top_k"),
    (b'{"prompt": "x", "min_p": 3}', 400, "min_p"),
    (b'{"prompt": "x", "n": 1000000}', 400, "n"),
    (b'{"prompt": "x", "seed": 1.5}', 400, "seed"),
    (b'{"prompt": "x", "stop": 5}', 400, "stop"), (b'{"prompt": "x", "stop": [""]}', 400, "stop"),
    (b'{"prompt": "x", "stop": ["a", 1]}', 400, "stop"),
    (b'{"prompt": "x", "logprobs": 1000}', 400, "logprobs"),
    (b'{"prompt": "x", "logit_bias": {"x": 1}}', 400, "logit_bias"),
    (b'{"prompt": "x", "logit_bias": {"5000": 1}}', 400, "logit_bias"),
    (b'{"prompt": "x", "logit_bias": {"5": 1000}}', 400, "logit_bias"),
    (b'{"prompt": "x", "stream": "yes"}', 400, "stream"),
    (b'{"prompt": "x", "echo": true}', 400, "echo"),
    (b'{"prompt": "x", "model": 7}', 400, "model"), (b'{"prompt": "x", "model": "gpt"}', 404, "gpt"),
    (b'{"prompt": "' + b"long " * 20000 + b'"}', 400, "context"),
    # refused by its bytes: tokenizing it would keep all others waiting
    (b'{"prompt": "' + b"7" * (15 << 20) + b'"}', 400, "bytes"),
]

RAW = [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n"
       b"Content-Length: -5\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: "
       b"99999999999999\r\n\r\n{", b"A" * 100000, b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n",
       b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"]


def http_bodies(base):
    for body, code, word in BODIES:
        got, _, answer = openai_http.request(base, "POST", "/v1/completions", body)
        assert got == code, (body[:80], got, answer)
        assert word in answer["error"]["message"] or word == answer["error"]["param"], (body[:80], answer)
    for method, path, code in [("GET", "/nothing", 404), ("GET", "/v1/completions", 405),
                               ("DELETE", "/v1/models", 405), ("GET", "/v1/models/none", 404),
                               ("POST", "/v1/chat/completions", 400)]:
        got, _, answer = openai_http.request(base, method, path)
        assert got == code and answer["error"]["message"], (method, path, got, answer)
    big = b'{"prompt": "' + b"x" * (70 << 20) + b'"}'
    try:
        got, _, answer = openai_http.request(base, "POST", "/v1/completions", big)
        assert got == 413, (got, answer)
    except (BrokenPipeError, ConnectionResetError):
        pass            # refused before the end of the body: the answer may be lost on the way


def http_raw(base):
    url = urllib.parse.urlsplit(base)
    for data in RAW:
        with socket.create_connection((url.hostname, url.port), timeout=60) as s:
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:
                pass            # closed on us in the middle of nonsense: fine


def rpc_raw(endpoint, r, count):
    """Frames that are no frames, and frames that are random."""
    context = zmq.Context()
    for _ in range(count):
        s = context.socket(zmq.DEALER)
        s.linger = 200
        s.connect(endpoint)
        for _ in range(r.randint(1, 6)):
            frame = Frame(kind=r.randint(0, 9), call_id=r.choice([0, 1, 2 ** 64 - 1]),
                          method=r.choice(["", "x" * 5000, "baton.v1.Router/Generate",
                                           "baton.v1.Decode/Reserve", "baton.v1.Prefill/Run",
                                           "baton.v1.Registry/Register", "baton.v1.Decode/Steps",
                                           "baton.v1.Decode/HandoffDone", "baton.v1.Decode/Lease",
                                           "baton.v1.Decode/Quiesced", "baton.v1.Decode/Cancel"]),
                          timeout_ms=r.choice([0, 1, 2 ** 64 - 1]), version=r.choice([0, 1, 77]))
            head = r.choice([frame.SerializeToString(), r.randbytes(r.randint(0, 60))])
            s.send_multipart(r.choice([[head], [head, r.randbytes(r.randint(0, 200))],
                                       [head, b""], [b"", b"", b""], [head] * 9]))
        s.close()
    context.term()


def rpc_meaning(c):
    """Well-formed calls that mean something impossible."""
    def refused(client, method, request, response, status, word=""):
        try:
            client.call(method, request, response)
        except baton_client.RpcError as error:
            assert error.status == status and word in error.message, (method, error)
        else:
            raise AssertionError(f"{method} was taken: {request}")

    registry, types, worker = pb["registry"], pb["types"], pb["worker"]
    with baton_client.Client(c.rpc) as client:
        refused(client, "baton.v1.Registry/Register", registry.RegisterRequest(),
                registry.RegisterResponse, "invalid_argument")
        refused(client, "baton.v1.Registry/Register", registry.RegisterRequest(
            worker_id="x" * 5000, incarnation=1, role=1), registry.RegisterResponse, "invalid_argument")
        live = client.status().workers[0]
        other = types.LayoutFingerprint(layout_version=1, model_hash=1, model_name="other", kv_dtype="f32",
                                        arithmetic="float32", page_tokens=64, layer_count=6, kv_lora_rank=64, qk_rope_head_dim=16)
        refused(client, "baton.v1.Registry/Register", registry.RegisterRequest(
            worker_id="foreign", incarnation=5, role=registry.ROLE_PREFILL, max_model_len=100,
            control_endpoint="tcp://127.0.0.1:1", fingerprint=other,
            process=types.ProcessId(host="x", pid=1, start_ticks=1), load=types.RankLoad(),
            transport="auto"), registry.RegisterResponse, "mismatch", "model_hash")
        refused(client, "baton.v1.Registry/Heartbeat", registry.HeartbeatRequest(
            worker_id=live.worker_id, incarnation=live.incarnation + 1, load=types.RankLoad()),
            registry.HeartbeatResponse, "not_found")
        refused(client, "baton.v1.Router/Nothing", registry.RegisterRequest(),
                registry.RegisterResponse, "not_found")
        for fields, word in [({}, "prompt"), ({"prompt": "x", "prompt_ids": [1]}, "prompt"),
                             ({"prompt_ids": [5000]}, "5000"), ({"prompt": "x", "temperature": -1.0}, "temperature"),
                             ({"prompt": "x", "temperature": float("nan")}, "temperature"),
                             ({"prompt": "x", "stop": [""]}, "stop"), ({"messages": [("king", "x")]}, "role"),
                             ({"prompt": "x", "logit_bias_token": [1, 2], "logit_bias_value": [1.0]}, "logit_bias")]:
            try:
                list(client.generate(**fields))
            except baton_client.RpcError as error:
                assert error.status == "invalid_argument" and word in error.message, (fields, error)
            else:
                raise AssertionError(f"Generate took {fields}")
        workers = {w.worker_id: w.control_endpoint for w in client.status().workers}
    with baton_client.Client(workers["decode-0"]) as client:
        sampling = types.SamplingParams(max_tokens=5, top_p=1, repetition_penalty=1, logprobs=-1)
        refused(client, "baton.v1.Decode/Reserve", worker.ReserveRequest(), worker.ReserveResponse,
                "invalid_argument")
        refused(client, "baton.v1.Decode/Reserve", worker.ReserveRequest(
            request_id=9, prompt_tokens=2 ** 32 - 1, sampling=sampling), worker.ReserveResponse,
            "invalid_argument")
        refused(client, "baton.v1.Decode/HandoffDone", worker.HandoffDoneRequest(
            request_id=77, epoch=1, prompt_tokens=1, page_count=1, has_checksum=True,
            first_token=types.Token(token=5)), worker.HandoffDoneResponse, "stale")
        client.call("baton.v1.Decode/Quiesced", worker.QuiescedRequest(request_id=77, epoch=1, incarnation=5),
                    worker.QuiescedResponse)
        client.call("baton.v1.Decode/Cancel", worker.CancelRequest(request_id=77), worker.CancelResponse)
        lease = client.call("baton.v1.Decode/Lease", worker.LeaseRequest(
            worker_id="x", incarnation=1, process=types.ProcessId(host="x", pid=1, start_ticks=1),
            lease=[worker.LeaseKey(request_id=77, epoch=1)]), worker.LeaseResponse)
        assert list(lease.live) == [False]
    with baton_client.Client(workers["prefill-0"]) as client:
        for request in [worker.PrefillRequest(), worker.PrefillRequest(request_id=1, prompt=[10 ** 9]),
                        worker.PrefillRequest(request_id=1, prompt=[5] * 100, sampling=sampling,
                                              landing=types.Landing(request_id=1, epoch=1))]:
            try:
                list(client.messages(client.start("baton.v1.Prefill/Run", request), worker.PrefillEvent, 30))
            except baton_client.RpcError as error:
                assert error.status in ("invalid_argument", "mismatch"), error
            else:
                raise AssertionError("Prefill/Run was taken")
    return list(workers.values()) + [c.rpc]


def main():
    seed = int(os.environ.get("BATON_TEST_SEED", "20261122"))
    print(f"seed {seed}")
    r = random.Random(seed)
    with cluster.Cluster() as c:
        body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 64}
        want = openai_http.post(c.http, "/v1/completions", body)["choices"]
        stop, wrong, done = threading.Event(), [], []

        def others():
            while not stop.is_set():
                got = openai_http.post(c.http, "/v1/completions", body)["choices"]
                done.append(1)
                if got != want:
                    wrong.append(got)

        thread = threading.Thread(target=others)
        thread.start()
        try:
            http_bodies(c.http)
            http_raw(c.http)
            endpoints = rpc_meaning(c)
            for endpoint in endpoints:
                rpc_raw(endpoint, r, 60)
        finally:
            stop.set()
            thread.join()
        assert not wrong, wrong[0]
        assert done, "no other request went through"
        assert openai_http.post(c.http, "/v1/completions", body)["choices"] == want
        assert all(c.alive(name) for name in c.pids)
        c.wait_quiet(60)
        print(f"{len(BODIES)} bodies, {len(RAW)} raw requests, {len(endpoints)} RPC ports; "
              f"{len(done)} other requests meanwhile, all right")


if __name__ == "__main__":
    sys.exit(main())
