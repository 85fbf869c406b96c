"""What a guest does: the conformance suite over its own RDMA device, then its part of one request from
guest 1 (router, prefill) to guest 2 (decode). Run as `guest.py NODE BUILD`; /share is the host's."""
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

SHARE = pathlib.Path("/share")
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = pathlib.Path(os.environ.get("BATON_TEST_MODEL", ROOT / "tests/models/tiny"))
ADDRESS = "10.77.0."
PROMPTS = ["short", "story"]
SECONDS = 900


def say(text):
    print(f"[{time.monotonic():7.1f}] {text}", flush=True)


def until(condition, what):
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {SECONDS} s: {what}")
        time.sleep(0.2)


def conformance(build):
    """Everything that any transport must do, over this guest's device."""
    done = subprocess.run([build / "tests/conformance/test_transfer", "rdma"], timeout=SECONDS * 2,
                          capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if " info " not in line]
    say(done.stdout[-4000:] + "\n".join(told)[-4000:])
    assert done.returncode == 0, f"conformance gave {done.returncode}"


def start(program, log, *args):
    ready = pathlib.Path(f"/run/{program.name}.ready")
    with open(SHARE / log, "wb") as out:
        process = subprocess.Popen([program, "--ready-file", ready, "--die-with-parent", *args],
                                   stdout=out, stderr=out)
    return process, ready


def await_ready(process, ready):
    until(lambda: ready.exists() or process.poll() is not None, f"{ready} is written")
    assert process.poll() is None, f"it ended with {process.returncode}"


def end(process):
    process.terminate()
    assert process.wait(SECONDS) == 0, process.returncode


def worker_args(node):
    return ["--model", MODEL, "--router", f"tcp://{ADDRESS}1:5557", "--listen",
            f"tcp://{ADDRESS}{node}:*", "--transport", "rdma", "--transport-host",
            f"{ADDRESS}{node}", "--kv-pages", "64"]


def complete(http, text):
    body = {"prompt": text, "temperature": 0, "max_tokens": 16, "ignore_eos": True,
            "skip_special_tokens": False}
    request = urllib.request.Request(f"{http}/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)["choices"][0]["text"]


def end_to_end(build):
    """Guest 1. The tokens are those of the independent implementation's goldens."""
    golden = json.loads((MODEL / "golden/index.json").read_text(encoding="utf-8"))["prompts"]
    router, router_ready = start(build / "router/baton-router", "router.log", "--model", MODEL,
                                 "--port", "8000", "--worker-endpoint", f"tcp://{ADDRESS}1:5557",
                                 "--heartbeat", "10000", "--request-timeout", f"{SECONDS}s")
    await_ready(router, router_ready)
    prefill, prefill_ready = start(build / "prefill-node/baton-prefill", "prefill.log",
                                   "--chunked-prefill-size", "512", *worker_args(1))
    (SHARE / "router-is-up").touch()
    await_ready(prefill, prefill_ready)
    until((SHARE / "decode-is-up").exists, "the decode worker is up")
    for name in PROMPTS:
        text = complete("http://127.0.0.1:8000", golden[name]["text"])
        assert golden[name]["continuation"].startswith(text) and len(text) > 10, (name, text)
        say(f"{name}: continuation equal")
    doctor = subprocess.run([build / "deploy/batonctl/batonctl", "doctor", "--rpc",
                             f"tcp://{ADDRESS}1:5557", "--timeout", f"{SECONDS // 3}s", "--tokens", "64",
                             "--expect", "rdma", "--output", "json", *workers(build)],
                            capture_output=True, text=True, timeout=SECONDS)
    say(doctor.stdout + doctor.stderr)
    told = json.loads(doctor.stdout)
    assert told["transfers"][0]["transport"] == "rdma", told
    assert told["verdict"] != "broken", told
    # Each end says itself what it has, and which GID it uses: the one of IPv6 here, index 0.
    ports = [f["text"] for f in told["findings"] if f["what"].endswith(" port rxe0:1")]
    assert len(ports) == 2 and all("GID 0 fe80::" in text and "a rail" in text for text in ports), told
    (SHARE / "finished").touch()
    end(prefill)
    end(router)


def workers(build):
    status = subprocess.run([build / "deploy/batonctl/batonctl", "get", "--rpc",
                             f"tcp://{ADDRESS}1:5557", "--timeout", f"{SECONDS // 3}s", "--output", "json",
                             "workers"], capture_output=True, text=True, timeout=SECONDS)
    return [worker["worker"] for worker in json.loads(status.stdout)]


def serve_decode(build):
    """Guest 2."""
    until((SHARE / "router-is-up").exists, "the router is up")
    decode, ready = start(build / "decode-node/baton-decode", "decode.log", "--lease", "120s",
                          *worker_args(2))
    await_ready(decode, ready)
    (SHARE / "decode-is-up").touch()
    until(lambda: (SHARE / "finished").exists() or decode.poll() is not None, "the end")
    end(decode)


def main():
    node, build = sys.argv[1], pathlib.Path(sys.argv[2])
    if node == "2":
        conformance(build)  # while guest 1 sets up; one device a guest is enough for it
        say("conformance passed")
        serve_decode(build)
    else:
        end_to_end(build)


if __name__ == "__main__":
    main()
