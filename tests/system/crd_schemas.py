"""Of custom resources, the fields that deploy/kubernetes uses, as their definitions have them: what is
not named here is refused, as kubernetes-validate does in strict mode for what Kubernetes itself has."""

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
QUANTITY = {"anyOf": [INTEGER, {"type": "string", "pattern": "^[0-9]+%$"}]}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
STRINGS = {"type": "object", "additionalProperties": STRING}


def thing(required, **properties):
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def many(of, least=1):
    return {"type": "array", "items": of, "minItems": least}


def one_of(*values):
    return {"enum": list(values)}


METADATA = thing(["name"], name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)
SELECTOR = thing([], matchLabels=STRINGS, matchExpressions=many(thing(
    ["key", "operator"], key=STRING, operator=one_of("In", "NotIn", "Exists", "DoesNotExist"),
    values=many(STRING))))


def kind(version, name, spec):
    return (version, name), thing(["apiVersion", "kind", "metadata", "spec"], apiVersion=one_of(version),
                                  kind=one_of(name), metadata=METADATA, spec=spec)


SECRET_KEY = thing(["key"], name=STRING, key=STRING, optional={"type": "boolean"})
TLS = thing([], serverName=STRING, insecureSkipVerify={"type": "boolean"},
            ca=thing([], secret=SECRET_KEY, configMap=SECRET_KEY))
TEMPLATE = {"type": "object"}      # checked as the PodTemplate that it is

SCHEMAS = dict([
    kind("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", thing(
        ["leaderWorkerTemplate"],
        replicas=INTEGER, startupPolicy=one_of("LeaderCreated", "LeaderReady"),
        rolloutStrategy=thing(["type"], type=one_of("RollingUpdate"),
                              rollingUpdateConfiguration=thing([], maxUnavailable=QUANTITY,
                                                               maxSurge=QUANTITY, partition=INTEGER)),
        networkConfig=thing(["subdomainPolicy"], subdomainPolicy=one_of("Shared", "UniquePerReplica")),
        leaderWorkerTemplate=thing(
            ["workerTemplate"], size={"type": "integer", "minimum": 1}, leaderTemplate=TEMPLATE,
            workerTemplate=TEMPLATE,
            restartPolicy=one_of("RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None")))),
    kind("monitoring.coreos.com/v1", "ServiceMonitor", thing(
        ["selector", "endpoints"], jobLabel=STRING, selector=SELECTOR,
        endpoints=many(thing([], port=STRING, path=STRING, scheme=one_of("http", "https"),
                             interval=DURATION, scrapeTimeout=DURATION, tlsConfig=TLS)))),
    kind("monitoring.coreos.com/v1", "PrometheusRule", thing(
        ["groups"], groups=many(thing(
            ["name", "rules"], name=STRING, interval=DURATION, rules=many(thing(
                ["alert", "expr"], alert=STRING, expr=STRING, labels=STRINGS, annotations=STRINGS,
                **{"for": DURATION})))))),
    kind("gateway.networking.k8s.io/v1", "HTTPRoute", thing(
        [], hostnames=many(STRING), parentRefs=many(thing(["name"], name=STRING, namespace=STRING)),
        rules=many(thing(
            [], matches=many(thing([], path=thing([], type=one_of("Exact", "PathPrefix"), value=STRING))),
            timeouts=thing([], request=DURATION, backendRequest=DURATION),
            backendRefs=many(thing(["name"], group=STRING, kind=STRING, name=STRING, namespace=STRING,
                                   port=PORT, weight=INTEGER)))))),
    kind("gateway.networking.k8s.io/v1", "BackendTLSPolicy", thing(
        ["targetRefs", "validation"],
        targetRefs=many(thing(["group", "kind", "name"], group=STRING, kind=STRING, name=STRING,
                              sectionName=STRING)),
        validation=thing(["hostname"], hostname=STRING, caCertificateRefs=many(thing(
            ["group", "kind", "name"], group=STRING, kind=STRING, name=STRING))))),
    kind("inference.networking.k8s.io/v1", "InferencePool", thing(
        ["selector", "targetPorts", "endpointPickerRef"],
        selector=thing(["matchLabels"], matchLabels=STRINGS),
        targetPorts=many(thing(["number"], number=PORT)),
        endpointPickerRef=thing(["name"], group=STRING, kind=STRING, name=STRING,
                                port=thing(["number"], number=PORT),
                                failureMode=one_of("FailOpen", "FailClose")))),
])
