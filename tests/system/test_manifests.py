#!/usr/bin/env python3
"""deploy/kubernetes: every overlay is built, each manifest is what Kubernetes admits, all that they
name is there, and the command lines run as they stand: a cluster of the demo's, with the secrets of
make-secrets, found by name, probed and drained by its own commands. Each check is proven by copies
with one thing broken."""
import copy
import json
import os
import pathlib
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

import cluster

VENV = cluster.BUILD / "venv-manifests"
PACKAGES = ["kubernetes-validate==1.37.0", "promql-parser==0.12.0"]
VERSION = "1.37"
HERE = cluster.ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu-demo", "nvidia-rdma", "multi-node-ep")


def install():
    """Once a build directory; then this goes on with its Python."""
    marker = VENV / "installed"
    if not marker.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
        if made.returncode != 0:
            cluster.skip(f"no virtual environment: {made.stderr or made.stdout}")
        got = subprocess.run([str(VENV / "bin/python"), "-m", "pip", "install", "--quiet",
                              "--only-binary=:all:", "--disable-pip-version-check", *PACKAGES],
                             capture_output=True, text=True)
        if got.returncode != 0:
            cluster.skip(f"PyPI gives no {PACKAGES}: {got.stderr.strip().splitlines()[-1:]}")
        marker.write_text("")
    if pathlib.Path(sys.prefix) != VENV:
        os.execv(str(VENV / "bin/python"), [str(VENV / "bin/python"), *sys.argv])


install()
import jsonschema                 # noqa: E402
import kubernetes_validate        # noqa: E402
import promql_parser              # noqa: E402
import yaml                       # noqa: E402

import crd_schemas                # noqa: E402
import kustomize                  # noqa: E402
import manifest_checks as checks  # noqa: E402
import manifest_pods as mp        # noqa: E402

PATHS = {"baton-router": cluster.BUILD / "router/baton-router",
         "baton-prefill": cluster.BUILD / "prefill-node/baton-prefill",
         "baton-decode": cluster.BUILD / "decode-node/baton-decode", "batonctl": cluster.BATONCTL}


# ---- schemas

def check_schemas(docs):
    problems = []
    for doc in docs:
        where = f"{doc['kind']}/{doc['metadata'].get('name')}"
        custom = crd_schemas.SCHEMAS.get((doc["apiVersion"], doc["kind"]))
        try:
            if custom is not None:
                jsonschema.validate(doc, custom)
            else:
                kubernetes_validate.validate(doc, VERSION, strict=True)
            for part in ("leaderTemplate", "workerTemplate"):
                template = doc.get("spec", {}).get("leaderWorkerTemplate", {}).get(part)
                if template is not None:
                    kubernetes_validate.validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata":
                                                  {"name": "x"}, "template": template}, VERSION, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            problems.append(f"{where}: schema: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            problems.append(f"{where}: schema: there is none for {doc['apiVersion']}")
    return problems


# ---- what else there is to know

def make_secrets(directory):
    """{name: {key: bytes}}, as kubectl would get them."""
    done = subprocess.run([str(HERE / "make-secrets"), str(directory)], capture_output=True, text=True,
                          env={**os.environ, "BATONCTL": str(cluster.BATONCTL)})
    assert done.returncode == 0, done.stderr
    again = subprocess.run([str(HERE / "make-secrets"), str(directory)], capture_output=True, text=True,
                           env={**os.environ, "BATONCTL": "/nonexistent"})
    assert again.stdout == done.stdout, "keys that are there are used as they are"
    import base64
    docs = list(yaml.safe_load_all(done.stdout))
    assert check_schemas(docs) == []
    return {doc["metadata"]["name"]: {key: base64.b64decode(value) for key, value in doc["data"].items()}
            for doc in docs}


def engine_calls():
    """{(verb, group, resource)} of deploy/batonctl/kube_calls.h"""
    text = (cluster.ROOT / "deploy/batonctl/kube_calls.h").read_text()
    rows = re.findall(r'X\(\w+,\s*"(\w+)",\s*"([^"]*)",\s*"[^"]*",\s*"(\w+)",\s*"(\w*)",\s*\w+\)', text)
    assert len(rows) == len(re.findall(r"^    X\(", text, re.M)) > 0
    return {(verb, group, resource + ("/" + sub if sub else "")) for verb, group, resource, sub in rows}


def image_env():
    """ENV of the image that all pods run."""
    text = (cluster.ROOT / "deploy/container/Containerfile").read_text()
    return dict(re.findall(r"^ENV (BATON_\w+)=(\S+)$", text, re.M))


class World:
    def __init__(self, directory):
        self.secrets = make_secrets(directory)
        self.keys = {name: set(data) for name, data in self.secrets.items()}
        self.programs = checks.Programs(PATHS)
        self.calls = engine_calls()
        self.env = image_env()
        self.metrics = None

    def problems(self, docs, gpus, schemas=True):
        """Looking at schemas takes nearly all of the time."""
        return ((check_schemas(docs) if schemas else []) + checks.check_references(docs, self.keys) + checks.check_labels(docs) +
                checks.check_services(docs) + checks.check_commands(docs, self.programs) +
                checks.check_ports(docs) + checks.check_files(docs, self.env) + checks.check_probes(docs) +
                checks.check_end(docs) + checks.check_disruption(docs) + checks.check_security(docs) +
                checks.check_resources(docs, gpus) + checks.check_rights(docs, self.calls) +
                checks.check_network(docs) + checks.check_operator(docs) + checks.check_placeholders(docs) +
                (check_queries(docs, self.metrics) if self.metrics else []))


# ---- a real kustomize, where there is one

def compare_with_kustomize(name, docs):
    if not shutil.which("kubectl"):
        print("no kubectl here: nothing to compare the built overlays with")
        return
    done = subprocess.run(["kubectl", "kustomize", str(HERE / "overlays" / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {kustomize.identity(doc): doc for doc in yaml.safe_load_all(done.stdout)}
    ours = {kustomize.identity(doc): doc for doc in docs}
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    for identity, doc in ours.items():
        assert doc == theirs[identity], f"{name}: {identity} is not what kustomize makes of it"


# ---- metrics

# What Prometheus adds by itself to what it scrapes.
TARGET_LABELS = {"namespace", "pod", "job", "endpoint", "instance", "service", "container"}


class Metrics:
    """{name: [labels]} of everything that a scrape had."""

    def __init__(self, *texts):
        self.series = {}
        for line in (line for text in texts for line in text.splitlines()):
            if line and not line.startswith("#"):
                name, labels = re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ", line).groups()
                self.series.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels or "")))


def selectors(node):
    """All vector selectors of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for field in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, field, None)
        if child is not None and not isinstance(child, str):
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


def check_query(where, query, metrics):
    problems = []
    try:
        tree = promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$namespace", ".*"))
    except ValueError as error:
        return [f"{where}: {error}: {query}"]
    found = list(selectors(tree))
    if not found:
        problems.append(f"{where}: asks for no metric")
    for selector in found:
        series = metrics.series.get(selector.name)
        if selector.name == "up":
            continue
        if series is None:
            problems.append(f"{where}: there is no metric {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            values = {labels.get(matcher.name) for labels in series}
            if matcher.name in TARGET_LABELS:
                continue
            if matcher.value and values == {None}:
                problems.append(f"{where}: {selector.name} has no label {matcher.name}")
            elif matcher.value and not any(v is not None and re.fullmatch(matcher.value, v) for v in values):
                problems.append(f"{where}: {selector.name} is never {matcher.name}={matcher.value}")
    for grouped in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query):
        for label in (l.strip() for l in grouped.split(",")):
            have = {key for s in found for labels in metrics.series.get(s.name, []) for key in labels}
            if label not in have | TARGET_LABELS:
                problems.append(f"{where}: none of its metrics has label {label}")
    return problems


def queries(docs):
    for doc in mp.of_kind(docs, "PrometheusRule"):
        for group in doc["spec"]["groups"]:
            for rule in group["rules"]:
                yield f"alert {rule['alert']}", rule["expr"]
    for doc in mp.of_kind(docs, "ConfigMap"):
        if doc["metadata"].get("labels", {}).get("grafana_dashboard"):
            for text in doc["data"].values():
                for panel in json.loads(text)["panels"]:
                    for target in panel["targets"]:
                        yield f"panel {panel['title']}", target["expr"]


def check_queries(docs, metrics):
    return [problem for where, query in queries(docs) for problem in check_query(where, query, metrics)]


# ---- broken copies

def the(docs, kind, name):
    return next(doc for doc in docs if kustomize.identity(doc) == (kind, name))


def pod_of(docs, role):
    return next(pod for pod in mp.pods(docs) if pod.component == role)


def rule_of(docs, name):
    return the(docs, "NetworkPolicy", name)["spec"]


def arg(docs, role, old, new):
    args = pod_of(docs, role).container["args"]
    at = next(i for i, word in enumerate(args) if old in word)
    args[at] = args[at].replace(old, new)


def env(docs, role, name):
    return next(e for e in pod_of(docs, role).container["env"] if e["name"] == name)


def probe(docs, role, what):
    return pod_of(docs, role).container[what]


def drop(mapping, key):
    del mapping[key]


# (what is done to a copy, what is said of it)
BROKEN = [
    (lambda d: pod_of(d, "decode").container.update(imagePullPolice="Always"), "schema"),
    (lambda d: the(d, "Service", "baton-router")["spec"]["ports"][0].update(port="https"), "schema"),
    (lambda d: the(d, "PodDisruptionBudget", "baton-router").update(apiVersion="policy/v1beta1"), "schema"),
    (lambda d: env(d, "decode", "BATON_KV_PAGES")["valueFrom"]["configMapKeyRef"].update(key="pages"), "no key pages"),
    (lambda d: env(d, "decode", "BATON_MODEL")["valueFrom"]["configMapKeyRef"].update(name="baton"), "no ConfigMap baton"),
    (lambda d: drop(the(d, "ConfigMap", "baton-config")["data"], "prefill-threads"), "no key prefill-threads"),
    (lambda d: env(d, "decode", "ROUTER_PUBLIC_KEY")["valueFrom"]["secretKeyRef"].update(key="router"), "no key router"),
    (lambda d: pod_of(d, "router").spec["volumes"][1]["secret"].update(secretName="tls"), "no Secret tls"),
    (lambda d: pod_of(d, "router").spec.update(serviceAccountName="router"), "no ServiceAccount router"),
    (lambda d: the(d, "RoleBinding", "baton-operator")["roleRef"].update(name="operator"), "no Role operator"),
    (lambda d: the(d, "RoleBinding", "baton-operator")["subjects"][0].update(name="baton"), "rights go to"),
    (lambda d: drop(pod_of(d, "prefill").labels, checks.COMPONENT), "labels of Baton"),
    (lambda d: pod_of(d, "router").selector["matchLabels"].update({checks.INSTANCE: "other"}), "does not select its pods"),
    (lambda d: pod_of(d, "router").spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(app="x"), "spread by labels"),
    (lambda d: drop(pod_of(d, "router").spec, "topologySpreadConstraints"), "not spread"),
    (lambda d: the(d, "Service", "baton-router")["spec"]["selector"].update(app="x"), "selects no pods"),
    (lambda d: the(d, "Service", "baton-router")["spec"]["ports"][0].update(targetPort="http"), "has no port http"),
    (lambda d: drop(the(d, "Service", "baton-router-headless")["spec"], "publishNotReadyAddresses"), "when workers found them"),
    (lambda d: drop(the(d, "Service", "baton-router-headless")["spec"], "clusterIP"), "not with all"),
    (lambda d: arg(d, "decode", "--advertise-host", "--advertise"), "has no --advertise"),
    (lambda d: env(d, "decode", "BATON_MAX_NUM_SEQS").update(name="BATON_MAX_SEQS"), "does not read BATON_MAX_SEQS"),
    (lambda d: pod_of(d, "router").container["env"].append({"name": "BATON_PORT", "value": "1"}), "overruled"),
    (lambda d: arg(d, "prefill", "$(POD_IP)", "$(HOST_IP)"), "HOST_IP is not in the environment"),
    (lambda d: pod_of(d, "decode").container.update(command=["baton-decoder"]), "no program baton-decoder"),
    (lambda d: probe(d, "decode", "livenessProbe")["exec"]["command"].__setitem__(1, "check"), "no verb check"),
    (lambda d: probe(d, "decode", "livenessProbe")["exec"]["command"].__setitem__(2, "--endpoint=tcp://127.0.0.1:5601"), "has no --endpoint"),
    (lambda d: probe(d, "decode", "readinessProbe")["exec"]["command"].__setitem__(-1, "live"), "readinessProbe asks for live"),
    (lambda d: probe(d, "decode", "readinessProbe")["exec"]["command"].__setitem__(2, "--worker=tcp://$(POD_IP):5601"), "does not expand"),
    (lambda d: probe(d, "decode", "readinessProbe")["exec"]["command"].__setitem__(2, "--worker=tcp://127.0.0.1:5602"), "not where it listens"),
    (lambda d: arg(d, "decode", ":5601", ":5602"), "is no port of its container"),
    (lambda d: arg(d, "prefill", "baton-router-headless", "baton-routers"), "no Service has baton-routers"),
    (lambda d: arg(d, "router", "--port=8000", "--port=8080"), "is no port of its container"),
    (lambda d: probe(d, "router", "livenessProbe")["httpGet"].update(port="http"), "there is no port http"),
    (lambda d: probe(d, "router", "livenessProbe")["httpGet"].update(path="/live"), "has no /live"),
    (lambda d: drop(probe(d, "router", "livenessProbe")["httpGet"], "scheme"), "TLS on one side"),
    (lambda d: arg(d, "router", "/etc/baton/tls/tls.crt", "/etc/tls/tls.crt"), "is in no mount"),
    (lambda d: env(d, "decode", "BATON_CURVE_SECRET_FILE").update(value="/etc/baton/curve/router.key"), "is no item"),
    (lambda d: pod_of(d, "decode").container["volumeMounts"][0].update(name="keys"), "no volume keys"),
    (lambda d: pod_of(d, "decode").spec["volumes"].append({"name": "more", "emptyDir": {}}), "mounted nowhere"),
    (lambda d: arg(d, "prefill", "/var/cache/baton", "/var/cache"), "can't be written"),
    (lambda d: drop(pod_of(d, "decode").container, "startupProbe"), "has no startupProbe"),
    (lambda d: probe(d, "decode", "startupProbe").update(failureThreshold=3), "not patient"),
    (lambda d: probe(d, "router", "readinessProbe")["httpGet"].update(path="/health"), "readiness is liveness"),
    (lambda d: probe(d, "decode", "livenessProbe").update(failureThreshold=1), "only slow"),
    (lambda d: probe(d, "decode", "readinessProbe").update(timeoutSeconds=3), "before it gives up"),
    (lambda d: pod_of(d, "decode").spec.update(terminationGracePeriodSeconds=240), "while it drains"),
    (lambda d: arg(d, "router", "--drain-timeout=120s", "--drain-timeout=5m"), "while it drains"),
    (lambda d: drop(pod_of(d, "prefill").container, "lifecycle"), "has no preStop"),
    (lambda d: the(d, "PodDisruptionBudget", "baton-decode")["spec"]["selector"]["matchLabels"].update(app="x"), "selects no pods"),
    (lambda d: the(d, "PodDisruptionBudget", "baton-router")["spec"].update(minAvailable=2), "never lets a node"),
    (lambda d: the(d, "Deployment", "baton-router")["spec"].update(replicas=1), "single point"),
    (lambda d: pod_of(d, "router").spec["securityContext"].update(runAsNonRoot=False), "may run as root"),
    (lambda d: pod_of(d, "router").spec["securityContext"].update(fsGroup=1), "can't read its secrets"),
    (lambda d: pod_of(d, "router").container["securityContext"].update(capabilities={}), "keeps capabilities"),
    (lambda d: pod_of(d, "router").container["securityContext"].update(readOnlyRootFilesystem=False), "root file system"),
    (lambda d: drop(pod_of(d, "router").spec["securityContext"], "seccompProfile"), "without seccomp"),
    (lambda d: pod_of(d, "decode").spec.update(automountServiceAccountToken=True), "its token"),
    (lambda d: drop(pod_of(d, "router").spec["volumes"][1]["secret"], "defaultMode"), "readable by others"),
    (lambda d: pod_of(d, "decode").spec.update(hostNetwork=True), "shares namespaces"),
    (lambda d: pod_of(d, "decode").container["securityContext"]["capabilities"].update(add=["IPC_LOCK"]), "does not admit"),
    (lambda d: drop(pod_of(d, "decode").container["resources"], "limits"), "a limit of memory"),
    (lambda d: next(v for v in pod_of(d, "decode").spec["volumes"] if v["name"] == "shm")["emptyDir"].update(sizeLimit="8Gi"), "/dev/shm"),
    (lambda d: the(d, "Role", "baton-operator")["rules"][0]["verbs"].append("delete"), "nobody needs"),
    (lambda d: drop(the(d, "Role", "baton-operator")["rules"], 3), "a right is missing"),
    (lambda d: d.remove(the(d, "NetworkPolicy", "baton-default-deny")), "the network lets"),
    (lambda d: d.remove(the(d, "NetworkPolicy", "baton-dns")), "from DNS"),
    (lambda d: drop(rule_of(d, "baton-router")["ingress"], 0), "keeps the world"),
    (lambda d: drop(rule_of(d, "baton-router")["egress"], 0), "keeps Deployment/baton-router"),
    (lambda d: drop(rule_of(d, "baton-workers")["ingress"], 1), "at 40000"),
    (lambda d: drop(rule_of(d, "baton-workers")["egress"], 0), "at 5557"),
    (lambda d: rule_of(d, "baton-workers")["ingress"].append({}), "lets the world"),
    (lambda d: drop(rule_of(d, "baton-operator"), "egress"), "keeps an operator"),
    (lambda d: d.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "labels": {}}}), "is built"),
]
# And of overlays with GPUs and monitoring.
BROKEN_GPU = [
    (lambda d: drop(pod_of(d, "decode").container["resources"]["limits"], "nvidia.com/gpu"), "no GPU"),
    (lambda d: drop(pod_of(d, "decode").container["securityContext"]["capabilities"], "add"), "may not lock memory"),
    (lambda d: pod_of(d, "decode").spec["securityContext"].update(fsGroup=0), "root refuses"),
    (lambda d: drop(the(d, "Namespace", "baton")["metadata"]["labels"], "pod-security.kubernetes.io/enforce"), "does not admit"),
    (lambda d: d.remove(the(d, "PersistentVolumeClaim", "baton-models")), "no PersistentVolumeClaim"),
    (lambda d: drop(the(d, "PersistentVolumeClaim", "baton-models")["metadata"], "namespace"), "not in the namespace"),
    (lambda d: the(d, "ServiceMonitor", "baton")["spec"]["endpoints"][0].update(port="http"), "no Service has port http"),
    (lambda d: the(d, "ServiceMonitor", "baton")["spec"]["endpoints"][0].update(every="1s"), "schema"),
    (lambda d: the(d, "ServiceMonitor", "baton")["spec"]["endpoints"][0]["tlsConfig"]["ca"]["secret"].update(key="ca"), "no key ca"),
    (lambda d: the(d, "PrometheusRule", "baton")["spec"]["groups"][0]["rules"][4].update(expr="sum(x"), "alert"),
    (lambda d: the(d, "PrometheusRule", "baton")["spec"]["groups"][0]["rules"][4].update(expr="baton_queue > 1"), "no metric baton_queue"),
    (lambda d: the(d, "PrometheusRule", "baton")["spec"]["groups"][0]["rules"][4].update(expr="sum by (rank) (baton_ranks)"), "has label rank"),
    (lambda d: the(d, "PrometheusRule", "baton")["spec"]["groups"][0]["rules"][4].update(expr='baton_worker_up{role="both"} > 1'), "is never role=both"),
    (lambda d: the(d, "ConfigMap", "baton-dashboard")["data"].update(
        {k: v.replace("baton_decode_step_seconds", "baton_step_seconds") for k, v in the(d, "ConfigMap", "baton-dashboard")["data"].items()}),
     "no metric baton_step_seconds"),
]
BROKEN_GROUPS = [
    (lambda d: d.remove(the(d, "NetworkPolicy", "baton-groups")), "at 5700"),
    (lambda d: the(d, "LeaderWorkerSet", "baton-decode")["spec"]["leaderWorkerTemplate"].update(sise=4), "schema"),
    (lambda d: pod_of(d, "decode").container.update(lifecycles={}), "schema"),
    (lambda d: arg(d, "decode", "$(LWS_GROUP_SIZE)", "$(LWS_SIZE)"), "LWS_SIZE is not in the environment"),
    (lambda d: arg(d, "decode", "--data-parallel-size", "--tensor-parallel-size"), "has no --tensor-parallel-size"),
]
# And of the operator, on top of the demo.
BROKEN_OPERATOR = [
    (lambda d: drop(the(d, "ConfigMap", "baton-autoscale")["data"], "max-decode"), "no key max-decode"),
    (lambda d: env(d, "operator", "BATON_TTFT_P90").update(name="BATON_TTFT"), "does not read BATON_TTFT"),
    (lambda d: arg(d, "operator", "--drain-deadline", "--deadline"), "has no --deadline"),
    (lambda d: arg(d, "operator", "240s", "60s"), "less patient"),
    (lambda d: arg(d, "operator", "dns+tcp", "tcp"), "hears one router"),
    (lambda d: arg(d, "operator", "baton-router-headless", "baton-router"), "hears one router"),
    (lambda d: arg(d, "operator", "--name=baton", "--name=other"), "does not scale these"),
    (lambda d: env(d, "operator", "BATON_CURVE_SECRET_FILE").update(value="/etc/baton/curve/worker.key"), "is no item"),
    (lambda d: the(d, "Deployment", "baton-operator")["spec"].update(replicas=2), "at the same time"),
    (lambda d: drop(the(d, "Deployment", "baton-operator")["spec"], "strategy"), "at the same time"),
    (lambda d: pod_of(d, "operator").spec.update(serviceAccountName="baton"), "has no rights"),
    (lambda d: pod_of(d, "operator").spec.update(automountServiceAccountToken=False), "its token"),
    (lambda d: drop(rule_of(d, "baton-operator"), "egress"), "keeps Deployment/baton-operator"),
]


def prove(world, docs, gpus, broken):
    for number, (change, said) in enumerate(broken):
        changed = copy.deepcopy(docs)
        change(changed)
        assert changed != docs, f"broken copy {number} ({said}) is not broken"
        found = world.problems(changed, gpus, schemas=said == "schema")
        assert any(said in problem for problem in found), f"broken copy {number}: '{said}' is not in {found}"


# ---- the demo's command lines, here

ADDRESS = "127.0.0.1"
OWNER = 65532


class Demo:
    """Containers as processes: the same words and environment, secrets with the modes and owners that
    Kubernetes gives them, ports that are free here, and the router's name is that of this machine."""

    def __init__(self, docs, secrets, directory):
        self.docs, self.secrets, self.dir = docs, secrets, pathlib.Path(directory)
        self.config = the(docs, "ConfigMap", "baton-config")["data"]
        self.running, self.ready = {}, {}
        self.as_user = os.geteuid() == 0 and all(reachable(path) for path in [*PATHS.values(), cluster.MODEL])
        if not self.as_user:
            print("programs run as who runs this: not root, or others can't reach the build")

    def words(self, pod, words):
        root = str(self.dir / pod.component)
        for name in ("tcp://0.0.0.0:5557", "tcp://0.0.0.0:5601"):
            words = [word.replace(name, name.rpartition(":")[0] + ":*") for word in words]
        environment = self.environment(pod)
        out = []
        for word in words:
            for name, value in environment.items():
                word = word.replace(f"$({name})", value)
            word = word.replace("/etc/baton", f"{root}/etc").replace("/var/cache/baton", f"{root}/cache")
            word = word.replace("--port=8000", "--port=0")
            if "router" in self.ready:
                word = word.replace("baton-router-headless:5557", "localhost:" + self.rpc_port("router"))
            if pod.component in self.ready:
                word = word.replace(f"{ADDRESS}:5601", f"{ADDRESS}:{self.rpc_port(pod.component)}")
            out.append(word)
        return [str(PATHS[out[0]]), *out[1:]]

    def environment(self, pod):
        said = {"POD_IP": ADDRESS, "POD_NAME": f"baton-{pod.component}-0",
                "BATON_READY_FILE": str(self.dir / pod.component / "run/ready")}
        for entry in pod.container.get("env", []):
            source = entry.get("valueFrom", {})
            if "configMapKeyRef" in source:
                said[entry["name"]] = self.config[source["configMapKeyRef"]["key"]]
            elif "secretKeyRef" in source:
                ref = source["secretKeyRef"]
                said[entry["name"]] = self.secrets[ref["name"]][ref["key"]].decode()
            elif "value" in entry:
                said[entry["name"]] = entry["value"].replace("/etc/baton", str(self.dir / pod.component / "etc"))
        said["BATON_MODEL"] = str(cluster.MODEL)
        return said

    def rpc_port(self, component):
        return self.ready[component]["rpc"].partition("#")[0].rpartition(":")[2]

    def mount(self, pod):
        for mount in pod.container["volumeMounts"]:
            volume = next(v for v in pod.spec["volumes"] if v["name"] == mount["name"])
            secret = volume.get("secret")
            if secret is None:
                continue
            data = self.secrets[secret["secretName"]]
            items = secret.get("items") or [{"key": key, "path": key} for key in data]
            at = self.dir / pod.component / "etc" / pathlib.Path(mount["mountPath"]).name
            at.mkdir(parents=True)
            for item in items:
                (at / item["path"]).write_bytes(data[item["key"]])
                if self.as_user:        # as fsGroup does
                    os.chown(at / item["path"], 0, OWNER)
                os.chmod(at / item["path"], 0o440 if self.as_user else 0o400)
        for name in ("run", "cache"):
            (self.dir / pod.component / name).mkdir()
            if self.as_user:
                os.chown(self.dir / pod.component / name, OWNER, OWNER)

    def run(self, pod, words):
        own = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
        user = {"user": OWNER, "group": OWNER, "extra_groups": [OWNER]} if self.as_user else {}
        return subprocess.Popen(self.words(pod, words), env={**own, **self.environment(pod)}, cwd="/",
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **user)

    def start(self, component):
        pod = pod_of(self.docs, component)
        self.mount(pod)
        log = open(self.dir / f"{component}.log", "w", encoding="utf-8")
        own = {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}
        user = {"user": OWNER, "group": OWNER, "extra_groups": [OWNER]} if self.as_user else {}
        words = self.words(pod, pod.container["command"] + pod.container["args"])
        self.running[component] = subprocess.Popen(words, env={**own, **self.environment(pod)}, cwd="/",
                                                   stdout=log, stderr=log, **user)
        log.close()

    def wait(self, component):
        path = self.dir / component / "run/ready"
        alive = self.running[component]
        cluster.until(lambda: path.exists() or alive.poll() is not None, 100, f"{component} is ready")
        assert path.exists(), (self.dir / f"{component}.log").read_text()
        self.ready[component] = json.loads(path.read_text())

    def exec(self, component, what):
        """(exit code, output) of a probe or hook."""
        pod = pod_of(self.docs, component)
        words = dict(checks.exec_commands(pod.container))[what]
        done = self.run(pod, words)
        out, _ = done.communicate(timeout=400)
        return done.returncode, out

    def probe(self, component, what, refused=None):
        """As kubelet does: one that failed, which may have been for its own short time, is made again."""
        said = []

        def right():
            said[:] = code, out = self.exec(component, what)
            return code != 0 and refused in out if refused else code == 0
        try:
            cluster.until(right, 30, f"{component}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {said}") from error

    def get(self, path, key=None, body=None):
        """Over TLS, by the certificate of make-secrets."""
        trust = ssl.create_default_context(cadata=self.secrets["baton-tls"]["ca.crt"].decode())
        url = f"https://localhost:{self.ready['router']['http'].rpartition(':')[2]}{path}"
        request = urllib.request.Request(url, data=json.dumps(body).encode() if body else None)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=300, context=trust) as answer:
            return answer.read().decode()

    def stop(self):
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def reachable(path):
    path = pathlib.Path(path).resolve()
    return all(parent.stat().st_mode & 0o001 for parent in path.parents) and path.stat().st_mode & 0o005 == 0o005


def refused(demo, path, body, key):
    try:
        demo.get(path, key=key, body=body)
    except urllib.error.HTTPError as error:
        return error.code
    return None


def run_demo(docs, secrets, api_key, directory):
    demo = Demo(docs, secrets, directory)
    try:
        demo.start("router")
        demo.wait("router")
        demo.start("decode")
        demo.start("prefill")
        for worker in checks.WORKERS:
            demo.wait(worker)
            for what in ("startupProbe", "readinessProbe", "livenessProbe"):
                demo.probe(worker, what)
        router = pod_of(docs, "router").container
        for what in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = router[what]["httpGet"]["path"]
            cluster.until(lambda at=path: refused(demo, at, None, None) is None, 30, f"router: {what}")
        body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 16}
        assert refused(demo, "/v1/completions", body, "sk-wrong") == 401
        answer = json.loads(demo.get("/v1/completions", api_key, body))
        assert answer["usage"]["completion_tokens"] > 0, answer

        def of_all():
            page = demo.get("/metrics/workers")
            return page if len(re.findall(r"^baton_worker_scrape_up\{.*\} 1$", page, re.M)) == 2 else None
        metrics = Metrics(demo.get("/metrics"), cluster.until(of_all, 30, "a page of both workers"))
        drain(demo)
        demo.running["router"].send_signal(signal.SIGTERM)
        for name, process in demo.running.items():
            assert process.wait(timeout=200) == 0, (demo.dir / f"{name}.log").read_text()
        return metrics
    except BaseException:
        for log in sorted(demo.dir.glob("*.log")):
            print(f"---- {log.name}\n{log.read_text()[-3000:]}")
        raise
    finally:
        demo.stop()


def drain(demo):
    """As Kubernetes ends a pod: preStop, while probes go on; then SIGTERM."""
    for worker in checks.WORKERS:
        code, out = demo.exec(worker, "preStop")
        assert code == 0, f"{worker}: preStop: {out}"
        demo.probe(worker, "readinessProbe", refused="draining")
        demo.probe(worker, "livenessProbe")
        demo.running[worker].send_signal(signal.SIGTERM)


# ---- examples

def check_examples(world):
    docs = kustomize.load(HERE / "examples/secrets.yaml")
    assert check_schemas(docs) == []
    shown = {doc["metadata"]["name"]: set(doc["stringData"]) for doc in docs}
    assert shown == world.keys, "the examples are not what make-secrets makes"
    text = (HERE / "examples/secrets.yaml").read_text()
    assert not re.search(r"[0-9a-f]{40}", text), "a key in the examples"
    base = kustomize.build(HERE / "overlays/cpu-demo")
    gateway = kustomize.load(HERE / "examples/gateway.yaml")
    assert check_schemas(gateway) == []
    pool = the(gateway, "InferencePool", "baton")["spec"]
    routers = [pod for pod in mp.pods(base) if mp.selects(pool["selector"], pod.labels)]
    assert [pod.component for pod in routers] == ["router"]
    assert routers[0].port(pool["targetPorts"][0]["number"]) is not None
    backend = the(gateway, "HTTPRoute", "baton")["spec"]["rules"][0]["backendRefs"][0]
    assert the(gateway, backend["kind"], backend["name"])
    target = the(gateway, "BackendTLSPolicy", "baton-router")["spec"]["targetRefs"][0]
    assert the(base, target["kind"], target["name"])


def refuses(directory):
    """What this kustomize does not know is an error, not left out."""
    (directory / "a.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {}\n")
    for line in ("namePrefix: x", "patches: [{target: {kind: ConfigMap}, path: a.yaml}]",
                 "images: [{name: a, digest: b}]", "labels: [{pairs: {a: b}, includeSelectors: true}]",
                 "configMapGenerator: [{name: b, literals: [a=b]}]", "resources: [a.yaml, a.yaml]"):
        (directory / "kustomization.yaml").write_text(f"resources: [a.yaml]\n{line}\n"
                                                      if not line.startswith("resources") else line)
        try:
            kustomize.build(directory)
        except kustomize.Refused:
            continue
        raise AssertionError(f"kustomize took {line}")


def main():
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        directory = pathlib.Path(directory)
        os.chmod(directory, 0o755)
        for name in ("keys", "demo", "refused"):
            (directory / name).mkdir()
        world = World(directory / "keys")
        refuses(directory / "refused")
        built = {name: kustomize.build(HERE / "overlays" / name) for name in OVERLAYS}
        api_key = (directory / "keys/api-key").read_text()
        begin = time.monotonic()
        world.metrics = run_demo(built["cpu-demo"], world.secrets, api_key, directory / "demo")
        print(f"the demo's command lines ran, in {time.monotonic() - begin:.0f} s", flush=True)
        for name, docs in built.items():
            found = world.problems(docs, gpus=name != "cpu-demo")
            assert found == [], f"{name}:\n" + "\n".join(found)
            compare_with_kustomize(name, docs)
            print(f"{name}: {len(docs)} objects are in order", flush=True)
            with_operator = kustomize.accumulate(HERE / "components/operator", copy.deepcopy(docs))
            found = world.problems(with_operator, gpus=name != "cpu-demo")
            assert found == [], f"{name} with the operator:\n" + "\n".join(found)
        check_examples(world)
        with_operator = kustomize.accumulate(HERE / "components/operator", copy.deepcopy(built["cpu-demo"]))
        prove(world, with_operator, False, BROKEN_OPERATOR)
        prove(world, built["cpu-demo"], False, BROKEN)
        prove(world, built["nvidia-rdma"], True, BROKEN_GPU)
        prove(world, built["multi-node-ep"], True, BROKEN_GROUPS)
        print(f"{len(BROKEN) + len(BROKEN_GPU) + len(BROKEN_GROUPS) + len(BROKEN_OPERATOR)} broken copies were noticed")


if __name__ == "__main__":
    main()
