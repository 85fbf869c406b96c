"""A folder includes only what stands above it, and only its owner knows a foreign library."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
ORDER = ["common/base", "proto", "common/messaging", "common/kernels", "common/kvcache", "common/parallel",
         "common/text", "common/model", "common/planner", "kvtransfer"]
TOP = ["prefill-node", "decode-node", "router", "deploy"]        # none of these includes another
NOT_FOR_ROUTER = ["common/model", "common/parallel", "kvtransfer"]
OWNERS = {"ucp/": ["kvtransfer/ucx", "common/parallel"], "uct/": [], "ucs/": ["kvtransfer/ucx", "common/parallel"],
          "zmq.h": ["common/messaging"], "nccl.h": ["common/parallel"], "cuda": ["common/kernels/cuda", "common/parallel/nccl.c"],
          "microhttpd.h": ["router"], "pcre2.h": ["common/text"], "hwloc": ["common/kernels"]}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def layer_of(path):
    for folder in ORDER + TOP:
        if path.startswith(folder + "/"):
            return folder
    return None


def allowed(own, other):
    if other == own:
        return True
    if own in TOP:
        return other in ORDER and not (own == "router" and other in NOT_FOR_ROUTER) and not (
            own != "router" and other == "common/text" and own != "deploy")
    return other in ORDER and ORDER.index(other) < ORDER.index(own)


def main():
    wrong, seen = [], 0
    for folder in ORDER + TOP:
        for path in sorted((ROOT / folder).rglob("*.[ch]")):
            name = str(path.relative_to(ROOT))
            for kind, target in INCLUDE.findall(path.read_text(encoding="utf-8")):
                seen += 1
                other = layer_of(target)
                if other and not allowed(layer_of(name), other):
                    wrong.append(f"{name} includes {target}: {layer_of(name)} stands above {other}")
                if kind == '"' and not other and "/" not in target and (path.parent / target).exists():
                    wrong.append(f"{name} includes {target}: includes are from the root")
                for prefix, owners in OWNERS.items():
                    if kind == "<" and target.startswith(prefix) and not any(name == o or name.startswith(o + "/") for o in owners):
                        wrong.append(f"{name} includes {target}, which belongs to {owners}")
    print("\n".join(wrong) or f"{seen} includes keep the order")
    return 1 if wrong or seen < 100 else 0


if __name__ == "__main__":
    sys.exit(main())
