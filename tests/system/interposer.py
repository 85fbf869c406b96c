"""Stands between the processes of a fleet and harms what passes: ZeroMQ messages, bytes of TCP.

A Relay is one RPC endpoint in front of another. Registrations and reservations that pass are
rewritten, so that everybody reaches every worker through a relay of ours, and with `data` the
transport's TCP port through a Wire. Nothing here knows more than proto/README.md and the layout of
addresses (kvtransfer/blob.c, choice/blob.c, tcp/internal.h).
"""
import ctypes
import heapq
import random
import socket
import struct
import threading
import time

import zmq

import baton_client

pb = baton_client.pb
Frame = baton_client.Frame
XXH = ctypes.CDLL("libxxhash.so.0").XXH3_64bits_withSeed
XXH.restype = ctypes.c_uint64
XXH.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]

BLOB = struct.Struct("<IHHQQ")
PART = struct.Struct("<16sQ")
ADDRESS = struct.Struct("<16s16sHHI")
HELLO = struct.Struct("<II16sQQII")
FRAME = struct.Struct("<IIQQ")
TCP_MAGIC, WRITE = 0x42544b56, 2
CHOICE_ADDRESS, TCP_ADDRESS = 0x4143, 0x4154


def unseal(blob):
    _, _, kind, size, _ = BLOB.unpack_from(blob)
    return kind, blob[BLOB.size:BLOB.size + size]


def seal(like, payload):
    magic, version, kind, _, _ = BLOB.unpack_from(like)
    return BLOB.pack(magic, version, kind, len(payload), XXH(payload, len(payload), kind)) + payload


def tcp_parts(blob):
    """Yields (name, part) of an address that several transports share."""
    kind, rest = unseal(blob)
    assert kind == CHOICE_ADDRESS, hex(kind)
    while rest:
        name, size = PART.unpack_from(rest)
        yield name.rstrip(b"\0").decode(), rest[PART.size:PART.size + size]
        rest = rest[PART.size + size:]


def tcp_address(blob):
    """(ip, port, token) of the transport's TCP port; None: it offers none."""
    for name, part in tcp_parts(blob):
        if name == "tcp":
            token, ip, family, port, _ = ADDRESS.unpack(unseal(part)[1])
            assert family == socket.AF_INET
            return socket.inet_ntoa(ip[:4]), port, token
    return None


def with_port(blob, port):
    out = b""
    for name, part in tcp_parts(blob):
        if name == "tcp":
            token, ip, family, _, scope = ADDRESS.unpack(unseal(part)[1])
            part = seal(part, ADDRESS.pack(token, socket.inet_aton("127.0.0.1").ljust(16, b"\0"),
                                           family, port, scope))
        out += PART.pack(name.encode(), len(part)) + part
    return seal(blob, out)


class Wire:
    """A TCP connection to `target` with holes: `corrupt(address, bytes)` says how many bytes of the
    payload of a write are flipped, `open` false holds everything back, cut() resets all."""

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.corrupt, self.random = lambda address, size: 0, random.Random(1)
        self.flipped = self.accepted = self.carried = 0
        self.open = threading.Event()
        self.open.set()
        self.pairs, self.closed = [], False
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
            except OSError:
                if self.closed:
                    return
                continue
            self.accepted += 1
            for s in (near, far):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs.append((near, far))
            for run, a, b in ((self._forth, near, far), (self._back, far, near)):
                thread = threading.Thread(target=run, args=(a, b), daemon=True)
                thread.start()
                self.threads.append(thread)

    @staticmethod
    def _exactly(s, size):
        data = bytearray()
        while len(data) < size:
            got = s.recv(size - len(data))
            if not got:
                raise OSError("closed")
            data += got
        return data

    def _forth(self, near, far):
        try:
            far.sendall(self._exactly(near, HELLO.size))
            while True:
                head = self._exactly(near, FRAME.size)
                magic, kind, address, size = FRAME.unpack(head)
                assert magic == TCP_MAGIC
                payload = self._exactly(near, size) if kind == WRITE else b""
                for _ in range(self.corrupt(address, size) if kind == WRITE else 0):
                    payload[self.random.randrange(size)] ^= 1 << self.random.randrange(8)
                    self.flipped += 1
                self.open.wait()
                far.sendall(bytes(head) + bytes(payload))
                self.carried += len(payload)
        except OSError:
            self._drop(near, far)

    def _back(self, far, near):
        try:
            while data := far.recv(65536):
                self.open.wait()
                near.sendall(data)
        except OSError:
            pass
        self._drop(near, far)

    @staticmethod
    def _drop(*sockets):
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        for near, far in self.pairs:
            for s in (near, far):
                try:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                except OSError:
                    pass
            self._drop(near, far)

    def close(self):
        self.closed = True
        self.open.set()
        self._drop(self.listener)
        self.listener.close()
        self.cut()
        for thread in self.threads:
            thread.join(10)
        for pair in self.pairs:
            for s in pair:
                s.close()


class Relay:
    """One endpoint in front of another; one connection behind for each that is in front."""

    def __init__(self, interposer, target):
        self.target = target
        self.front = interposer.context.socket(zmq.ROUTER)
        self.front.linger = 0
        port = self.front.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.back = {}        # identity in front -> DEALER behind
        self.methods = {}     # (identity, call id) -> method


class Interposer:
    """A thread that runs all relays. `faults(method, kind, to_server)` gives for each message a list of
    delays in seconds, one for each copy: [] loses it, [0] lets it pass, [0, 0.5] doubles it late."""

    def __init__(self, data=False):
        self.context = zmq.Context()
        self.poller = zmq.Poller()
        self.relays, self.wires = {}, {}       # by what they stand before
        self.fronts, self.backs = {}, {}       # socket -> relay, socket -> (relay, identity)
        self.faults = lambda method, kind, to_server: [0]
        self.counts = {}
        self.data = data
        self.late, self.serial = [], 0
        self.stopping = False
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self, router):
        """Returns where workers and clients reach the router."""
        endpoint = self._relay(router)
        self.thread.start()
        return endpoint

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopping = True
        if self.thread.ident:
            self.thread.join()
        for wire in self.wires.values():
            wire.close()
        for socket_ in [*self.fronts, *self.backs]:
            socket_.close(0)
        self.context.term()
        if self.error:
            raise self.error

    def _relay(self, target):
        if target not in self.relays:
            relay = self.relays[target] = Relay(self, target)
            self.fronts[relay.front] = relay
            self.poller.register(relay.front, zmq.POLLIN)
        return self.relays[target].endpoint

    def _endpoint(self, kv):
        """Of a decode rank, in place."""
        kv.control_endpoint = self._relay(kv.control_endpoint)
        if self.data:
            ip, port, _ = tcp_address(kv.transport_address)
            if (ip, port) not in self.wires:
                self.wires[ip, port] = Wire((ip, port))
            kv.transport_address = with_port(kv.transport_address, self.wires[ip, port].port)

    def _rewrite(self, method, kind, payload):
        if method == "baton.v1.Registry/Register" and kind == Frame.CALL:
            message = pb["registry"].RegisterRequest.FromString(payload)
            message.control_endpoint = self._relay(message.control_endpoint)
            if message.HasField("kv"):
                self._endpoint(message.kv)
            return message.SerializeToString()
        if method == "baton.v1.Decode/Reserve" and kind == Frame.END and payload:
            message = pb["worker"].ReserveResponse.FromString(payload)
            self._endpoint(message.landing.endpoint)
            return message.SerializeToString()
        return payload

    def _pass(self, relay, identity, parts, to_server):
        frame = Frame.FromString(parts[0])
        key = identity, frame.call_id
        if frame.kind == Frame.CALL:
            relay.methods[key] = frame.method
        method = relay.methods.get(key, "")
        if frame.kind in (Frame.PING, Frame.PONG):
            copies = [0]
        else:
            parts = [parts[0], self._rewrite(method, frame.kind, parts[1])]
            copies = self.faults(method, frame.kind, to_server)
            what = "lost" if not copies else "doubled" if len(copies) > 1 else (
                "late" if copies[0] else "passed")
            self.counts[what] = self.counts.get(what, 0) + 1
        for delay in copies:
            if delay:
                self.serial += 1
                heapq.heappush(self.late, (time.monotonic() + delay, self.serial, relay, identity,
                                           parts, to_server))
            else:
                self._send(relay, identity, parts, to_server)

    def _send(self, relay, identity, parts, to_server):
        if not to_server:
            relay.front.send_multipart([identity, *parts])
            return
        back = relay.back.get(identity)
        if back is None:
            back = relay.back[identity] = self.context.socket(zmq.DEALER)
            back.linger = 0
            back.connect(relay.target)
            self.backs[back] = relay, identity
            self.poller.register(back, zmq.POLLIN)
        back.send_multipart(parts)

    def _turn(self):
        wait = 20 if not self.late else max(0, min(20, (self.late[0][0] - time.monotonic()) * 1000))
        for socket_, _ in self.poller.poll(wait):
            if socket_ in self.fronts:
                identity, *parts = socket_.recv_multipart()
                self._pass(self.fronts[socket_], identity, parts, True)
            else:
                relay, identity = self.backs[socket_]
                self._pass(relay, identity, socket_.recv_multipart(), False)
        while self.late and self.late[0][0] <= time.monotonic():
            _, _, relay, identity, parts, to_server = heapq.heappop(self.late)
            self._send(relay, identity, parts, to_server)

    def _run(self):
        try:
            while not self.stopping:
                self._turn()
        except Exception as error:           # shown by the test, at its end
            self.error = error
