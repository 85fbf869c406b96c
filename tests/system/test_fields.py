#!/usr/bin/env python3
"""Every field of a message that another process could fill with anything: a refusal that names the
field, or no harm. The rows are what proto/*.proto says that a field may be, just missed."""
import sys

import baton_client
import cluster
import openai_http

pb = baton_client.pb
registry, types, worker = pb["registry"], pb["types"], pb["worker"]
NAN, INF = float("nan"), float("inf")
BODY = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 20}


def sampling(**fields):
    made = types.SamplingParams(max_tokens=5, top_p=1, repetition_penalty=1, logprobs=-1)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


# What of SamplingParams can't be, wherever they come; and a word of the refusal.
SAMPLING = [({"temperature": v}, "temperature") for v in (-1, NAN, INF)] + [
    ({"top_p": v}, "top_p") for v in (0, -0.5, 1.5, NAN)] + [
    ({"min_p": v}, "min_p") for v in (-0.5, 1.5, NAN)] + [
    ({"repetition_penalty": v}, "repetition_penalty") for v in (0, -1, NAN, INF)] + [
    ({"presence_penalty": NAN}, "presence_penalty"), ({"frequency_penalty": INF}, "frequency_penalty"),
    ({"top_k": -2}, "top_k"), ({"logprobs": -2}, "logprobs"), ({"logprobs": 21}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"logit_bias_token": [5], "logit_bias_value": []}, "logit_bias"),
    ({"logit_bias_token": [5000], "logit_bias_value": [1.0]}, "logit_bias"),
    ({"logit_bias_token": [5], "logit_bias_value": [NAN]}, "logit_bias")]


def reserves():
    """(what is wrong of a reservation, a word of the refusal)"""
    good = dict(request_id=9, prompt_tokens=5, router_incarnation=77)
    for wrong, word in [(dict(request_id=0), "request_id"), (dict(router_incarnation=0), "router_incarnation"),
                        (dict(prompt_tokens=0), "prompt_tokens"), (dict(prompt_tokens=2 ** 31), "prompt_tokens"),
                        (dict(prompt=[1, 2]), "prompt"), (dict(prompt=[1, 2, 3, 4, 2048]), "prompt[4]"),
                        (dict(replay=[7] * 6), "replay"), (dict(replay=[2 ** 32 - 1]), "replay[0]"),
                        (dict(replay=[1]), "replay[0]"), (dict(resume_key=b"short"), "resume_key"),
                        (dict(resume_key=b"x" * 33), "resume_key"), (dict(local_prefill=True), "prompt")]:
        yield worker.ReserveRequest(sampling=sampling(), **{**good, **wrong}), word
    yield worker.ReserveRequest(**good), "sampling"
    yield worker.ReserveRequest(sampling=sampling(logprobs=0), resume_key=b"x" * 32, **good), "resume_key"
    yield worker.ReserveRequest(sampling=sampling(repetition_penalty=2), **good), "prompt"
    for wrong, word in SAMPLING:
        yield worker.ReserveRequest(sampling=sampling(**wrong), **good), word


def of_decode():
    """(method, request, response, a word)"""
    for request, word in reserves():
        yield "Reserve", request, worker.ReserveResponse, word
    adopt = dict(request_id=9, epoch=3, resume_key=b"k" * 32, router_incarnation=77)
    for wrong in [dict(request_id=0), dict(epoch=0), dict(resume_key=b""), dict(resume_key=b"k" * 31),
                  dict(router_incarnation=0)]:
        yield "Adopt", worker.AdoptRequest(**{**adopt, **wrong}), worker.AdoptResponse, list(wrong)[0]
    me = types.ProcessId(host="x", pid=1, start_ticks=1)
    for wrong, word in [(dict(incarnation=0), "incarnation"), (dict(process=types.ProcessId()), "process"),
                        (dict(process=types.ProcessId(host="h" * 500, pid=1)), "process"),
                        (dict(process=types.ProcessId(host="h", pid=-1)), "process"),
                        (dict(lease=[worker.LeaseKey()] * 4097), "lease")]:
        yield "Lease", worker.LeaseRequest(**{**dict(worker_id="x", incarnation=1, process=me), **wrong}), \
            worker.LeaseResponse, word
    for cuts in ([worker.LinkCut(link=0, lines=1)], [worker.LinkCut(link=i + 1, lines=1) for i in range(65)]):
        yield "HandoffDone", worker.HandoffDoneRequest(request_id=9, epoch=1, cuts=cuts), \
            worker.HandoffDoneResponse, "cuts"
        yield "Quiesced", worker.QuiescedRequest(request_id=9, epoch=1, incarnation=5, cuts=cuts), \
            worker.QuiescedResponse, "cuts"
    yield "Quiesced", worker.QuiescedRequest(request_id=9, epoch=1), worker.QuiescedResponse, "incarnation"
    yield "Steps", worker.StepsRequest(), worker.StepEvent, "router_incarnation"


def runs(endpoint):
    """Prefill/Run: a landing that is good but for one field."""
    def landing(**fields):
        made = types.Landing(request_id=9, epoch=3, lease_ms=1000,
                             runs=fields.pop("runs", [types.PageRun(first=0, count=1)]))
        made.endpoint.CopyFrom(fields.pop("endpoint", endpoint))
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def of(**fields):
        made = types.KvEndpoint()
        made.CopyFrom(endpoint)
        for name, value in fields.items():
            setattr(made, name, value)
        return made
    good = dict(request_id=9, prompt=[5] * 60, sampling=sampling(), landing=landing())
    pages = endpoint.pool_pages
    alien = of()
    alien.fingerprint.kv_lora_rank += 1
    for wrong, word in [
            (dict(request_id=0), "request_id"), (dict(request_id=8), "request_id"), (dict(prompt=[]), "prompt"),
            (dict(prompt=[2048]), "prompt"), (dict(prompt=[5] * 20000), "prompt"),
            (dict(landing=landing(epoch=0)), "epoch"), (dict(landing=landing(runs=[])), "runs"),
            (dict(landing=landing(runs=[types.PageRun(first=pages, count=1)])), "runs"),
            (dict(landing=landing(runs=[types.PageRun(first=0, count=2 ** 32 - 1)])), "runs"),
            (dict(landing=landing(runs=[types.PageRun(first=2 ** 32 - 1, count=2)])), "runs"),
            (dict(landing=landing(runs=[types.PageRun(first=0, count=0)])), "runs"),
            (dict(landing=landing(runs=[types.PageRun(first=0, count=1)] * 2)), "runs"),
            (dict(landing=landing(endpoint=alien)), "kv_lora_rank"),
            (dict(landing=landing(endpoint=of(pool_pages=0))), ""),
            (dict(landing=landing(endpoint=of(control_endpoint="nowhere://x"), epoch=4)), ""),
            (dict(landing=landing(endpoint=of(incarnation=0))), "incarnation")]:
        yield worker.PrefillRequest(**{**good, **wrong}), word
    for wrong, word in SAMPLING:
        yield worker.PrefillRequest(**{**good, "sampling": sampling(**wrong)}), word


def refused(client, method, request, response, word, faults, kind=("invalid_argument", "mismatch")):
    try:
        for _ in client.messages(client.start(method, request, 60000), response, 60):
            pass
    except baton_client.RpcError as error:
        if error.status not in kind or word not in error.message:
            faults.append(f"{method} {str(request)[:300]}: {error}, and not '{word}'")
    except TimeoutError:
        faults.append(f"{method} {str(request)[:300]}: no answer")
    else:
        faults.append(f"{method} was taken: {str(request)[:300]}")


def summaries(client, me, faults):
    """A prefill worker that tells of prefixes and orphans what can't be: heartbeats are answered, and
    nothing of it is known afterwards."""
    def heartbeat(**fields):
        request = registry.HeartbeatRequest(worker_id=me.worker_id, incarnation=me.incarnation,
                                            load=types.RankLoad(pages_total=10, pages_free=10), **fields)
        return client.call("baton.v1.Registry/Heartbeat", request, registry.HeartbeatResponse)
    summary = registry.PrefixSummary
    for wrong in [summary(version=5, page=[1]), summary(version=5, page=[1, 2], parent=[0], block=[7, 8]),
                  summary(version=5, page=[2 ** 32 - 1], parent=[2 ** 32 - 1], block=[7]),
                  summary(version=0, page=[1], parent=[2 ** 32 - 1], block=[7]),
                  summary(version=5, page=range(2049), parent=[2 ** 32 - 1] * 2049, block=range(1, 2050))]:
        if heartbeat(prefix=wrong).prefix_version == 5:
            faults.append(f"a summary was taken: {str(wrong)[:200]}")
    orphans = [registry.Orphan(request_id=i, epoch=i, resume_key=b"k" * (i % 40), tokens=2 ** 32 - 1)
               for i in range(5000)]
    heartbeat(orphans=orphans)
    heartbeat(orphans=[registry.Orphan()] * 3)
    if heartbeat(prefix=summary(version=6, page=[1], parent=[2 ** 32 - 1], block=[7])).prefix_version != 6:
        faults.append("a good summary was not taken")


def pretender(client, live):
    """Registers a prefill worker that nobody is."""
    request = registry.RegisterRequest(
        worker_id="pretender", incarnation=5, role=registry.ROLE_PREFILL, max_model_len=100,
        control_endpoint="tcp://127.0.0.1:1", fingerprint=live.fingerprint,
        process=types.ProcessId(host="x", pid=1, start_ticks=1),
        load=types.RankLoad(pages_total=10, pages_free=11, running=2 ** 32 - 1, waiting_tokens=2 ** 64 - 1,
                            kv_tokens=2 ** 64 - 1, pages_expected=2 ** 32 - 1, pages_reserved=2 ** 32 - 1),
        transport="shm\n\x1b[31m" + "x" * 500)
    told = client.call("baton.v1.Registry/Register", request, registry.RegisterResponse)
    return request, told.decode[0]


def main():
    faults = []
    with cluster.Cluster() as c:
        want = openai_http.post(c.http, "/v1/completions", BODY)["choices"]
        with baton_client.Client(c.rpc) as client:
            workers = {w.worker_id: w for w in client.status().workers}
        at = {name: w.control_endpoint for name, w in workers.items()}
        with baton_client.Client(at["decode-0"]) as client:
            live = client.call("baton.v1.Worker/Preflight", worker.PreflightRequest(brief=True),
                               worker.PreflightResponse)
            for method, request, response, word in of_decode():
                refused(client, "baton.v1.Decode/" + method, request, response, word, faults,
                        ("invalid_argument", "stale") if method == "Quiesced" else ("invalid_argument",))
        with baton_client.Client(c.rpc) as client:
            me, endpoint = pretender(client, live)
            summaries(client, me, faults)
            row = [w for w in client.status().workers if w.worker_id == "pretender"][0]
            if not row.transport.isprintable() or len(row.transport) > 40:
                faults.append(f"transport {row.transport!r} is shown")
            for bad in ("", " ", "x" * 129, "a b", "a\n"):
                if bad:
                    refused(client, "baton.v1.Router/Generate", pb["generate"].GenerateRequest(
                        prompt="x", request_id=bad), pb["router"].GenerateEvent, "request_id", faults)
        with baton_client.Client(at["prefill-0"]) as client:
            for request, word in runs(endpoint):
                refused(client, "baton.v1.Prefill/Run", request, worker.PrefillEvent, word, faults,
                        ("invalid_argument", "mismatch", "unavailable", "peer_lost", "stale", "protocol"))
        page = openai_http.request(c.http, "GET", "/status")[2]
        assert "\x1b" not in str(page)
        assert openai_http.post(c.http, "/v1/completions", BODY)["choices"] == want
        assert not faults, "\n".join(faults)
        assert all(c.alive(name) for name in c.pids)
        print(f"{len(list(of_decode()))} of decode, {len(list(runs(endpoint)))} of prefill", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
