"""What is in manifests, taken apart: pods of workloads, and who selects them."""
import dataclasses


@dataclasses.dataclass
class Pod:
    owner: str          # "Deployment/baton-router"
    kind: str
    labels: dict
    spec: dict
    selector: dict      # of the workload; None: it has none
    replicas: int
    strategy: str = ""

    @property
    def component(self):
        return self.labels.get("app.kubernetes.io/component")

    @property
    def container(self):
        return self.spec["containers"][0]

    def port(self, name_or_number):
        for port in self.container.get("ports", []):
            if name_or_number in (port["containerPort"], port.get("name")):
                return port["containerPort"]
        return None


def pods(docs):
    for doc in docs:
        spec = doc.get("spec", {})
        owner = f"{doc['kind']}/{doc['metadata']['name']}"
        if doc["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template, selector = spec["template"], spec.get("selector")
        elif doc["kind"] == "LeaderWorkerSet":
            template, selector = spec["leaderWorkerTemplate"]["workerTemplate"], None
        else:
            continue
        yield Pod(owner, doc["kind"], template["metadata"].get("labels", {}), template["spec"], selector,
                  spec.get("replicas", 1), spec.get("strategy", {}).get("type", ""))


def selects(selector, labels):
    """A LabelSelector."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        values = term.get("values", [])
        if term["operator"] == "In" and labels.get(term["key"]) not in values:
            return False
        if term["operator"] == "NotIn" and labels.get(term["key"]) in values:
            return False
        if term["operator"] == "Exists" and term["key"] not in labels:
            return False
        if term["operator"] == "DoesNotExist" and term["key"] in labels:
            return False
    return True


def of_kind(docs, kind):
    return [doc for doc in docs if doc["kind"] == kind]


# ---- who may speak to whom

WORLD = Pod("the world", "", {}, {"containers": [{}]}, None, 1)      # a pod of another namespace
DNS = Pod("DNS", "", {}, {"containers": [{}]}, None, 1)              # one of kube-system


def peer_matches(peer, pod):
    if "namespaceSelector" in peer:
        labels = {DNS.owner: {"kubernetes.io/metadata.name": "kube-system"},
                  WORLD.owner: {"kubernetes.io/metadata.name": "elsewhere"}}.get(
                      pod.owner, {"kubernetes.io/metadata.name": "baton"})
        return selects(peer["namespaceSelector"], labels) and selects(peer.get("podSelector", {}), pod.labels)
    return pod not in (WORLD, DNS) and "podSelector" in peer and selects(peer["podSelector"], pod.labels)


def port_matches(rule, target, port, protocol):
    if "ports" not in rule:
        return True
    for entry in rule["ports"]:
        first = entry["port"] if isinstance(entry["port"], int) else target.port(entry["port"])
        if entry.get("protocol", "TCP") == protocol and first is not None and \
                first <= port <= entry.get("endPort", first):
            return True
    return False


def one_way(policies, direction, subject, other, target, port, protocol):
    field, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    about = [p["spec"] for p in policies if direction in p["spec"]["policyTypes"]
             and selects(p["spec"]["podSelector"], subject.labels)]
    if subject in (WORLD, DNS) or not about:
        return True
    return any(port_matches(rule, target, port, protocol) and
               (peers not in rule or any(peer_matches(peer, other) for peer in rule[peers]))
               for spec in about for rule in spec.get(field, []))


def may_connect(docs, source, target, port, protocol="TCP"):
    policies = of_kind(docs, "NetworkPolicy")
    return one_way(policies, "Egress", source, target, target, port, protocol) and \
        one_way(policies, "Ingress", target, source, target, port, protocol)
