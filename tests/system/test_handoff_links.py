"""Which way the pages go is known, said, and may be forbidden; links are warm, and heal."""
import os
import subprocess
import sys

import baton_client
import cluster
import fleet
import interposer

# Who is not scheduled for some seconds is not lost: a link that is made again would be counted.
ROUTER = ("--heartbeat", 400, "--max-attempts", 3, "--request-timeout", "120s")
PREFILL = ("--chunked-prefill-size", 256, "--kv-pages", 64)


def worker_rows(f):
    out = subprocess.run([str(cluster.BATONCTL), "get", "--rpc", f.rpc, "workers"],
                         capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    return {line.split()[0]: line.split()[-1] for line in out.stdout.splitlines()[1:]}


def connections(p):
    return p.metric("baton_transfer_connections_total")


def said(transport, prefill, decode, device):
    """Rule 10. What is offered, what is used, in the registry, in batonctl, in metrics."""
    with fleet.Fleet() as f:
        f.router(*ROUTER)
        d = f.add("decode", "decode-0", "--kv-pages", 64, *decode).start()
        f.wait_ready_all()
        p = f.add("prefill", "prefill-0", *PREFILL, *prefill).start()
        f.wait_ready_all()
        offers = worker_rows(f)
        assert offers["prefill-0"].split(",") == offered(prefill), offers
        assert offers["decode-0"].split(",") == offered(decode), offers
        # Warm: before the first request the link is there, and the request makes no other.
        where = (f'transport="{transport}"', f'device="{device}"')
        assert connections(p) == 1 and p.metric("baton_transfer_links", *where) == 1, p.metrics()
        assert p.metric("baton_transfer_bytes_total") == 0
        body = fleet.body_of(3, 100, 4)
        answer, error = fleet.ask(f.http, body)
        assert not error and answer == fleet.expected([body])[0], (error, answer)
        f.wait_quiet()
        assert connections(p) == 1, p.metrics()
        pushed = p.metric("baton_kv_pushed_bytes_total")
        assert p.metric("baton_transfer_bytes_total", *where) == pushed > 0, p.metrics()
        assert p.metric("baton_transfer_writes_total", *where) == p.metric("baton_kv_writes_total")
        assert p.metric("baton_transfer_fallbacks_total") == 0
        # The last token of an answer may overtake what prefill says of the way there.
        def shown():
            if worker_rows(f) == {"prefill-0": transport, "decode-0": transport}:
                return True
            answer, error = fleet.ask(f.http, body)
            assert answer, error
            return False
        cluster.until(shown, 30, "the rows say what was used")
        # One that joins later is connected to before it gets a request.
        later = f.add("decode", "decode-1", "--kv-pages", 64, *decode).start()
        f.wait_ready_all()
        cluster.until(lambda: p.metric("baton_transfer_links") == 2, 20, "a link to the second rank")
        d.send(15)
        d.child.wait()
        answer, error = fleet.ask(f.http, body)
        assert not error and connections(p) == 2, (error, p.metrics())
        assert later.metric("baton_handoffs_total", 'verdict="ok"') == 1
        # The first one comes back under its name and address: a link of its own, again before use.
        d.start(["--listen", d.rpc])
        f.wait_ready_all()
        cluster.until(lambda: connections(p) == 3, 20, "a link to the one that came back")
        later.send(15)
        later.child.wait()
        answer, error = fleet.ask(f.http, body)
        assert not error and connections(p) == 3, (error, p.metrics())
        f.wait_quiet()
    print(f"{transport}: offered, used and counted as it is; warm before the first request",
          flush=True)


def offered(args):
    """auto: shm and tcp everywhere here, with rdma where there is a port."""
    if "--transport" in args:
        return [args[args.index("--transport") + 1]]
    ports = os.listdir("/sys/class/infiniband") if os.path.isdir("/sys/class/infiniband") else []
    return ["shm", "rdma", "tcp"] if ports else ["shm", "tcp"]


def nothing_in_common():
    """Rule 10. Two ends that can not be connected say so."""
    with fleet.Fleet() as f:
        f.router(*ROUTER)
        f.add("decode", "decode-0", "--kv-pages", 64, "--transport", "shm").start()
        p = f.add("prefill", "prefill-0", *PREFILL, "--transport", "tcp", "--forbid-fallback").start()
        f.wait_ready_all()
        _, error = fleet.ask(f.http, fleet.body_of(3, 100, 4))
        assert error and "tcp here, shm there" in error, error
        assert p.metric("baton_transfer_links") == 0
        f.wait_quiet()
    print("no transport in common: an error that names both", flush=True)


def fallback():
    """Rule 10. The best does not reach the peer, since it is in a namespace of its own for shared
    memory."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--ipc", "true"], check=False).returncode != 0:
        print("skipped: no IPC namespaces here, so shared memory can't be made to fail", flush=True)
        return
    body = fleet.body_of(3, 100, 4)
    for forbidden in (False, True):
        with fleet.Fleet() as f:
            f.router(*ROUTER)
            f.add("decode", "decode-0", "--kv-pages", 64, prefix=["unshare", "--ipc"]).start()
            p = f.add("prefill", "prefill-0", *PREFILL,
                      *(["--forbid-fallback"] if forbidden else [])).start()
            f.wait_ready_all()
            answer, error = fleet.ask(f.http, body)
            if forbidden:
                # The router may hear of it from the decode worker first, who knows no reason.
                assert error and ("tcp is forbidden" in error or "gave it up" in error), (answer, error)
                assert "shm" in p.text() and "falling back to tcp is forbidden" in p.text()
                assert p.metric("baton_transfer_links") == 0, p.metrics()
            else:
                assert not error and answer == fleet.expected([body])[0], (error, answer)
                assert p.metric("baton_transfer_fallbacks_total") >= 1, p.metrics()
                assert p.metric("baton_transfer_links", 'transport="tcp"') == 1, p.metrics()
                assert "warn" in p.text() and "falling back to tcp" in p.text()
                cluster.until(lambda: worker_rows(f)["prefill-0"] == "tcp", 30, "the row says tcp")
            f.wait_quiet()
    print("a fallback is said and counted; forbidden, it is an error that names both", flush=True)


def refuses_fingerprints():
    """Pages of another form are nobody's: both the registry and the prefill worker name the field."""
    pb = baton_client.pb
    worker, registry, types = pb["worker"], pb["registry"], pb["types"]
    sampling = types.SamplingParams(max_tokens=5, top_p=1, repetition_penalty=1, logprobs=-1, seed=1)
    others = {"layout_version": 99, "model_hash": 1, "kv_dtype": "f8_e4m3", "page_tokens": 32,
              "layer_count": 7, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "arithmetic": "bfloat16"}

    def refusal(client, method, request):
        try:
            list(client.messages(client.start(method, request), Raw, 120))
        except baton_client.RpcError as error:
            return error
        raise AssertionError(f"{method} was taken: {request}")

    with fleet.Fleet() as f:
        f.router(*ROUTER)
        d = f.add("decode", "decode-0", "--kv-pages", 64).start()
        p = f.add("prefill", "prefill-0", *PREFILL).start()
        f.wait_ready_all()
        with baton_client.Client(d.rpc) as to_decode, baton_client.Client(p.rpc) as to_prefill, \
                baton_client.Client(f.rpc) as to_router:
            steps = to_decode.start("baton.v1.Decode/Steps", worker.StepsRequest(router_incarnation=7))
            landing = to_decode.call("baton.v1.Decode/Reserve", worker.ReserveRequest(
                request_id=7, prompt_tokens=100, sampling=sampling, router_incarnation=7),
                worker.ReserveResponse).landing
            for field, value in others.items():
                run = worker.PrefillRequest(request_id=7, prompt=[5] * 100, sampling=sampling,
                                            landing=landing)
                setattr(run.landing.endpoint.fingerprint, field, value)
                error = refusal(to_prefill, "baton.v1.Prefill/Run", run)
                assert error.status == "mismatch" and field in error.message, (field, error)
                kv = run.landing.endpoint
                kv.worker_id, kv.incarnation = "foreign", 9
                error = refusal(to_router, "baton.v1.Registry/Register", registry.RegisterRequest(
                    worker_id="foreign", incarnation=9, role=registry.ROLE_DECODE, max_model_len=100,
                    control_endpoint="tcp://127.0.0.1:1", fingerprint=kv.fingerprint, kv=kv,
                    process=kv.process, load=types.RankLoad(pages_total=1, pages_free=1),
                    transport="tcp"))
                assert error.status == "mismatch" and field in error.message, (field, error)
            to_decode.cancel(steps)
        assert p.metric("baton_transfer_bytes_total") == 0
        f.wait_quiet()
    print(f"fingerprints that differ in any of {len(others)} fields are refused by name", flush=True)


class Raw:
    """Takes any answer."""
    @staticmethod
    def FromString(payload):
        return payload


def heals():
    """A connection that breaks under two idle workers is up again before anybody needs it."""
    tcp = ("--transport", "tcp")
    with interposer.Interposer(data=True) as between, fleet.Fleet() as f:
        f.router(*ROUTER)
        f.registry = between.start(f.rpc)
        f.add("decode", "decode-0", "--kv-pages", 64, *tcp).start()
        p = f.add("prefill", "prefill-0", *PREFILL, *tcp).start()
        f.wait_ready_all()
        cluster.until(lambda: p.metric("baton_transfer_links") == 1, 20, "the first link")
        wire, = between.wires.values()
        wire.cut()
        cluster.until(lambda: connections(p) == 2 and p.metric("baton_transfer_links") == 1, 20,
                      "a second link without a request")
        body = fleet.body_of(3, 100, 4)
        answer, error = fleet.ask(f.http, body)
        assert not error and answer == fleet.expected([body])[0], (error, answer)
        assert connections(p) == 2
        f.wait_quiet()
    print("a link that broke healed without a request", flush=True)


def main():
    said("shm", (), (), "")
    said("tcp", ("--transport", "tcp"), (), "lo")
    refuses_fingerprints()
    nothing_in_common()
    fallback()
    heals()


if __name__ == "__main__":
    sys.exit(main())
