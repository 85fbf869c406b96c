"""The part of kustomize that deploy/kubernetes uses, and nothing else: what it does not know it
refuses, so that a manifest never means one thing here and another one there."""
import copy
import pathlib

import yaml

KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "components", "patches", "images",
         "configMapGenerator"}
NO_NAMESPACE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "PersistentVolume"}
# Lists that a strategic merge patch merges, by the field's name, with the key of their elements.
MERGE_KEYS = {"containers": "name", "initContainers": "name", "volumes": "name", "env": "name",
              "volumeMounts": "mountPath", "ports": "containerPort"}
CORE = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1")


class Refused(Exception):
    pass


def load(path):
    with open(path, encoding="utf-8") as file:
        return [doc for doc in yaml.safe_load_all(file) if doc is not None]


def identity(doc):
    return doc["kind"], doc["metadata"]["name"]


def merge_lists(name, target, patch):
    key = MERGE_KEYS.get(name)
    keyed = key and all(isinstance(e, dict) and key in e for e in target + patch)
    if not keyed:
        if key:
            raise Refused(f"{name}: elements without {key}")
        return copy.deepcopy(patch)
    named = []
    for element in patch:
        if "$patch" in element:
            raise Refused(f"$patch in {name}")
        before = next((e for e in target if e[key] == element[key]), {})
        merge(before, element)
        named.append(before)
    return named + [e for e in target if e[key] not in {n[key] for n in named}]     # kustomize's order


def merge(target, patch):
    for field, value in patch.items():
        if field == "$patch" or field.startswith("$"):
            raise Refused(f"directive {field}")
        if value is None:
            target.pop(field, None)
        elif isinstance(value, dict) and isinstance(target.get(field), dict):
            merge(target[field], value)
        elif isinstance(value, list) and isinstance(target.get(field), list):
            target[field] = merge_lists(field, target[field], value)
        else:
            target[field] = copy.deepcopy(value)


def apply_patch(docs, patch):
    found = [doc for doc in docs if identity(doc) == identity(patch)
             and doc["apiVersion"] == patch["apiVersion"]]
    if len(found) != 1:
        raise Refused(f"patch of {identity(patch)}: {len(found)} objects")
    if patch.get("$patch") == "delete":
        docs.remove(found[0])
        return
    if patch["apiVersion"] not in CORE:
        raise Refused(f"patch of a custom resource: {identity(patch)}")
    patch = copy.deepcopy(patch)
    patch["metadata"].pop("name")
    merge(found[0], patch)


def generate(directory, entry):
    extra = set(entry) - {"name", "files", "options"}
    options = entry.get("options", {})
    if extra or set(options) - {"disableNameSuffixHash", "labels"} or not options.get("disableNameSuffixHash"):
        raise Refused(f"configMapGenerator {entry['name']}: only files, without a hash in the name")
    data = {}
    for item in entry["files"]:
        key, _, file = item.partition("=")
        data[key] = (directory / (file or key)).read_text(encoding="utf-8")
    return {"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": entry["name"], "labels": dict(options.get("labels", {}))}, "data": data}


def pod_specs(node):
    """Of a document, at whatever depth they stand."""
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield node
        for value in node.values():
            yield from pod_specs(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_specs(value)


def set_image(docs, image):
    if set(image) - {"name", "newName", "newTag"}:
        raise Refused(f"images: {image}")
    for doc in docs:
        for spec in pod_specs(doc):
            for container in spec["containers"] + spec.get("initContainers", []):
                name, _, tag = container["image"].partition(":")
                if name == image["name"]:
                    container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def inside(root, directory, entry):
    path = (directory / entry).resolve()
    if root not in path.parents and path != root:
        raise Refused(f"{entry} is outside of {root}")
    return path


def accumulate(directory, docs):
    """Adds what the kustomization of `directory` has, on top of `docs` (of a component: changes them)."""
    directory = pathlib.Path(directory).resolve()
    said = load(directory / "kustomization.yaml")
    if len(said) != 1 or set(said[0]) - KNOWN:
        raise Refused(f"{directory}: {set(said[0]) - KNOWN}")
    said = said[0]
    for entry in said.get("resources", []):
        path = (directory / entry).resolve()
        if path.is_dir():
            docs += accumulate(path, [])
        else:
            docs += load(inside(directory, directory, entry))
    for entry in said.get("configMapGenerator", []):
        docs.append(generate(directory, entry))
    for entry in said.get("components", []):
        docs[:] = accumulate(directory / entry, docs)
    for entry in said.get("patches", []):
        if set(entry) != {"path"}:
            raise Refused(f"patch {entry}")
        patches = load(inside(directory, directory, entry["path"]))
        if len(patches) > 1 and any("$patch" in patch for patch in patches):
            raise Refused(f"{entry['path']}: kustomize wants a $patch in a file of its own")
        for patch in patches:
            apply_patch(docs, patch)
    for doc in docs:
        if "namespace" in said and doc["kind"] not in NO_NAMESPACE:
            doc["metadata"]["namespace"] = said["namespace"]
        for entry in said.get("labels", []):
            if set(entry) != {"pairs"}:
                raise Refused(f"labels {entry}")
            doc["metadata"].setdefault("labels", {}).update(entry["pairs"])
    for image in said.get("images", []):
        set_image(docs, image)
    seen = [identity(doc) for doc in docs]
    if len(set(seen)) != len(seen):
        raise Refused(f"{directory}: twice: {[i for i in seen if seen.count(i) > 1]}")
    return docs


def build(directory):
    return accumulate(directory, [])
