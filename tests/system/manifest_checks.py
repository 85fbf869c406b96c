"""What has to hold in the manifests of one overlay. Each check gives the problems that it found, in
words; none of them changes anything."""
import re
import subprocess

import manifest_pods as mp

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
PROGRAMS = ("baton-router", "baton-prefill", "baton-decode", "batonctl")
WORKERS = ("prefill", "decode")
# Set by the LeaderWorkerSet controller in the pods of groups.
LWS_ENV = {"LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"}
STOP_S = 15         # what a worker may take after SIGTERM when nothing runs on it any more
EPHEMERAL = 40000   # a port as the kernel picks them


class Programs:
    """The options of the programs that were built."""

    def __init__(self, paths):
        self.paths = paths
        self.known = {}

    def options(self, command):
        """Names and environment names; None: there is no such program or verb."""
        key = tuple(command)
        if key not in self.known:
            if command[0] not in self.paths:
                return None
            done = subprocess.run([str(self.paths[command[0]]), *command[1:], "--help"], capture_output=True,
                                  text=True, timeout=60)
            names = set(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", done.stdout, re.M))
            env = set(re.findall(r"env (BATON_[A-Z0-9_]+)", done.stdout))
            self.known[key] = (names, env) if done.returncode == 0 else None
        return self.known[key]


def seconds(text):
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|m|h)?", text).groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, None: 1}[unit]


def mebibytes(text):
    number, unit = re.fullmatch(r"([0-9]+)(Mi|Gi|Ti)", text).groups()
    return int(number) * {"Mi": 1, "Gi": 1024, "Ti": 1024 * 1024}[unit]


def flags(words):
    """{"name": value} of words as --name=value; in these manifests there is no other form."""
    return dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))


def command_of(container):
    """(program and verb, the words after)"""
    words = container["command"] + container.get("args", [])
    cut = 2 if words[0] == "batonctl" else 1
    return words[:cut], words[cut:]


def exec_commands(container):
    """(what for, words) of probes and hooks."""
    for what in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "exec" in container.get(what, {}):
            yield what, container[what]["exec"]["command"]
    hook = container.get("lifecycle", {}).get("preStop", {})
    if "exec" in hook:
        yield "preStop", hook["exec"]["command"]


def config_keys(docs):
    return {doc["metadata"]["name"]: set(doc.get("data", {})) for doc in mp.of_kind(docs, "ConfigMap")}


# ---- references

def check_references(docs, secrets):
    """`secrets`: {name: keys} that make-secrets makes."""
    problems = []
    maps = config_keys(docs)
    accounts = {d["metadata"]["name"] for d in mp.of_kind(docs, "ServiceAccount")}
    claims = {d["metadata"]["name"] for d in mp.of_kind(docs, "PersistentVolumeClaim")}

    def known(owner, kind, name, key):
        have = {"ConfigMap": maps, "Secret": secrets}[kind]
        if name not in have:
            problems.append(f"{owner}: there is no {kind} {name}")
        elif key is not None and key not in have[name]:
            problems.append(f"{owner}: {kind} {name} has no key {key}")

    for pod in mp.pods(docs):
        if pod.spec.get("serviceAccountName") not in accounts:
            problems.append(f"{pod.owner}: there is no ServiceAccount {pod.spec.get('serviceAccountName')}")
        for entry in pod.container.get("env", []):
            source = entry.get("valueFrom", {})
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if field in source:
                    known(pod.owner, kind, source[field]["name"], source[field]["key"])
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                for item in volume["secret"].get("items", [{}]):
                    known(pod.owner, "Secret", volume["secret"]["secretName"], item.get("key"))
            if "persistentVolumeClaim" in volume and \
                    volume["persistentVolumeClaim"]["claimName"] not in claims:
                problems.append(f"{pod.owner}: there is no PersistentVolumeClaim of volume {volume['name']}")
    roles = {d["metadata"]["name"] for d in mp.of_kind(docs, "Role")}
    for binding in mp.of_kind(docs, "RoleBinding"):
        if binding["roleRef"]["name"] not in roles:
            problems.append(f"RoleBinding: there is no Role {binding['roleRef']['name']}")
        for subject in binding["subjects"]:
            if subject["name"] not in accounts or subject["namespace"] != "baton":
                problems.append(f"RoleBinding: there is no ServiceAccount {subject['name']}")
    for monitor in mp.of_kind(docs, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            ca = endpoint.get("tlsConfig", {}).get("ca", {}).get("secret")
            if ca:
                known("ServiceMonitor", "Secret", ca["name"], ca["key"])
    return problems


def check_labels(docs):
    problems = []
    for doc in docs:
        labels = doc["metadata"].get("labels", {})
        if doc["kind"] != "Namespace" and doc["metadata"].get("namespace") != "baton":
            problems.append(f"{doc['kind']}/{doc['metadata']['name']}: is not in the namespace")
        if labels.get(NAME) != "baton" or labels.get(INSTANCE) != "baton":
            problems.append(f"{doc['kind']}/{doc['metadata']['name']}: without {NAME} or {INSTANCE}")
    for pod in mp.pods(docs):
        where = pod.labels
        if where.get(NAME) != "baton" or where.get(INSTANCE) != "baton" or not where.get(COMPONENT):
            problems.append(f"{pod.owner}: its pods are without labels of Baton")
        if pod.selector is not None and not mp.selects(pod.selector, where):
            problems.append(f"{pod.owner}: its selector does not select its pods")
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not mp.selects(spread["labelSelector"], where):
                problems.append(f"{pod.owner}: is spread by labels that its pods do not have")
        if pod.component in ("router",) + WORKERS and not pod.spec.get("topologySpreadConstraints"):
            problems.append(f"{pod.owner}: is not spread over nodes")
    for role in ("router",) + WORKERS:
        owners = [pod.owner for pod in mp.pods(docs) if pod.component == role]
        if len(owners) != 1 or not owners[0].endswith(f"/baton-{role}"):
            problems.append(f"{role}: one workload baton-{role} is wanted, there is {owners}")
    return problems


def selected(docs, selector):
    return [pod for pod in mp.pods(docs) if mp.selects({"matchLabels": selector}, pod.labels)]


def check_services(docs):
    problems = []
    for service in mp.of_kind(docs, "Service"):
        name = service["metadata"]["name"]
        pods = selected(docs, service["spec"]["selector"])
        if not pods:
            problems.append(f"Service {name} selects no pods")
        for port in service["spec"]["ports"]:
            for pod in pods:
                if pod.port(port.get("targetPort", port["port"])) is None:
                    problems.append(f"Service {name}: {pod.owner} has no port {port.get('targetPort')}")
        headless = service["spec"].get("clusterIP") == "None"
        if headless and not service["spec"].get("publishNotReadyAddresses"):
            problems.append(f"Service {name}: routers are ready when workers found them")
    for monitor in mp.of_kind(docs, "ServiceMonitor"):
        found = [s for s in mp.of_kind(docs, "Service")
                 if mp.selects(monitor["spec"]["selector"], s["metadata"].get("labels", {}))]
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                problems.append(f"ServiceMonitor: no Service has port {endpoint['port']}")
    return problems


# ---- command lines

def check_commands(docs, programs):
    """Flags, verbs and environment exist, once each, and $(NAME) stands for something."""
    problems = []
    for pod in mp.pods(docs):
        container = pod.container
        command, words = command_of(container)
        have = programs.options(command)
        if have is None:
            problems.append(f"{pod.owner}: there is no program {' '.join(command)}")
            continue
        for name in flags(words):
            if name not in have[0]:
                problems.append(f"{pod.owner}: {command[0]} has no --{name}")
        env = [entry["name"] for entry in container.get("env", [])]
        for name in env:
            if name.startswith("BATON_") and name not in have[1]:
                problems.append(f"{pod.owner}: {command[0]} does not read {name}")
            if name[len("BATON_"):].lower().replace("_", "-") in flags(words):
                problems.append(f"{pod.owner}: {name} is overruled by a flag")
        there = set(env) | (LWS_ENV if pod.kind == "LeaderWorkerSet" else set())
        for word in words:
            for name in re.findall(r"\$\(([A-Za-z0-9_]+)\)", word):
                if name not in there:
                    problems.append(f"{pod.owner}: {word}: {name} is not in the environment")
        for what, said in exec_commands(container):
            problems += check_exec(pod, what, said, programs)
    return problems


def check_exec(pod, what, said, programs):
    if said[0] != "batonctl":
        return [] if said[0] == "sleep" else [f"{pod.owner}: {what}: what is {said[0]}?"]
    have = programs.options(said[:2])
    if have is None:
        return [f"{pod.owner}: {what}: batonctl has no verb {said[1]}"]
    problems = [f"{pod.owner}: {what}: batonctl {said[1]} has no --{name}"
                for name in flags(said[2:]) if name not in have[0]]
    if said[1] == "probe" and said[-1] != {"startupProbe": "startup", "readinessProbe": "ready",
                                           "livenessProbe": "live"}.get(what):
        problems.append(f"{pod.owner}: {what} asks for {said[-1]}")
    if any("$(" in word for word in said):
        problems.append(f"{pod.owner}: {what}: Kubernetes does not expand $(…) here")
    return problems


def endpoint(text):
    host, _, port = text.partition("://")[2].partition("#")[0].rpartition(":")
    return host, int(port)


def check_ports(docs):
    """What is listened on is declared; where others look for it, it is."""
    problems = []
    services = {d["metadata"]["name"]: d for d in mp.of_kind(docs, "Service")}
    for pod in mp.pods(docs):
        said = flags(command_of(pod.container)[1])
        for flag in ("port", "worker-endpoint", "listen", "group-endpoint"):
            if flag in said:
                number = int(said[flag]) if flag == "port" else endpoint(said[flag])[1]
                if pod.port(number) is None:
                    problems.append(f"{pod.owner}: --{flag}={said[flag]} is no port of its container")
        for what, words in exec_commands(pod.container):
            worker = flags(words).get("worker")
            if worker and endpoint(worker) != ("127.0.0.1", endpoint(said["listen"])[1]):
                problems.append(f"{pod.owner}: {what}: {worker} is not where it listens")
        for what in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = pod.container.get(what, {}).get("httpGet")
            if get and pod.port(get["port"]) is None:
                problems.append(f"{pod.owner}: {what}: there is no port {get['port']}")
            if get and get["path"] not in ("/health", "/ready"):
                problems.append(f"{pod.owner}: {what}: the router has no {get['path']} that is open to all")
            if get and (get.get("scheme") == "HTTPS") != ("tls-cert" in said):
                problems.append(f"{pod.owner}: {what}: TLS on one side only")
        for flag in ("router", "rpc"):
            if flag in said:
                host, number = endpoint(said[flag])
                ports = [port["port"] for port in services.get(host, {"spec": {"ports": []}})["spec"]["ports"]]
                if number not in ports:
                    problems.append(f"{pod.owner}: --{flag}: no Service has {host}:{number}")
        for flag, what in (("router", "registers with"), ("rpc", "hears")):
            if flag in said and (services.get(endpoint(said[flag])[0], {"spec": {}})["spec"].get("clusterIP") != "None"
                                 or not said[flag].startswith("dns+tcp://")):
                problems.append(f"{pod.owner}: {what} one router and not with all")
    return problems


def check_files(docs, image_env):
    """Files that are named are mounted; what is written to is writable."""
    problems = []
    for pod in mp.pods(docs):
        volumes = {v["name"]: v for v in pod.spec.get("volumes", [])}
        mounts = {m["mountPath"]: m for m in pod.container.get("volumeMounts", [])}
        for mount in mounts.values():
            if mount["name"] not in volumes:
                problems.append(f"{pod.owner}: there is no volume {mount['name']}")
        for name in volumes:
            if name not in {m["name"] for m in mounts.values()}:
                problems.append(f"{pod.owner}: volume {name} is mounted nowhere")
        said = flags(command_of(pod.container)[1])
        paths = list(said.values()) + [e.get("value", "") for e in pod.container.get("env", [])]
        for path in (p for p in paths if p.startswith("/etc/")):
            mount = mounts.get(path.rpartition("/")[0])
            if mount is None or mount["name"] not in volumes:
                problems.append(f"{pod.owner}: {path} is in no mount")
                continue
            items = volumes[mount["name"]].get("secret", {}).get("items")
            if items is not None and path.rpartition("/")[2] not in {item["path"] for item in items}:
                problems.append(f"{pod.owner}: {path} is no item of volume {mount['name']}")
        written = [image_env["BATON_READY_FILE"].rpartition("/")[0]]
        written += [said["cache-dir"]] if "cache-dir" in said else []
        written += ["/dev/shm"] if pod.component in WORKERS else []
        for path in written:
            mount = mounts.get(path)
            if mount is None or "emptyDir" not in volumes.get(mount["name"], {}) or mount.get("readOnly"):
                problems.append(f"{pod.owner}: {path} can't be written to")
    return problems


# ---- life and death

def check_probes(docs):
    problems = []
    for pod in mp.pods(docs):
        if pod.component not in ("router",) + WORKERS:
            continue
        container = pod.container
        for what in ("startupProbe", "readinessProbe", "livenessProbe"):
            if what not in container:
                problems.append(f"{pod.owner}: has no {what}")
        start, ready, live = (container.get(w, {}) for w in ("startupProbe", "readinessProbe", "livenessProbe"))
        if start.get("periodSeconds", 10) * start.get("failureThreshold", 3) < 600:
            problems.append(f"{pod.owner}: startupProbe is not patient")
        if ready.get("httpGet", ready.get("exec")) == live.get("httpGet", live.get("exec")):
            problems.append(f"{pod.owner}: readiness is liveness")
        if live.get("periodSeconds", 10) * live.get("failureThreshold", 3) < 60:
            problems.append(f"{pod.owner}: livenessProbe kills what is only slow")
        for what, words in exec_commands(container):
            own = flags(words).get("timeout")
            if what != "preStop" and (own is None or
                                      seconds(own) >= container[what].get("timeoutSeconds", 1)):
                problems.append(f"{pod.owner}: {what}: is ended by Kubernetes before it gives up")
    return problems


def check_end(docs):
    """preStop, and what SIGTERM takes after it, fit into the grace period."""
    problems = []
    for pod in mp.pods(docs):
        if pod.component not in ("router",) + WORKERS:
            continue
        hooks = dict(exec_commands(pod.container))
        words = hooks.get("preStop")
        if words is None:
            problems.append(f"{pod.owner}: has no preStop")
            continue
        if pod.component == "router":
            first = float(words[1])
            after = seconds(flags(command_of(pod.container)[1]).get("drain-timeout", "30s"))
        else:
            if words[1] != "drain" or "deadline" not in flags(words):
                problems.append(f"{pod.owner}: preStop does not drain it")
                continue
            first, after = seconds(flags(words)["deadline"]), STOP_S
        if pod.spec.get("terminationGracePeriodSeconds", 30) < first + after + 5:
            problems.append(f"{pod.owner}: is killed while it drains")
    return problems


def check_disruption(docs):
    problems = []
    for pod in mp.pods(docs):
        budgets = [b["spec"] for b in mp.of_kind(docs, "PodDisruptionBudget")
                   if mp.selects(b["spec"]["selector"], pod.labels)]
        if pod.component in ("router",) + WORKERS and len(budgets) != 1:
            problems.append(f"{pod.owner}: {len(budgets)} PodDisruptionBudgets select it")
        for budget in budgets:
            if budget.get("minAvailable", 0) >= pod.replicas or budget.get("maxUnavailable", 1) == 0:
                problems.append(f"{pod.owner}: its budget never lets a node be emptied")
    for budget in mp.of_kind(docs, "PodDisruptionBudget"):
        if not any(mp.selects(budget["spec"]["selector"], pod.labels) for pod in mp.pods(docs)):
            problems.append(f"PodDisruptionBudget {budget['metadata']['name']} selects no pods")
    if mp.of_kind(docs, "HorizontalPodAutoscaler"):
        problems.append("a HorizontalPodAutoscaler works against batonctl")
    routers = [pod.replicas for pod in mp.pods(docs) if pod.component == "router"]
    if routers and routers[0] < 2:
        problems.append("a router alone is a single point of failure")
    return problems


# ---- rights

def check_security(docs):
    problems = []
    enforced = [d["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
                for d in mp.of_kind(docs, "Namespace")]
    for pod in mp.pods(docs):
        whole, own = pod.spec.get("securityContext", {}), pod.container.get("securityContext", {})
        added = own.get("capabilities", {}).get("add", [])
        if added not in ([], ["IPC_LOCK"]):
            problems.append(f"{pod.owner}: adds {added}")
        if not whole.get("runAsNonRoot") and added != ["IPC_LOCK"]:
            problems.append(f"{pod.owner}: may run as root")
        if whole.get("runAsNonRoot") and (whole.get("runAsUser", 0) == 0 or
                                          whole.get("fsGroup") != whole.get("runAsGroup")):
            problems.append(f"{pod.owner}: can't read its secrets")
        if not whole.get("runAsNonRoot") and "fsGroup" in whole:
            problems.append(f"{pod.owner}: root refuses secrets that a group may read")
        if added and enforced != ["privileged"]:
            problems.append(f"{pod.owner}: the namespace does not admit {added}")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            problems.append(f"{pod.owner}: keeps capabilities")
        if own.get("allowPrivilegeEscalation") is not False or not own.get("readOnlyRootFilesystem") or \
                own.get("privileged"):
            problems.append(f"{pod.owner}: root file system or privileges")
        if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            problems.append(f"{pod.owner}: without seccomp")
        operator = pod.spec.get("serviceAccountName") == "baton-operator"
        if pod.spec.get("automountServiceAccountToken") is not operator:
            problems.append(f"{pod.owner}: its token for Kubernetes")
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume and volume["secret"].get("defaultMode", 0o644) != 0o400:
                problems.append(f"{pod.owner}: volume {volume['name']} is readable by others")
            if "hostPath" in volume:
                problems.append(f"{pod.owner}: hostPath")
        if any(pod.spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
            problems.append(f"{pod.owner}: shares namespaces with its node")
    return problems


def check_resources(docs, gpus):
    problems = []
    for pod in mp.pods(docs):
        resources = pod.container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            problems.append(f"{pod.owner}: requests and a limit of memory are wanted")
            continue
        limit = mebibytes(resources["limits"]["memory"])
        if mebibytes(resources["requests"]["memory"]) > limit:
            problems.append(f"{pod.owner}: requests more memory than its limit")
        if pod.component in WORKERS:
            shm = [v["emptyDir"] for v in pod.spec["volumes"] if v["name"] == "shm" and "emptyDir" in v]
            if not shm or shm[0].get("medium") != "Memory" or mebibytes(shm[0].get("sizeLimit", "9999Ti")) >= limit:
                problems.append(f"{pod.owner}: /dev/shm is no memory, or more than the container may have")
            if gpus and not {"nvidia.com/gpu", "rdma/hca_shared_devices_a"} <= set(resources["limits"]):
                problems.append(f"{pod.owner}: no GPU, or no RDMA device")
            if gpus and pod.container["securityContext"]["capabilities"].get("add") != ["IPC_LOCK"]:
                problems.append(f"{pod.owner}: may not lock memory")
    return problems


def check_rights(docs, calls):
    """`calls`: {(verb, group, resource)} of the table of the kubernetes engine."""
    problems = []
    given = set()
    for role in mp.of_kind(docs, "Role"):
        for rule in role["rules"]:
            given |= {(verb, group, resource) for verb in rule["verbs"] for group in rule["apiGroups"]
                      for resource in rule["resources"]}
    for right in sorted(given - calls):
        problems.append(f"a right that nobody needs: {right}")
    for right in sorted(calls - given):
        problems.append(f"a right is missing: {right}")
    bound = {subject["name"] for b in mp.of_kind(docs, "RoleBinding") for subject in b["subjects"]}
    if bound != {"baton-operator"} or mp.of_kind(docs, "ClusterRole") or mp.of_kind(docs, "ClusterRoleBinding"):
        problems.append(f"rights go to {bound}, and to nobody else than baton-operator they should")
    return problems


# ---- the network

def operator_pod():
    labels = {NAME: "baton", INSTANCE: "baton", COMPONENT: "operator"}
    return mp.Pod("an operator", "", labels, {"containers": [{}]}, None, 1)


def check_network(docs):
    problems = []
    if not {"router", *WORKERS} <= {pod.component for pod in mp.pods(docs)}:
        return ["the network: a component is missing"]
    router, prefill, decode = ([p for p in mp.pods(docs) if p.component == c][0]
                               for c in ("router", "prefill", "decode"))
    operator = next((p for p in mp.pods(docs) if p.component == "operator"), operator_pod())
    https, rpc = router.port("https"), router.port("rpc")
    worker_rpc = prefill.port("rpc")
    need = [(mp.WORLD, router, https), (prefill, router, rpc), (decode, router, rpc),
            (router, prefill, worker_rpc), (router, decode, worker_rpc), (prefill, decode, worker_rpc),
            (prefill, decode, EPHEMERAL), (operator, router, rpc), (operator, prefill, worker_rpc),
            (operator, decode, worker_rpc), (operator, mp.WORLD, 443), (operator, mp.WORLD, 6443)]
    for group in (pod for pod in (prefill, decode) if pod.kind == "LeaderWorkerSet"):
        need += [(group, group, group.port("group")), (group, group, worker_rpc), (group, group, EPHEMERAL)]
    never = [(mp.WORLD, router, rpc), (mp.WORLD, prefill, worker_rpc), (mp.WORLD, decode, worker_rpc),
             (mp.WORLD, decode, EPHEMERAL), (prefill, mp.WORLD, 443), (decode, mp.WORLD, 443),
             (router, mp.WORLD, 443), (router, decode, EPHEMERAL), (operator, decode, EPHEMERAL),
             (decode, router, https + 1), (mp.WORLD, operator, 443)]
    for source, target, port in need:
        if port is None or not mp.may_connect(docs, source, target, port):
            problems.append(f"the network keeps {source.owner} from {target.owner} at {port}")
    for source, target, port in never:
        if mp.may_connect(docs, source, target, port):
            problems.append(f"the network lets {source.owner} to {target.owner} at {port}")
    for source in (router, prefill, decode, operator):
        for protocol in ("UDP", "TCP"):
            if not mp.may_connect(docs, source, mp.DNS, 53, protocol):
                problems.append(f"the network keeps {source.owner} from DNS over {protocol}")
    return problems


def check_operator(docs):
    """Who changes replicas does so alone, by the engine of pods, and knows the cluster by its label."""
    problems = []
    for pod in (pod for pod in mp.pods(docs) if pod.component == "operator"):
        said = flags(command_of(pod.container)[1])
        if pod.replicas != 1 or pod.strategy != "Recreate":
            problems.append(f"{pod.owner}: two of it at the same time")
        if said.get("engine") != "kubernetes" or said.get("name") != pod.labels[INSTANCE]:
            problems.append(f"{pod.owner}: does not scale these pods")
        if pod.spec.get("serviceAccountName") != "baton-operator":
            problems.append(f"{pod.owner}: has no rights")
        if seconds(said.get("drain-deadline", "60s")) < max(
                seconds(flags(words)["deadline"]) for worker in mp.pods(docs) if worker.component in WORKERS
                for what, words in exec_commands(worker.container) if what == "preStop"):
            problems.append(f"{pod.owner}: is less patient than preStop")
    return problems


def check_placeholders(docs):
    """No key is in the repository: there are no Secrets among what is built."""
    return [f"Secret {d['metadata']['name']} is built" for d in mp.of_kind(docs, "Secret")]
