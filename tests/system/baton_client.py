"""A small client of Baton's ZeroMQ RPC, written from proto/README.md alone.

It shows that another language can speak the wire; the system tests use it.
Needs pyzmq and protobuf; the message classes are generated from proto/*.proto by protoc.
"""
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import zmq
import zmq.utils.z85

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _generate():
    """Runs protoc into a temporary directory of this process and imports what comes out."""
    out = tempfile.mkdtemp(prefix="baton-proto-")
    names = ["rpc", "types", "registry", "generate", "router", "worker"]
    subprocess.run(["protoc", f"--proto_path={ROOT / 'proto'}", f"--python_out={out}",
                    *(f"{name}.proto" for name in names)], check=True)
    sys.path.insert(0, out)
    modules = {name: importlib.import_module(f"{name}_pb2") for name in names}
    for path in pathlib.Path(out).rglob("*"):
        if path.is_file():
            path.unlink()
    for path in sorted(pathlib.Path(out).rglob("*"), reverse=True):
        path.rmdir()
    os.rmdir(out)
    return modules


pb = _generate()
Frame = pb["rpc"].Frame


class RpcError(Exception):
    def __init__(self, status, message):
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Client:
    """One DEALER. Calls are answered in any order; each has its own call id.

    An endpoint with a key, tcp://HOST:PORT#KEY, is spoken to with the secret key of `secret_file`.
    """

    def __init__(self, endpoint, secret_file=None):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndtimeo = 120_000          # a peer that turned us away for good takes nothing
        address, _, server_key = endpoint.partition("#")
        if server_key:
            words = [line.split() for line in open(secret_file, encoding="ascii")]
            secret = next(line[1] for line in words if line[:1] == ["secret-key"])
            self.socket.curve_secretkey = secret = zmq.utils.z85.encode(bytes.fromhex(secret))
            self.socket.curve_publickey = zmq.curve_public(secret)
            self.socket.curve_serverkey = zmq.utils.z85.encode(bytes.fromhex(server_key))
        self.socket.connect(address)
        self.next_id = 1
        self.waiting = {}

    def close(self):
        self.socket.close()
        self.context.term()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, frame, payload=b""):
        self.socket.send_multipart([frame.SerializeToString(), payload])

    def start(self, method, request, timeout_ms=0):
        call_id, self.next_id = self.next_id, self.next_id + 1
        self.waiting[call_id] = []
        self.send(Frame(kind=Frame.CALL, call_id=call_id, method=method, timeout_ms=timeout_ms,
                        version=1), request.SerializeToString())
        return call_id

    def cancel(self, call_id):
        self.send(Frame(kind=Frame.CANCEL, call_id=call_id))

    def _receive(self, until):
        left = int((until - time.monotonic()) * 1000)
        if left <= 0 or not self.socket.poll(min(left, 1000)):
            if time.monotonic() >= until:
                raise TimeoutError("no answer")
            self.send(Frame(kind=Frame.PING))          # keeps our calls alive at the server
            return
        parts = self.socket.recv_multipart()
        frame = Frame.FromString(parts[0])
        if frame.kind == Frame.PING:
            self.send(Frame(kind=Frame.PONG))
        elif frame.kind in (Frame.DATA, Frame.END) and frame.call_id in self.waiting:
            self.waiting[frame.call_id].append((frame, parts[1] if len(parts) > 1 else b""))

    def messages(self, call_id, kind, seconds=120):
        """Yields the payloads of DATA; at END returns or raises RpcError."""
        until = time.monotonic() + seconds
        while True:
            while not self.waiting[call_id]:
                self._receive(until)
            frame, payload = self.waiting[call_id].pop(0)
            if frame.kind == Frame.END:
                del self.waiting[call_id]
                if frame.status not in ("", "ok"):
                    raise RpcError(frame.status, frame.message)
                return payload
            yield kind.FromString(payload)

    def call(self, method, request, response, seconds=30):
        """A unary call."""
        stream = self.messages(self.start(method, request, int(seconds * 1000)), response, seconds)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return response.FromString(end.value or b"")

    def generate(self, seconds=120, **fields):
        """Yields GenerateEvent. messages=[(role, content), …] is taken, too."""
        request = pb["generate"].GenerateRequest()
        for role, content in fields.pop("messages", ()):
            request.messages.add(role=role, content=content)
        for name, value in fields.items():
            if isinstance(value, (list, tuple)):
                getattr(request, name).extend(value)
            else:
                setattr(request, name, value)
        call_id = self.start("baton.v1.Router/Generate", request)
        yield from self.messages(call_id, pb["router"].GenerateEvent, seconds)

    def status(self):
        return self.call("baton.v1.Router/Status", pb["router"].StatusRequest(),
                         pb["router"].StatusResponse)
