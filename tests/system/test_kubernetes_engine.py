#!/usr/bin/env python3
"""batonctl's kubernetes engine against an API server in small: what it asks for, in which order and with
which bodies, what it does when the server is slow, broken, forbidding or changed by others, and that
what is begun is whole or taken back. At last with workers that really drain."""
import base64
import concurrent.futures
import contextlib
import copy
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

import cluster
from kubernetes_double import COST, Fault, HASH, Server, hash_of, template_of

FIRST = "-2147483648"
CHANGES = ("update", "patch", "create", "delete")
SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix="baton-kubernetes-"))
ENV = {k: v for k, v in os.environ.items()
       if not k.startswith("BATON_") and not k.startswith("KUBE") and "proxy" not in k.lower()} | {"HOME": str(SCRATCH)}


def command(server, verb, *args, flags=None, timeout="20s"):
    flags = ["--kube-server", server.url] if flags is None else flags
    quick = [] if verb == "logs" else ["--timeout", timeout]
    return [str(cluster.BATONCTL), verb, "--engine", "kubernetes", *flags, *quick, *map(str, args)]


def ctl(server, verb, *args, code=0, **how):
    done = subprocess.run(command(server, verb, *args, **how), env=ENV, capture_output=True, timeout=200)
    done.out, done.err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert done.returncode == code, (done.returncode, done.out, done.err, server.asked())
    return done


@contextlib.contextmanager
def fleet(prefill=1, decode=3, **args):
    with Server(**args) as server:
        server.workload("prefill", prefill)
        server.workload("decode", decode)
        yield server


def changes(server):
    return [(r.verb, r.what, r.body) for r in server.requests if r.verb in CHANGES]


def replicas(server, name="baton-decode", resource="deployments"):
    return server.objects[resource][name]["spec"]["replicas"]


def marks(server):
    return {n: p["metadata"]["annotations"][COST] for n, p in server.objects["pods"].items()
            if COST in p["metadata"]["annotations"]}


def test_grows():
    with fleet() as server:
        server.new_pods_ready = False

        def ready_later():
            with server.lock:
                server.lock.wait_for(lambda: len(server.pods_of("baton-decode")) == 5, 100)
            cluster.until(lambda: "watch pods" in server.asked(), 20, "a watch")
            for name in server.pods_of("baton-decode"):
                server.set_ready(name)
        thread = threading.Thread(target=ready_later)
        thread.start()
        ctl(server, "scale", "decode=5")
        thread.join()
        (verb, what, body), = changes(server)
        assert (verb, what, body["spec"]) == ("update", "deployments/scale", {"replicas": 5}), body
        assert body["kind"] == "Scale" and "status" not in body and body["metadata"]["resourceVersion"]
        asked = server.asked()
        assert asked.index("get deployments/scale") < asked.index("update deployments/scale") < asked.index("watch pods")
        paths = {r.path for r in server.requests}
        assert "/apis/apps/v1/namespaces/default/deployments/baton-decode/scale" in paths, paths
        assert not [a for a in asked if a.startswith("list leaderworkersets")], "not asked for where nothing is missing"
        lists = [r for r in server.requests if f"{r.verb} {r.what}" == "list pods"]
        assert lists[0].query["labelSelector"] == "app.kubernetes.io/name=baton,app.kubernetes.io/instance=baton"
        watch = next(r for r in server.requests if r.verb == "watch")
        assert watch.query["allowWatchBookmarks"] == "true" and watch.query["resourceVersion"]


def test_shrinks_those_it_chose():
    with fleet(decode=4) as server:
        pods = server.pods_of("baton-decode")
        server.objects["pods"][pods[0]]["metadata"]["annotations"][COST] = FIRST    # of one that was killed
        ctl(server, "scale", "decode=2")
        assert [(v, w) for v, w, _ in changes(server)] == [
            ("patch", "pods")] * 3 + [("update", "deployments/scale")], changes(server)
        patches = [(r.path.rsplit("/", 1)[1], r.body["metadata"]) for r in server.requests if r.verb == "patch"]
        assert patches[0] == (pods[0], {"uid": server.objects["pods"][pods[0]]["metadata"]["uid"],
                                        "annotations": {COST: None}}), patches
        chosen = {name for name, body in patches[1:]}
        assert all(body["annotations"] == {COST: FIRST} for _, body in patches[1:])
        assert set(server.deleted) == chosen == set(pods[2:]), (server.deleted, chosen)    # the newest of equals
        assert not marks(server)


def test_not_ready_goes_first():
    with fleet(decode=3) as server:
        ill = server.pods_of("baton-decode")[0]
        server.set_ready(ill, False)
        ctl(server, "scale", "decode=2")
        assert server.deleted == [ill], server.deleted
        server.set_ready(server.pods_of("baton-decode")[0], False)
        well = server.pods_of("baton-decode")[1]
        done = ctl(server, "switch-role", well, "prefill", code=3)
        assert "would go instead" in done.err, done.err
        assert replicas(server) == 2 and replicas(server, "baton-prefill") == 1
        assert marks(server) in ({}, {p: FIRST for p in server.deleted}), marks(server)


def test_failed_switch_is_taken_back():
    with fleet() as server:
        pods, other = server.pods_of("baton-decode"), server.pods_of("baton-prefill")
        server.faults = [Fault("patch pods", "status", times=1, code=422)]
        ctl(server, "switch-role", pods[0], "prefill", code=1)
        assert server.pods_of("baton-decode") == pods and server.pods_of("baton-prefill") == other
        assert replicas(server) == 3 and replicas(server, "baton-prefill") == 1 and not marks(server)


def test_switches_role():
    with fleet() as server:
        one = server.pods_of("baton-decode")[0]
        ctl(server, "switch-role", one, "prefill")
        assert server.deleted == [one] and replicas(server) == 2 and replicas(server, "baton-prefill") == 2
        assert [r.path.split("/")[7] for r in server.requests if r.verb == "update"] == ["baton-prefill", "baton-decode"]
        ctl(server, "switch-role", "nobody", "prefill", code=3)


def test_groups():
    with Server() as server:
        server.workload("prefill", 1)
        server.workload("decode", 3, size=2)
        ctl(server, "scale", "decode=2")
        assert server.deleted == ["baton-decode-2", "baton-decode-2-1"], server.deleted
        assert [(v, w) for v, w, _ in changes(server)] == [("update", "leaderworkersets/scale")]
        done = ctl(server, "switch-role", "baton-decode-0", "prefill", code=1)
        assert len(changes(server)) == 1 and "highest index" in done.err and replicas(server, "baton-decode", "leaderworkersets") == 2
        assert replicas(server, "baton-prefill") == 1
        server.page = 2    # a list in pages
        done = json.loads(ctl(server, "scale", "decode=3", "--output", "json").out)
        assert sorted((w["worker"], w["ranks"], w["ready"]) for w in done["workers"] if w["role"] == "decode") == [
            (f"baton-decode-{i}", 2, True) for i in range(3)], done
        assert any(r.query.get("continue") for r in server.requests)


def test_late_growth_is_taken_back():
    with fleet() as server:
        server.new_pods_ready = False
        old = server.pods_of("baton-decode")

        def told():        # unless the time was over before it had looked
            done = ctl(server, "scale", "decode=4", "prefill=0", "--wait", "2s", code=1)
            assert "not ready in time" in done.err, done.err
            return "ContainersNotReady" in done.err
        cluster.until(told, 30, "why they are not ready")
        assert server.pods_of("baton-decode") == old and replicas(server) == 3
        assert replicas(server, "baton-prefill") == 1 and not marks(server)


def test_interrupted_growth_is_taken_back():
    with fleet() as server:
        server.new_pods_ready = False
        old = server.pods_of("baton-decode")
        process = subprocess.Popen(command(server, "scale", "decode=4"), env=ENV, stderr=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL)
        cluster.until(lambda: "watch pods" in server.asked(), 30, "a watch")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1 and b"SIGINT" in err and b"back to 3" in err, (process.returncode, err)
        assert server.pods_of("baton-decode") == old and replicas(server) == 3


def test_conflicts():
    with fleet() as server:
        def touch():
            obj = server.objects["deployments"]["baton-decode"]
            server.put("deployments", {**obj, "metadata": {**obj["metadata"]}})
        server.faults = [Fault("update deployments/scale", "none", times=2, before=touch)]
        ctl(server, "scale", "decode=4")
        assert server.asked("update").count("update deployments/scale") == 3 and replicas(server) == 4

        def meddle():
            obj = server.objects["deployments"]["baton-decode"]
            server.put("deployments", {**obj, "metadata": {**obj["metadata"]}, "spec": {"replicas": 9}})
        server.faults = [Fault("update deployments/scale", "none", before=meddle)]
        done = ctl(server, "scale", "decode=5", code=1)
        assert "somebody else set baton-decode to 9" in done.err and replicas(server) == 9, done.err
        server.faults = [Fault("update deployments/scale", "done-then-close")]    # the answer is lost
        ctl(server, "scale", "prefill=2")
        assert replicas(server, "baton-prefill") == 2


def test_failed_lowering_is_taken_back():
    with fleet() as server:
        pods = server.pods_of("baton-decode")
        server.objects["pods"][pods[2]]["metadata"]["annotations"][COST] = "17"
        server.faults = [Fault("update deployments/scale", "status", times=99, code=422)]
        ctl(server, "scale", "decode=2", code=1)
        assert server.pods_of("baton-decode") == pods and marks(server) == {pods[2]: "17"}, marks(server)


def test_watch_breaks():
    for kind in ("gone", "close", "garbage", "truncate", "status"):
        with fleet() as server:
            server.new_pods_ready = False
            last = Fault("watch pods", "none", before=lambda s=server: [s.set_ready(n) for n in s.pods_of("baton-decode")])
            server.faults = [Fault("watch pods", kind, times=2, code=410), last]
            ctl(server, "scale", "decode=4")
            asked = server.asked()
            assert asked.count("watch pods") == 3, (kind, asked)
            at = asked.index("watch pods")
            # libcurl itself asks again where a connection that it kept is closed.
            assert kind == "close" or asked[at:at + 2] == ["watch pods", "list pods"], (kind, asked)


def test_server_in_trouble():
    with fleet() as server:
        server.faults = [Fault("list deployments", "status", code=429, headers={"Retry-After": "1"}),
                         Fault("list deployments", "status", code=503), Fault("list deployments", "close"),
                         Fault("list pods", "truncate")]
        ctl(server, "scale", "decode=4")
        assert replicas(server) == 4
        server.faults = [Fault("list deployments", "status", times=99, code=500)]
        assert "500" in ctl(server, "scale", "decode=5", code=3).err
        server.faults = [Fault("list deployments", "garbage")]
        done = ctl(server, "scale", "decode=5", code=1)
        assert "does not speak as kubernetes" in done.err and "\x1b" not in done.err
        server.faults = [Fault("list deployments", "hang", times=99)]
        assert "imeout" in ctl(server, "scale", "decode=5", code=3, timeout="300ms").err
        assert replicas(server) == 4
    with Server() as gone:
        pass
    ctl(gone, "scale", "decode=5", code=3)


def test_rights():
    with fleet() as server:
        server.rights -= {("list", "autoscaling", "horizontalpodautoscalers", "")}    # can be done without
        ctl(server, "scale", "decode=4")
        server.rights -= {("update", "apps", "deployments", "scale")}
        done = ctl(server, "scale", "decode=5", code=1)
        assert all(word in done.err for word in ("update", "deployments/scale", "apps", "baton-operator", "403")), done.err
        assert replicas(server) == 4


def image(server, name, resource="deployments"):
    return next(c["image"] for c in template_of(server.objects[resource][name])["spec"]["containers"] if c["name"] != "aside")


def all_new(server, name, old, resource="deployments"):
    with server.lock:
        uids = {server.objects["pods"][p]["metadata"]["uid"] for p in server.pods_of(name)}
        current = hash_of(template_of(server.objects[resource][name]))
        return not uids & old and all(server.objects["pods"][p]["metadata"]["labels"][HASH] == current
                                      for p in server.pods_of(name))


def uids(server):
    return {p["metadata"]["uid"] for p in server.objects["pods"].values()}


def test_rollout():
    with fleet(decode=2) as server:
        old = uids(server)

        def touch():    # as a status does that comes in between
            server.put("deployments", copy.deepcopy(server.objects["deployments"]["baton-decode"]))
        server.faults = [Fault("patch deployments", "none", before=touch)]
        done = ctl(server, "rollout", "--image", "baton:2")
        assert [r.path.rsplit("/", 1)[1] for r in server.requests if r.verb == "patch"] == [
            "baton-decode", "baton-decode", "baton-prefill"], changes(server)
        for role in ("decode", "prefill"):
            assert image(server, f"baton-{role}") == "baton:2" and all_new(server, f"baton-{role}", old), done.err
        body = changes(server)[1][2]
        assert body["spec"]["template"]["spec"] == {"containers": [
            {"name": "aside", "image": "aside:1"},
            {"name": "decode", "image": "baton:2", "args": ["--listen=tcp://0.0.0.0:5601"]}]}, body
        assert "baton-decode: 2 of 2 replaced" in done.err and "watch deployments" in server.asked(), done.err
        # The same again is nothing; without an image there are new pods, and nothing else is another.
        assert "has this image already" in ctl(server, "rollout", "--image", "baton:2").err and len(changes(server)) == 3
        old = uids(server)
        ctl(server, "rollout", "decode")
        (_, what, body), = changes(server)[3:]
        assert what == "deployments" and list(body["spec"]["template"]) == ["metadata"], body
        assert list(body["spec"]["template"]["metadata"]["annotations"]) == ["kubectl.kubernetes.io/restartedAt"], body
        assert all_new(server, "baton-decode", old) and image(server, "baton-decode") == "baton:2"
        for flag in ("--model", "--decode-args", "--router-args", "--dtype"):
            also = [] if flag in ("--model", "--decode-args") else ["--model", "."]
            done = ctl(server, "rollout", flag, "x", *also, code=2)
            assert "ConfigMap" in done.err or "overlay" in done.err, done.err
        ctl(server, "rollout", "--image", "two words", code=2)
        assert len(changes(server)) == 4
    with Server() as server:
        server.workload("prefill", 1)
        server.workload("decode", 2, size=2)
        old = uids(server)
        ctl(server, "rollout", "decode", "--image", "baton:2")
        assert [(v, w) for v, w, _ in changes(server)] == [("patch", "leaderworkersets")]
        assert all_new(server, "baton-decode", old, "leaderworkersets") and len(server.pods_of("baton-decode")) == 4
        assert image(server, "baton-decode", "leaderworkersets") == "baton:2" and image(server, "baton-prefill") == "baton:1"


def test_rollout_is_taken_back():
    with fleet(decode=2) as server:
        server.bad_images = {"baton:2"}
        old, before = server.pods_of("baton-decode"), copy.deepcopy(template_of(server.objects["deployments"]["baton-decode"]))
        def told():        # unless the time was over before there was a pod
            count = len(changes(server))
            done = ctl(server, "rollout", "--image", "baton:2", "--wait", "2s", code=1)
            assert "not ready in time" in done.err, done.err
            assert "baton-decode: taken back, to baton:1" in done.err, done.err
            assert template_of(server.objects["deployments"]["baton-decode"]) == before
            cluster.until(lambda: server.pods_of("baton-decode") == old, 20, "the pods of before alone")
            assert len(changes(server)) == count + 2, changes(server)
            return "ContainersNotReady" in done.err
        cluster.until(told, 30, "why they are not ready")
        assert image(server, "baton-prefill") == "baton:1"
        process = subprocess.Popen(command(server, "rollout", "decode", "--image", "baton:2"), env=ENV,
                                   stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        cluster.until(lambda: len(server.pods_of("baton-decode")) == 3, 30, "a new pod")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1 and b"SIGINT" in err and b"taken back" in err, err
        cluster.until(lambda: server.pods_of("baton-decode") == old, 20, "the pods of before alone")
        assert template_of(server.objects["deployments"]["baton-decode"]) == before


def test_rollout_forbidden():
    with fleet() as server:
        server.rights -= {("patch", "apps", "deployments", "")}
        old = uids(server)
        done = ctl(server, "rollout", "--image", "baton:2", code=1)
        assert all(word in done.err for word in ("patch", "deployments", "apps", "baton-operator", "403")), done.err
        assert "taken back" not in done.err and image(server, "baton-decode") == "baton:1" and uids(server) == old


def test_autoscaler_is_told_of():
    with fleet() as server:
        server.put("horizontalpodautoscalers", {"metadata": {"name": "auto", "labels": {}}, "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "baton-decode"}}})
        assert "HorizontalPodAutoscaler auto" in ctl(server, "scale", "decode=4").err
        assert "Autoscaler" not in ctl(server, "scale", "prefill=2").err


def test_logs():
    with fleet() as server:
        pod = server.pods_of("baton-decode")[0]
        server.log_text[pod] = b"one\ntwo\nthree\n"
        assert ctl(server, "logs", pod).out == "one\ntwo\nthree\n"
        assert ctl(server, "logs", "--tail", 1, pod).out == "three\n"
        request = server.requests[-1]
        assert request.path.endswith(f"/pods/{pod}/log") and request.query == {"container": "worker", "tailLines": "1"}
        process = subprocess.Popen(command(server, "logs", "--follow", "--tail", "0", pod), env=ENV, stdout=subprocess.PIPE)
        cluster.until(lambda: server.requests[-1].query.get("follow") == "true", 20, "the log is followed")
        server.log_open.set()
        out, _ = process.communicate(timeout=200)
        assert out == b"last line\n" and process.returncode == 0, out
        ctl(server, "logs", "nobody", code=3)
        ctl(server, "logs", "../../secrets", code=3)


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, cwd=SCRATCH)


def make_keys():
    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.crt")
    (SCRATCH / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "san", "-out", f"{name}.crt")


def test_tls_and_tokens():
    make_keys()
    tls = {"certificate": SCRATCH / "server.crt", "key": SCRATCH / "server.key", "client_ca": None}
    token = SCRATCH / "token"
    token.write_text("second\n")
    with fleet(tls=tls, tokens={"second"}, namespace="team") as server:
        flags = ["--kube-server", server.url, "--namespace", "team", "--kube-token-file", str(token), "--kube-ca-file"]
        ctl(server, "scale", "decode=4", flags=[*flags, str(SCRATCH / "ca.crt")])
        assert replicas(server) == 4
        done = ctl(server, "scale", "decode=5", flags=[*flags, str(SCRATCH / "other.crt")], code=3)
        assert "certificate" in done.err, done.err

        def rotate():    # the token that batonctl began with is over
            server.tokens = {"third"}
            token.write_text("third")
        server.faults = [Fault("update deployments/scale", "none", before=rotate)]
        ctl(server, "scale", "decode=5", flags=[*flags, str(SCRATCH / "ca.crt")])
        assert replicas(server) == 5
        server.tokens = {"fourth"}
        assert "401" in ctl(server, "scale", "decode=6", flags=[*flags, str(SCRATCH / "ca.crt")], code=1).err
    tls["client_ca"] = SCRATCH / "ca.crt"
    with fleet(tls=tls, namespace="team") as server:
        def data(name):
            return base64.b64encode((SCRATCH / name).read_bytes()).decode()
        config = SCRATCH / "kubeconfig"
        config.write_text(json.dumps({    # which is YAML, too
            "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
            "clusters": [{"name": "c", "cluster": {"server": server.url + "/prefix/", "certificate-authority-data": data("ca.crt")}}],
            "users": [{"name": "u", "user": {"client-certificate-data": data("client.crt"), "client-key": "client.key"}}]}))
        ctl(server, "scale", "decode=4", flags=["--kubeconfig", str(config)])
        assert replicas(server) == 4 and server.requests[0].path.startswith("/prefix/apis/")
        ctl(server, "scale", "decode=5", flags=["--kube-server", server.url, "--namespace", "team", "--kube-ca-file",
                                               str(SCRATCH / "ca.crt")], code=3)
        assert replicas(server) == 4


def adopt(server, c):
    """The pods are called as the workers of a real cluster."""
    for role in ("prefill", "decode"):
        workload = server.workload(role, 0)
        names = sorted(n for n in c.pids if n.startswith(role))
        for name in names:
            server.pod(workload["metadata"]["name"], name, workload["metadata"]["labels"])
        workload["spec"]["replicas"] = len(names)
        workload["status"] = {"observedGeneration": 1, "replicas": len(names), "updatedReplicas": len(names)}


def states(c):
    return {w["worker"]: w["state"] for w in c.status()["workers"]}


def test_real_workers():
    with cluster.Cluster(prefill=1, decode=3) as c, Server() as server:
        adopt(server, c)
        rpc = ["--rpc", c.rpc]
        done = subprocess.run([str(cluster.BATONCTL), "rollout", "--state-dir", c.dir, "--image", "baton:2"], env=ENV,
                              capture_output=True, timeout=200)
        assert done.returncode == 2 and b"--image is for pods" in done.stderr, done.stderr
        ctl(server, "drain", "decode-0", *rpc)
        cluster.until(lambda: states(c)["decode-0"] == "draining", 20, "decode-0 drains")
        ctl(server, "resume", "decode-0", *rpc)
        cluster.until(lambda: states(c)["decode-0"] == "ready", 20, "decode-0 serves")
        ctl(server, "drain", "nobody", *rpc, code=3)
        assert "--rpc" in ctl(server, "drain", "decode-0", code=2).err

        ctl(server, "drain", "decode-1", *rpc)    # who drains goes first
        cluster.until(lambda: states(c)["decode-1"] == "draining", 20, "decode-1 drains")
        done = ctl(server, "scale", "decode=2", *rpc)
        assert server.deleted == ["decode-1"] and "decode-1 is drained" in done.err, done.err
        cluster.until(lambda: states(c)["decode-0"] == states(c)["decode-2"] == "ready", 20, "the others serve")

        server.new_pods_ready = True    # a pod that is ready, and that no router ever hears of

        def unknown():     # unless the time was over before the router was asked
            done = ctl(server, "scale", "decode=3", "--wait", "1s", *rpc, code=1)
            assert server.pods_of("baton-decode") == ["decode-0", "decode-2"], done.err
            return "the router does not know it" in done.err
        cluster.until(unknown, 30, "a pod that the router does not know")

        server.faults = [Fault("get deployments/scale", "status", times=99, code=422)]    # after the drain
        done = ctl(server, "scale", "decode=1", *rpc, code=1)
        assert "decode-2 stays, and serves again" in done.err, done.err
        cluster.until(lambda: states(c)["decode-2"] == "ready", 20, "decode-2 serves")
        assert server.pods_of("baton-decode") == ["decode-0", "decode-2"] and not marks(server)
        server.faults = []

        # Its drain waits: it stands still from its choice on, for less than it takes to be lost.
        server.faults = [Fault("patch pods", "none", before=lambda: c.kill("decode-2", signal.SIGSTOP))]
        try:
            process = subprocess.Popen(command(server, "scale", "decode=1", *rpc), env=ENV, stderr=subprocess.PIPE)
            for line in process.stderr:
                if b"decode-2 goes: draining" in line:
                    break
            process.send_signal(signal.SIGINT)
        finally:
            c.kill("decode-2", signal.SIGCONT)
        err = process.stderr.read().decode()
        assert process.wait(200) == 1 and "SIGINT" in err and "decode-2 stays" in err, err
        cluster.until(lambda: states(c)["decode-2"] == "ready", 30, "decode-2 serves")
        assert server.pods_of("baton-decode") == ["decode-0", "decode-2"] and not marks(server)


def main():
    chosen = sys.argv[1:] or [name for name in globals() if name.startswith("test_")]
    try:
        # Most of the time is waiting: several at once, each with a server of its own.
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for name, done in [(name, pool.submit(globals()[name])) for name in reversed(chosen)]:
                done.result()
                print(f"{name}: ok", flush=True)
    finally:
        subprocess.run(["rm", "-rf", str(SCRATCH)], check=False)


if __name__ == "__main__":
    main()
