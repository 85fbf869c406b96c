"""A Kubernetes API server in small: objects with versions, watches, scale subresources, rights, and a
controller of Deployments and LeaderWorkerSets that makes pods, takes those of the lowest deletion
cost, and replaces them one by one when their template is another. Everything that it is asked is kept, in order; what goes wrong is put in by the test.

The rights are the table of deploy/batonctl/kube_calls.h: whatever is not there is forbidden.
"""
import copy
import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import socket
import ssl
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALL = re.compile(r'X\((\w+), +"(\w+)", +"([^"]*)", +"([^"]*)", +"([^"]*)", +"([^"]*)", +(true|false)\)')
COST = "controller.kubernetes.io/pod-deletion-cost"
NAME, INSTANCE, COMPONENT = ("app.kubernetes.io/" + word for word in ("name", "instance", "component"))
GROUP, RANK, SIZE = ("leaderworkerset.sigs.k8s.io/" + word for word in ("group-index", "worker-index", "size"))
HASH = "pod-template-hash"
APPS, LWS = "apps", "leaderworkerset.x-k8s.io"


def hash_of(template):
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def merged(old, change):
    """RFC 7386."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    new = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


def template_of(obj):
    spec = obj["spec"]
    return spec["leaderWorkerTemplate"]["workerTemplate"] if "leaderWorkerTemplate" in spec else spec["template"]


def rights():
    """{(verb, group, resource, subresource)} that batonctl asks for."""
    found = CALL.findall((ROOT / "deploy/batonctl/kube_calls.h").read_text(encoding="utf-8"))
    assert found, "no table of calls"
    return {(verb, group, resource, sub) for _, verb, group, _, resource, sub, _ in found}


@dataclasses.dataclass
class Request:
    method: str
    path: str
    query: dict
    headers: dict
    body: object
    verb: str = ""       # of RBAC
    what: str = ""       # "pods", "deployments/scale"
    status: int = 0


@dataclasses.dataclass
class Fault:
    """What becomes of the next `times` requests whose "verb what" is `of`."""
    of: str
    kind: str            # "status", "hang", "truncate", "close", "garbage", "done-then-close", "gone", "none"
    times: int = 1
    code: int = 500
    headers: dict = dataclasses.field(default_factory=dict)
    before: object = None    # called first


class Server:
    def __init__(self, namespace="default", tls=None, tokens=None):
        self.namespace, self.tokens = namespace, tokens
        self.lock = threading.Condition(threading.RLock())
        self.version = 100
        self.objects = {"pods": {}, "deployments": {}, "leaderworkersets": {}, "horizontalpodautoscalers": {}}
        self.events = []                 # (version, resource, type, object)
        self.forgotten = 0               # versions up to here are gone
        self.requests, self.faults, self.deleted = [], [], []
        self.rights = rights()
        self.kinds = {"pods": "", "deployments": APPS, "leaderworkersets": LWS,
                      "horizontalpodautoscalers": "autoscaling"}
        self.missing = set()             # resources that this cluster has not
        self.new_pods_ready = True
        self.bad_images = set()          # whose pods never get ready
        self.born = 0
        self.log_text, self.log_open = {}, threading.Event()
        self.page = None                 # at most so many items at a time, whatever the limit
        self.stopping = False
        self.sockets = set()
        double = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                double.sockets.add(self.request)
                super().setup()

            def log_message(self, *_):
                pass

            def handle_any(self):
                double.handle(self)
            do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = handle_any

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass         # clients go away

        self.listener = Listener(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls["certificate"], tls["key"])
            if tls.get("client_ca"):
                context.load_verify_locations(tls["client_ca"])
                context.verify_mode = ssl.CERT_REQUIRED
            self.listener.socket = context.wrap_socket(self.listener.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.listener.server_address[1]}"
        self.thread = threading.Thread(target=self.listener.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.lock:
            self.stopping = True
            self.lock.notify_all()
        self.log_open.set()
        for one in list(self.sockets):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.listener.shutdown()
        self.listener.server_close()

    # ------------------------------------------------------------------ objects

    def put(self, resource, obj, kind=None):
        with self.lock:
            self.version += 1
            name = obj["metadata"]["name"]
            kind = kind or ("MODIFIED" if name in self.objects[resource] else "ADDED")
            obj["metadata"]["resourceVersion"] = str(self.version)
            if kind == "DELETED":
                self.objects[resource].pop(name, None)
            else:
                self.objects[resource][name] = obj
            self.events.append((self.version, resource, kind, copy.deepcopy(obj)))
            self.lock.notify_all()

    def workload(self, role, replicas, size=0, name=None, instance="baton"):
        """A Deployment, or with a size a LeaderWorkerSet, and its pods."""
        resource = "leaderworkersets" if size else "deployments"
        obj = {"metadata": {"name": name or f"baton-{role}", "generation": 1, "uid": f"uid-{role}",
                            "labels": {NAME: "baton", INSTANCE: instance, COMPONENT: role}},
               "spec": {"replicas": replicas, "size": size}, "status": {}}
        template = {"metadata": {"labels": {COMPONENT: role}}, "spec": {"containers": [
            {"name": "aside", "image": "aside:1"},
            {"name": role, "image": "baton:1", "args": ["--listen=tcp://0.0.0.0:5601"]}]}}
        obj["spec"].update({"leaderWorkerTemplate": {"workerTemplate": template}} if size else {"template": template})
        self.put(resource, obj)
        self.control(resource, obj["metadata"]["name"])
        return self.objects[resource][obj["metadata"]["name"]]

    def pod(self, owner, name, labels, annotations=None, ready=True, created=None):
        self.born += 1
        obj = {"metadata": {"name": name, "uid": f"uid-{name}-{self.born}", "labels": labels,
                            "annotations": annotations or {}, "ownerReferences": [{"name": owner}],
                            "creationTimestamp": created or f"2026-01-01T00:{self.born // 60:02}:{self.born % 60:02}Z"},
               "spec": {"nodeName": "node-1", "containers": [{"name": "worker"}]}, "status": {}}
        self.ready(obj, ready)
        self.put("pods", obj)
        return obj

    @staticmethod
    def ready(obj, ready, reason="ContainersNotReady", message="containers with unready status"):
        obj["status"] = {"phase": "Running" if ready else "Pending",
                         "conditions": [{"type": "Ready", "status": str(bool(ready)), "reason": reason,
                                         "message": message}]}

    def set_ready(self, name, ready=True):
        with self.lock:
            obj = copy.deepcopy(self.objects["pods"][name])
            self.ready(obj, ready)
            self.put("pods", obj)

    def pods_of(self, owner):
        return sorted(name for name, pod in self.objects["pods"].items()
                      if pod["metadata"]["ownerReferences"][0]["name"] == owner
                      and "deletionTimestamp" not in pod["metadata"])

    def remove(self, name):
        pod = copy.deepcopy(self.objects["pods"][name])
        pod["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
        self.put("pods", pod)
        self.put("pods", copy.deepcopy(pod), "DELETED")
        self.deleted.append(name)

    def control(self, resource, name):
        """What the controllers do after replicas were set."""
        with self.lock:
            owner = self.objects[resource][name]
            wanted = owner["spec"]["replicas"]
            if resource == "leaderworkersets":
                size = owner["spec"]["size"]
                for group in range(64):
                    for rank in range(size):
                        pod = f"{name}-{group}" + (f"-{rank}" if rank else "")
                        if group < wanted and pod not in self.objects["pods"]:
                            self.make(resource, owner, pod, {GROUP: str(group), RANK: str(rank)}, {SIZE: str(size)})
                        elif group >= wanted and pod in self.objects["pods"]:
                            self.remove(pod)
            else:
                there = self.pods_of(name)
                for _ in range(wanted - len(there)):
                    self.make(resource, owner, f"{name}-{self.born + 1:x}")

                def turn(pod_name):
                    pod = self.objects["pods"][pod_name]
                    ready = pod["status"]["conditions"][0]["status"] == "True"
                    created = pod["metadata"]["creationTimestamp"]
                    return (pod["status"]["phase"] == "Running", ready,
                            int(pod["metadata"]["annotations"].get(COST, 0)), [-ord(c) for c in created])
                for gone in sorted(there, key=turn)[:max(0, len(there) - wanted)]:
                    self.remove(gone)
            self.tell(resource, name)

    def tell(self, resource, name):
        """The workload's status is as its pods are."""
        obj = copy.deepcopy(self.objects[resource][name])
        pods = [self.objects["pods"][pod] for pod in self.pods_of(name)]
        mine = hash_of(template_of(obj))
        new = [p for p in pods if p["metadata"]["labels"].get(HASH, mine) == mine]
        ready = [p for p in pods if p["status"]["conditions"][0]["status"] == "True"]
        obj["status"] = {"observedGeneration": obj["metadata"]["generation"], "replicas": len(pods),
                         "updatedReplicas": len(new), "readyReplicas": len(ready)}
        self.put(resource, obj)

    def make(self, resource, owner, name, extra=None, notes=None):
        """A pod of the workload's template."""
        template = template_of(owner)
        images = {c["image"] for c in template["spec"]["containers"]}
        labels = {**owner["metadata"]["labels"], HASH: hash_of(template), **(extra or {})}
        return self.pod(owner["metadata"]["name"], name, labels,
                        {**template["metadata"].get("annotations", {}), **(notes or {})},
                        self.new_pods_ready and not images & self.bad_images)

    def replace_pods(self, resource, name, asked):
        """What the controllers do after the template was changed: with Deployments a new pod, and when it is ready
        an old one goes; with groups one goes, and comes again. Not before somebody watches."""
        with self.lock:
            mine = hash_of(template_of(self.objects[resource][name]))

            def due():
                obj = self.objects[resource].get(name)
                return not self.stopping and obj is not None and hash_of(template_of(obj)) == mine
            if any(self.objects["pods"][p]["metadata"]["labels"][HASH] == mine for p in self.pods_of(name)):
                asked = 0      # back to what is there
            self.lock.wait_for(lambda: not due() or not asked or any(r.verb == "watch" for r in self.requests[asked:]), 60)
            while due():
                there = {p: self.objects["pods"][p] for p in self.pods_of(name)}
                new = {p: o for p, o in there.items() if o["metadata"]["labels"][HASH] == mine}
                old = sorted(set(there) - set(new))
                if not old:
                    break
                owner = self.objects[resource][name]
                ill = [p for p, o in new.items() if o["status"]["conditions"][0]["status"] != "True"]
                if resource == "deployments":
                    if len(there) > owner["spec"]["replicas"] and not ill:
                        self.remove(next((p for p in old if there[p]["status"]["phase"] != "Running"), old[0]))
                    elif ill:
                        break
                    else:
                        self.make(resource, owner, f"{name}-{self.born + 1:x}")
                elif ill:
                    break
                else:
                    group = there[old[-1]]["metadata"]["labels"][GROUP]
                    whole = sorted(p for p, o in there.items() if o["metadata"]["labels"][GROUP] == group)
                    for pod in whole:
                        self.remove(pod)
                    for pod in whole:
                        labels = there[pod]["metadata"]["labels"]
                        self.make(resource, owner, pod, {GROUP: group, RANK: labels[RANK]}, {SIZE: str(len(whole))})
                self.tell(resource, name)
                self.lock.wait(0.01)    # who watches sees each step
            if due():
                self.tell(resource, name)

    # ------------------------------------------------------------------ requests

    def asked(self, *verbs):
        """Requests so far as "verb what", of these verbs alone, or all."""
        with self.lock:
            return [f"{r.verb} {r.what}" for r in self.requests if not verbs or r.verb in verbs]

    def handle(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        raw = handler.rfile.read(length) if length else b""
        path, _, query = handler.path.partition("?")
        request = Request(handler.command, path, dict(urllib.parse.parse_qsl(query)), dict(handler.headers),
                          json.loads(raw) if raw else None)
        match = re.fullmatch(r"(?:/prefix)?(?:/api/(v1)|/apis/([^/]+)/(v\d+))/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(?:/(\w+))?", path)
        if not match:
            return self.answer(handler, request, 404, self.status(404, "no such path"))
        core, group, version, namespace, resource, name, sub = match.groups()
        group = group or ""
        request.verb = {"PUT": "update", "PATCH": "patch", "POST": "create", "DELETE": "delete"}.get(
            request.method, "get" if name else "watch" if request.query.get("watch") == "true" else "list")
        request.what = resource + (f"/{sub}" if sub else "")
        with self.lock:
            self.requests.append(request)
            self.lock.notify_all()
            fault = next((f for f in self.faults if f.of == f"{request.verb} {request.what}" and f.times > 0), None)
            if fault:
                fault.times -= 1
        if fault and fault.before:
            fault.before()
        if fault and fault.kind != "done-then-close" and self.misbehave(handler, request, fault):
            return None
        if self.tokens is not None and request.headers.get("Authorization") not in {f"Bearer {t}" for t in self.tokens}:
            return self.answer(handler, request, 401, self.status(401, "Unauthorized"))
        if self.kinds.get(resource, "?") != group or resource in self.missing:
            return self.answer(handler, request, 404, self.status(404, "the server could not find the requested resource"))
        if (request.verb, group, resource, sub or "") not in self.rights:
            return self.answer(handler, request, 403, self.status(
                403, f'{request.what} is forbidden: User "test" cannot {request.verb} resource "{request.what}"'))
        if namespace != self.namespace:
            return self.answer(handler, request, 200, {"metadata": {"resourceVersion": "1"}, "items": []})
        if request.verb == "watch":
            return self.watch(handler, request, resource)
        if request.what == "pods/log":
            return self.logs(handler, request, name)
        code, answer = self.act(request, resource, name, sub)
        if fault and fault.kind == "done-then-close":    # and the client does not hear of it
            return handler.connection.shutdown(socket.SHUT_RDWR)
        return self.answer(handler, request, code, answer)

    @staticmethod
    def status(code, message):
        return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}

    def answer(self, handler, request, code, obj, headers=None):
        body = json.dumps(obj).encode()
        request.status = code
        handler.send_response(code)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body)

    def misbehave(self, handler, request, fault):
        """True: that was the answer."""
        if fault.kind == "status":
            self.answer(handler, request, fault.code, self.status(fault.code, "injected"), fault.headers)
        elif fault.kind == "hang":
            with self.lock:
                self.lock.wait_for(lambda: self.stopping, 60)
        elif fault.kind == "close":
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif fault.kind == "garbage":
            body = b"\x1b[2J\x00{]\xff not json\n" * 3
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        elif fault.kind == "truncate":
            handler.send_response(200)
            handler.send_header("Content-Length", "5000")
            handler.end_headers()
            handler.wfile.write(b'{"items": [{"metadata": {"na')
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif fault.kind == "gone":       # as a watch says it
            self.begin_stream(handler)
            self.chunk(handler, json.dumps({"type": "ERROR", "object": self.status(410, "too old resource version")}) + "\n")
            self.chunk(handler, "")
        else:
            return False
        handler.close_connection = True
        return True

    def act(self, request, resource, name, sub):
        with self.lock:
            if request.verb == "list":
                return self.listing(request, resource)
            obj = self.objects[resource].get(name)
            if obj is None:
                return 404, self.status(404, f'{resource} "{name}" not found')
            if request.verb == "patch":
                return self.patch(request, resource, obj)
            scale = {"kind": "Scale", "apiVersion": "autoscaling/v1",
                     "metadata": {k: obj["metadata"].get(k) for k in ("name", "uid", "resourceVersion")},
                     "spec": {"replicas": obj["spec"]["replicas"]} if obj["spec"]["replicas"] else {},
                     "status": {"replicas": len(self.pods_of(name))}}
            if request.verb == "get":
                return 200, scale
            if request.body["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
                return 409, self.status(409, "the object has been modified; please apply your changes to the latest version")
            new = copy.deepcopy(obj)
            new["spec"]["replicas"] = request.body["spec"]["replicas"]
            new["metadata"]["generation"] += 1
            self.put(resource, new)
            self.control(resource, name)
            scale["spec"]["replicas"] = new["spec"]["replicas"]
            return 200, scale

    def listing(self, request, resource):
        wanted = dict(part.split("=") for part in request.query.get("labelSelector", "").split(",") if part)
        field = request.query.get("fieldSelector", "")
        items = [obj for _, obj in sorted(self.objects[resource].items())
                 if all(obj["metadata"].get("labels", {}).get(k) == v for k, v in wanted.items())
                 and (not field or field == f"metadata.name={obj['metadata']['name']}")]
        start = int(request.query.get("continue") or 0)
        limit = min(int(request.query.get("limit") or 10000), self.page or 10000)
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return 200, copy.deepcopy({"metadata": metadata, "items": items[start:start + limit]})

    def patch(self, request, resource, obj):
        if request.headers.get("Content-Type") != "application/merge-patch+json":
            return 415, self.status(415, "the body of the request was in an unknown format")
        change = request.body.get("metadata", {})
        if "uid" in change and change["uid"] != obj["metadata"]["uid"]:
            return 409, self.status(409, "the uid in the precondition does not match")
        if "resourceVersion" in change and change["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            return 409, self.status(409, "the object has been modified; please apply your changes to the latest version")
        new = merged(obj, request.body)
        if resource != "pods" and template_of(new)["metadata"].get("annotations") == {}:
            del template_of(new)["metadata"]["annotations"]    # servers keep no empty ones
        if new["spec"] != obj["spec"]:
            new["metadata"]["generation"] += 1
        self.put(resource, new)
        if resource != "pods" and template_of(new) != template_of(obj):
            threading.Thread(target=self.replace_pods, args=(resource, obj["metadata"]["name"], len(self.requests)),
                             daemon=True).start()
        return 200, copy.deepcopy(new)

    # ------------------------------------------------------------------ streams

    @staticmethod
    def begin_stream(handler, kind="application/json"):
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

    @staticmethod
    def chunk(handler, text):
        data = text.encode() if isinstance(text, str) else text
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        handler.wfile.flush()

    def watch(self, handler, request, resource):
        at = int(request.query["resourceVersion"])
        end = time.monotonic() + int(request.query.get("timeoutSeconds") or 300)
        self.begin_stream(handler)
        handler.close_connection = True
        request.status = 200
        if at < self.forgotten:
            self.chunk(handler, json.dumps({"type": "ERROR", "object": self.status(410, "too old resource version")}) + "\n")
            return self.chunk(handler, "")
        self.chunk(handler, json.dumps({"type": "BOOKMARK", "object": {
            "kind": "Pod", "metadata": {"resourceVersion": str(at)}}}) + "\n")
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.stopping or any(v > at for v, *_ in self.events),
                                   max(0, end - time.monotonic()))
                new = [e for e in self.events if e[0] > at and e[1] == resource]
                at = self.version
            for _, _, kind, obj in new:
                self.chunk(handler, json.dumps({"type": kind, "object": obj}) + "\n")
            if self.stopping or time.monotonic() >= end:
                return self.chunk(handler, "")

    def logs(self, handler, request, name):
        if name not in self.objects["pods"]:
            return self.answer(handler, request, 404, self.status(404, f'pods "{name}" not found'))
        lines = self.log_text.get(name, b"").splitlines(keepends=True)
        if "tailLines" in request.query:
            lines = lines[len(lines) - min(len(lines), int(request.query["tailLines"])):]
        self.begin_stream(handler, "text/plain")
        request.status = 200
        if lines:
            self.chunk(handler, b"".join(lines))
        if request.query.get("follow") == "true":
            self.log_open.wait(60)
            if not self.stopping:
                self.chunk(handler, b"last line\n")
        return self.chunk(handler, "")
