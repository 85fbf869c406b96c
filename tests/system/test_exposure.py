#!/usr/bin/env python3
"""What a cluster shows to those it does not know. With defaults no program, whatever its role,
transport or group, listens on an address of the network; and with keys, TLS and CURVE, at the level
of logs that tells most, no secret stands in a log, a page or what operators are told."""
import base64
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import cluster
import openai_http

LISTEN = "0A"
KEYS = ["sk-exposure-one-6f1d2c3b", "sk-exposure-two-a9b8c7d6"]
WRONG = "sk-exposure-of-nobody-55e1"


def ip_of(text):
    """An address of /proc/net: 32 bit words in the machine's order."""
    words = [bytes.fromhex(text[i:i + 8])[::-1] for i in range(0, len(text), 8)]
    return b"".join(words)


def loopback(address):
    if len(address) == 16 and address[:12] == bytes(10) + b"\xff\xff":
        address = address[12:]
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def sockets(pid):
    """[(protocol, address, port)] on which a process waits for others."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in pathlib.Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and (protocol[0] == "u" or words[3] == LISTEN):
                address, port = words[1].split(":")
                found.append((protocol, ip_of(address), int(port, 16)))
    return found


def all_on_loopback(c, what):
    counts = {}
    for name, pid in c.pids.items():
        listening = sockets(pid)
        wide = [s for s in listening if not loopback(s[1])]
        assert not wide, f"{what}: {name} waits for everybody at {wide}"
        counts[name] = len(listening)
    assert all(counts[name] for name in c.pids if "." not in name), counts
    print(f"{what}: all on loopback, {counts}", flush=True)


def defaults_are_loopback():
    for program in ("router/baton-router", "prefill-node/baton-prefill", "decode-node/baton-decode"):
        told = subprocess.run([cluster.BUILD / program, "--help"], capture_output=True, text=True,
                              check=True).stdout
        for wide in ("0.0.0.0", "[::]", "default *", "tcp://*:"):
            assert wide not in told, (program, wide)


def listening():
    defaults_are_loopback()
    body = {"prompt": list(range(3, 300)), "max_tokens": 4, "ignore_eos": True}
    for what, args in [("defaults", {}), ("over tcp", {"prefill_args": "--transport tcp",
                                                      "decode_args": "--transport tcp"}),
                       ("groups", {"prefill_tp": 2, "decode_dp": 2})]:
        with cluster.Cluster(**args) as c:
            all_on_loopback(c, what)
            openai_http.post(c.http, "/v1/completions", body)
            all_on_loopback(c, what + ", at work")


def certificate(directory):
    """Returns the lines of its key."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-days", "2", "-keyout", directory / "tls.key", "-out", directory / "tls.crt"],
                   check=True, capture_output=True)
    (directory / "tls.key").chmod(0o600)
    return [line for line in (directory / "tls.key").read_text().splitlines() if "-----" not in line]


def fetch(c, directory, path, body=None, key=None):
    context = ssl.create_default_context(cafile=directory / "tls.crt")
    port = urllib.parse.urlsplit(c.http).port
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}",
                                     data=None if body is None else json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, context=context, timeout=200) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def forms(secret):
    """How it could come to stand somewhere."""
    return {secret, secret.encode().hex(), base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]}


def ask_all(c, directory, keys_file):
    """Requests that go well and others, over HTTP and RPC; what was answered."""
    body = {"prompt": "Once upon a time", "max_tokens": 4}
    told = []
    for key in KEYS:
        told.append(fetch(c, directory, "/v1/completions", body, key))
        assert told[-1][0] == 200, told[-1]
    for key in (WRONG, None, "x" * 5000):
        told.append(fetch(c, directory, "/v1/completions", body, key))
        assert told[-1][0] in (401, 431), told[-1]
    told.append(fetch(c, directory, "/v1/completions", {**body, "max_tokens": 0}, KEYS[0]))
    # A file that is wrong is complained of, without what stands in it.
    good = keys_file.read_text()
    keys_file.write_text(good.replace('"keys": ["', '"keys": ["' + KEYS[1] + '", 5, "', 1))
    log = pathlib.Path(c.dir, "default/router.log")
    cluster.until(lambda: "keys.json" in log.read_text(errors="replace"), 60, "it complains")
    keys_file.write_text(good)
    for path in ("/metrics", "/status", "/", "/v1/models", "/metrics/workers"):
        told.append(fetch(c, directory, path, None, KEYS[0]))
        told.append(fetch(c, directory, path, None, WRONG))
    assert any(code == 200 for code, _ in told[-10:])
    return "\n".join(text for _, text in told)


def secrets_stay(directory):
    keys_file = directory / "keys.json"
    keys_file.write_text(json.dumps({"tenants": [
        {"name": f"tenant-{i}", "keys": [key]} for i, key in enumerate(KEYS)]}))
    secrets = [*KEYS, WRONG, *certificate(directory)]
    debug = "--log-level debug"
    with cluster.Cluster(curve=True, prefill_args=debug, decode_args=debug,
                         router_args=f"{debug} --api-keys {keys_file} --tls-cert "
                                     f"{directory / 'tls.crt'} --tls-key {directory / 'tls.key'}") as c:
        home = pathlib.Path(c.dir, "default")
        for path in home.glob("*.key"):
            secrets.append(re.search("^secret-key ([0-9a-f]{64})$", path.read_text(), re.M)[1])
        assert len(secrets) > 8, secrets
        texts = {"answers": ask_all(c, directory, keys_file),
                 "batonctl status": c.ctl("status", "--output", "json").stdout}
        for name, pid in c.pids.items():
            texts["command of " + name] = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        c.wait_quiet()
        for path in home.glob("*.log"):
            texts[path.name] = path.read_text(errors="replace")
        assert {"router.log", "prefill-0.log", "decode-0.log"} <= set(texts), texts.keys()
        assert all("debug" in texts["command of " + name] for name in c.pids)
        for secret in secrets:
            for form in forms(secret):
                for name, text in texts.items():
                    assert form.lower() not in text.lower(), f"a secret in {name}: {form[:12]}…"
        print(f"{len(secrets)} secrets are in none of {sorted(texts)}", flush=True)


def main():
    listening()
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        secrets_stay(pathlib.Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
