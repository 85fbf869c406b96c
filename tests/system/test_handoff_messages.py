"""What travels between the processes is lost, doubled, late, out of order, false, or hostile.

Rules 4, 5, 6 and 9 of kvtransfer/README.md, on real processes: tokens stay those of one process
without a network, pages come back, a transfer whose checksum fails is never decoded.
"""
import concurrent.futures
import os
import random
import socket
import sys
import time

import baton_client
import cluster
import fleet
import interposer

pb = baton_client.pb
HANDOFF = ("baton.v1.Decode/Lease", "baton.v1.Decode/HandoffDone", "baton.v1.Decode/Quiesced")
UNARY = HANDOFF + ("baton.v1.Decode/Cancel", "baton.v1.Decode/Reserve")
AT_ONCE = 6
PATIENCE_S = 300
MANY, ROUNDS = 10, 6      # of control messages that are harmed; of load until they are


def start(f, between, **args):
    f.router("--heartbeat", 200, "--max-attempts", 8, "--poison-deaths", 0, "--flap-lives", 0,
             "--request-timeout", "240s")
    f.registry = between.start(f.rpc)
    for i in range(2):
        f.add("decode", f"decode-{i}", "--lease", "2s", "--kv-pages", 600, *args.get("decode", ())).start()
        f.add("prefill", f"prefill-{i}", "--chunked-prefill-size", 256, "--kv-pages", 300,
              *args.get("prefill", ())).start()
    f.wait_ready_all()


def run_all(f, bodies, want):
    """All at once. Returns errors; what is no error is right."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda body: fleet.ask(f.http, body, PATIENCE_S), bodies))
    for index, (got, error) in enumerate(answers):
        assert error or got == want[index], f"request {index}: {got} is not {want[index]}"
        assert not error or len(error) > 8, error
    return [error for _, error in answers if error]


def control_messages(f, between, r, bodies, want):
    """Rule 5. Messages are lost, doubled, late and out of order."""
    def everything_twice_and_late(method, kind, to_server):
        return [0] + [r.uniform(0.01, 1.0) for _ in range(r.choice([0, 1, 1, 2]))]

    def handoff_out_of_order(method, kind, to_server):
        if method not in UNARY:
            return [0]
        return [r.uniform(0, 0.4) for _ in range(r.choice([1, 1, 2]))]

    def handoff_lost(method, kind, to_server):
        if method not in HANDOFF:
            return [0]
        return [] if r.random() < 0.12 else [0] if r.random() < 0.5 else [0, r.uniform(0, 1)]

    for harm in (everything_twice_and_late, handoff_out_of_order, handoff_lost):
        between.counts, asked, errors, harmed = {}, 0, [], 0
        while harmed <= MANY and asked < ROUNDS * len(bodies):
            between.faults = harm
            errors += run_all(f, bodies, want)
            between.faults = lambda *_: [0]
            f.wait_quiet(90)
            asked += len(bodies)
            harmed = sum(between.counts.get(how, 0) for how in ("doubled", "lost", "late"))
        print(f"{harm.__name__}: {between.counts}, errors {errors}", flush=True)
        assert harmed > 0, between.counts
        assert len(errors) < asked, errors
        assert not run_all(f, bodies, want)       # what had an error, too


def checksums(f, between, bodies, want):
    """Rules 6 and 11. One byte is wrong on the wire: that handoff is refused, named, and done again."""
    def corrupt():
        return sum(p.metric("baton_handoffs_total", 'verdict="corrupt"') for p in f.workers("decode"))

    def flip(times):
        left = iter(range(times))           # several threads take of it

        def of(address, size):              # of pages, and not of the 64 bytes that tell of progress
            return int(size >= 128 and next(left, None) is not None)
        for wire in between.wires.values():
            wire.corrupt = of

    flips = sum(w.flipped for w in between.wires.values())
    before = corrupt()
    flip(2)
    errors = run_all(f, bodies, want)
    flipped = sum(w.flipped for w in between.wires.values()) - flips
    assert not errors, errors
    assert flipped == 2 and 1 <= corrupt() - before <= 2, (flipped, corrupt() - before)
    f.wait_quiet()
    flip(10 ** 9)

    def named():        # unless the last attempt failed by a pause that was longer than a lease
        earlier = corrupt()
        got, error = fleet.ask(f.http, bodies[0], PATIENCE_S)
        assert got is None and "attempts" in error, (got, error)
        return "checksum" in error and corrupt() > earlier
    cluster.until(named, 60, "an error that names the checksum")
    flip(0)
    f.wait_quiet()
    refused = int(corrupt() - before)
    assert not run_all(f, bodies, want)
    f.wait_quiet()
    # What a source says of its progress is only a hint: false or not, the sum is right or refused.
    for wire in between.wires.values():
        wire.corrupt = lambda address, size: size < 128
    errors = run_all(f, bodies, want)
    for wire in between.wires.values():
        wire.corrupt = lambda address, size: 0
    assert not errors, errors
    f.wait_quiet()
    print(f"{refused} handoffs with a flipped bit were refused, none was decoded; false progress "
          "harmed nothing", flush=True)


def cut_connections(f, between, r, bodies, want):
    """Rules 2 and 4. The data connection breaks in the middle of writes: rule 2's cut, then the
    pages come back."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(4):
            job = pool.submit(run_all, f, bodies, want)
            before = sum(w.carried for w in between.wires.values())
            some = r.randint(200, 3000) << 10
            cluster.until(lambda: sum(w.carried for w in between.wires.values()) > before + some
                          or job.done(), PATIENCE_S, "bytes on the wire")
            for wire in list(between.wires.values()):
                wire.cut()
            errors = job.result()
            f.wait_quiet()
            print(f"data connections cut after {some >> 10} KiB: errors {errors}", flush=True)
            assert len(errors) < len(bodies), errors
            assert not run_all(f, bodies, want)


NUMBERS = [0, 1, 2, 63, 64, 65, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1]
WIDE = NUMBERS + [2 ** 63, 2 ** 64 - 1]


def nonsense(r, descriptor, depth=0):
    """A message of this type, well-formed, of random and extreme values."""
    message = descriptor._concrete_class()
    for field in descriptor.fields:
        if r.random() < 0.3:
            continue
        F = field
        repeated = field.label == F.LABEL_REPEATED

        def value():
            kind = field.cpp_type
            if kind == F.CPPTYPE_MESSAGE:
                return nonsense(r, field.message_type, depth + 1)
            if kind == F.CPPTYPE_STRING:
                if field.type == F.TYPE_BYTES:
                    return r.randbytes(r.choice([0, 1, 24, 200]))
                return r.choice(["", "x", "tcp://127.0.0.1:1", "y" * 3000, "\u20ac" * 50, "bf16"])
            if kind == F.CPPTYPE_BOOL:
                return r.random() < 0.5
            if kind in (F.CPPTYPE_FLOAT, F.CPPTYPE_DOUBLE):
                return r.choice([0.0, -1.0, 1.0, 1e30, float("nan"), float("inf")])
            if kind == F.CPPTYPE_ENUM:
                return r.choice([0, 1, 2, 99])
            if kind in (F.CPPTYPE_INT32, F.CPPTYPE_INT64):
                return r.choice([0, 1, -1, 2 ** 31 - 1, -2 ** 31])
            return r.choice(WIDE if kind == F.CPPTYPE_UINT64 else NUMBERS)
        if repeated:
            for _ in range(r.choice([0, 1, 2, 5]) if depth < 3 else 0):
                if field.cpp_type == F.CPPTYPE_MESSAGE:
                    getattr(message, field.name).add().CopyFrom(value())
                else:
                    getattr(message, field.name).append(value())
        elif field.cpp_type == F.CPPTYPE_MESSAGE:
            if depth < 4:
                getattr(message, field.name).CopyFrom(value())
        else:
            setattr(message, field.name, value())
    return message


def bent(r, message):
    """A right message with one field, somewhere in it, that is wrong."""
    copy = type(message)()
    copy.CopyFrom(message)
    at = copy
    while True:
        fields = [f for f in at.DESCRIPTOR.fields]
        field = r.choice(fields)
        if (field.cpp_type == field.CPPTYPE_MESSAGE and field.label != field.LABEL_REPEATED
                and at.HasField(field.name) and r.random() < 0.8):
            at = getattr(at, field.name)
            continue
        other = nonsense(r, at.DESCRIPTOR)
        at.ClearField(field.name)
        if field.label == field.LABEL_REPEATED:
            getattr(at, field.name).MergeFrom(getattr(other, field.name))
        elif field.cpp_type == field.CPPTYPE_MESSAGE:
            getattr(at, field.name).CopyFrom(getattr(other, field.name))
        else:
            setattr(at, field.name, getattr(other, field.name))
        return copy


class Raw:
    """Takes any answer."""
    @staticmethod
    def FromString(payload):
        return payload


def hostile(f, r, count):
    """Rules 5 and 9. Well-formed messages of nonsense to every method of every worker and of the
    registry."""
    w, reg = pb["worker"], pb["registry"]
    types = pb["types"]
    sampling = types.SamplingParams(max_tokens=5, top_p=1, repetition_penalty=1, logprobs=-1, seed=1)
    statuses = {}

    def send(client, method, request):
        call = client.start(method, request, timeout_ms=3000)
        try:
            list(client.messages(call, Raw, 120))
            status = "ok"
        except baton_client.RpcError as error:
            status = error.status
            assert error.message or status in ("cancelled", "deadline"), (method, request, status)
        statuses[status] = statuses.get(status, 0) + 1
        return status

    decode, prefill = f.processes["decode-0"], f.processes["prefill-0"]
    with baton_client.Client(decode.rpc) as to_decode, baton_client.Client(prefill.rpc) as to_prefill:
        def reserve(**fields):
            # A router that listens for its steps may reserve: pretend to be one.
            steps = to_decode.start("baton.v1.Decode/Steps", w.StepsRequest(router_incarnation=4711))
            landing = to_decode.call("baton.v1.Decode/Reserve", w.ReserveRequest(
                request_id=r.randrange(1, 2 ** 63), prompt_tokens=100, sampling=sampling,
                router_incarnation=4711, **fields), w.ReserveResponse).landing
            return steps, landing

        steps, landing = reserve()
        right_run = w.PrefillRequest(request_id=landing.request_id, prompt=[5] * 100,
                                     sampling=sampling, landing=landing)
        right = {
            "baton.v1.Decode/Reserve": w.ReserveRequest(request_id=5, prompt_tokens=100,
                                                        sampling=sampling, router_incarnation=4711),
            "baton.v1.Decode/Lease": w.LeaseRequest(
                worker_id="x", incarnation=1, process=types.ProcessId(host="x", pid=1, start_ticks=1),
                lease=[w.LeaseKey(request_id=landing.request_id, epoch=landing.epoch)]),
            "baton.v1.Decode/HandoffDone": w.HandoffDoneRequest(
                request_id=landing.request_id, epoch=landing.epoch, prompt_tokens=100, page_count=2,
                has_checksum=True, checksum=1, first_token=types.Token(token=5)),
            "baton.v1.Decode/Quiesced": w.QuiescedRequest(request_id=7, epoch=7, incarnation=1),
            "baton.v1.Decode/Cancel": w.CancelRequest(request_id=7),
        }
        for number in range(count):
            method = r.choice(list(right))
            request = (bent(r, right[method]) if r.random() < 0.6
                       else nonsense(r, right[method].DESCRIPTOR))
            send(to_decode, method, request)
            request = (bent(r, right_run) if r.random() < 0.8
                       else nonsense(r, right_run.DESCRIPTOR))
            send(to_prefill, "baton.v1.Prefill/Run", request)
        to_decode.cancel(steps)        # what the pretended router reserved goes with it
        # Whoever took the lease, as no process that can be seen to die, has to say that he is done.
        for incarnation in WIDE[1:]:
            send(to_decode, "baton.v1.Decode/Quiesced", w.QuiescedRequest(
                request_id=landing.request_id, epoch=landing.epoch, incarnation=incarnation))
    with baton_client.Client(f.rpc) as to_router:
        for number in range(count):
            send(to_router, "baton.v1.Registry/Register", nonsense(r, reg.RegisterRequest.DESCRIPTOR))
            send(to_router, "baton.v1.Registry/Heartbeat", nonsense(r, reg.HeartbeatRequest.DESCRIPTOR))
            send(to_router, "baton.v1.Registry/Deregister",
                 nonsense(r, reg.DeregisterRequest.DESCRIPTOR))
    return statuses


def hostile_data(f, r, between):
    """Rule 9. Garbage, and a writer that knows the token and writes where no pool is, on the data
    ports."""
    for ip, port in list(between.wires):
        for number in range(30):
            with socket.create_connection((ip, port), 60) as s:
                s.settimeout(5)
                kind = number % 3
                try:
                    if kind == 0:
                        s.sendall(r.randbytes(r.randint(1, 5000)))
                    elif kind == 1:
                        s.sendall(interposer.HELLO.pack(interposer.TCP_MAGIC, 2, r.randbytes(16), 9, 1, 0, 0))
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(4096):
                        pass
                except OSError:
                    pass


def main():
    seed = fleet.seed()
    r = random.Random(seed)
    bodies = [fleet.body_of(seed * 50 + i, 700 if i % 2 else r.randint(1, 200), 12) for i in range(6)]
    want = fleet.expected(bodies)
    tcp = ("--transport", "tcp")
    with interposer.Interposer(data=True) as between, fleet.Fleet() as f:
        start(f, between, decode=tcp, prefill=tcp)
        assert not run_all(f, bodies, want)
        f.wait_quiet()
        checksums(f, between, bodies, want)
        cut_connections(f, between, r, bodies, want)
        control_messages(f, between, r, bodies, want)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            job = pool.submit(lambda: [run_all(f, bodies, want) for _ in range(2)])
            statuses = hostile(f, r, int(os.environ.get("BATON_TEST_HOSTILE", "150")))
            hostile_data(f, r, between)
            assert job.result() == [[], []], job.result()
        assert all(p.child.poll() is None for p in f.processes.values())
        f.wait_quiet(90)
        assert not run_all(f, bodies, want)
        print(f"hostile messages: {statuses}; other requests untouched", flush=True)


if __name__ == "__main__":
    sys.exit(main())
