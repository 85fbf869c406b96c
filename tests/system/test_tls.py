"""HTTP over TLS: answers, clients that leave, other certificates, and what is refused."""
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.parse

import cluster

BODY = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}


def make(directory, name, mode=0o600):
    cert, key = os.path.join(directory, name + ".pem"), os.path.join(directory, name + ".key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    os.chmod(key, mode)
    return cert, key


def connect(base, cert, timeout=120):
    url = urllib.parse.urlsplit(base)
    context = ssl.create_default_context(cafile=cert)
    plain = socket.create_connection((url.hostname, url.port), timeout=timeout)
    return context.wrap_socket(plain, server_hostname=url.hostname)


def send(connection, body):
    data = json.dumps(body).encode()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                       b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
                       + data)


def everything(connection):
    out = b""
    while part := connection.recv(65536):
        out += part
    return out


def ask(base, cert, **changes):
    with connect(base, cert) as connection:
        send(connection, {**BODY, **changes})
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return body


def check_answers(c, cert):
    whole = json.loads(ask(c.http, cert))["choices"][0]["text"]
    stream = ask(c.http, cert, stream=True).decode()
    events = [json.loads(line[6:]) for line in stream.splitlines()
              if line.startswith("data: {")]
    assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == whole
    assert "data: [DONE]" in stream
    long = [7] * 1500                       # of several records
    assert json.loads(ask(c.http, cert, prompt=long))["usage"]["prompt_tokens"] == 1500
    with connect(c.http, cert) as connection:
        assert connection.version() in ("TLSv1.2", "TLSv1.3"), connection.version()


def check_leaving(c, cert):
    """Before the first byte, within a stream, and without a word to the TLS layer."""
    for how in range(6):
        connection = connect(c.http, cert)
        send(connection, {**BODY, "max_tokens": 1900, "ignore_eos": True, "stream": how % 2 == 0})
        if how in (2, 4):
            connection.recv(10)
        if how >= 3:
            os.close(connection.detach())   # no close_notify
        else:
            connection.close()
    c.wait_quiet(60)


def check_strangers(c, other):
    try:
        connect(c.http, other)
        raise AssertionError("a certificate of somebody else is trusted")
    except ssl.SSLCertVerificationError:
        pass
    url = urllib.parse.urlsplit(c.http)
    with socket.create_connection((url.hostname, url.port), timeout=120) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = plain.recv(1000)
        except ConnectionResetError:
            answer = b""
        assert b"200" not in answer and b"ok" not in answer, answer
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        plain = socket.create_connection((url.hostname, url.port), timeout=120)
        old.wrap_socket(plain)
        raise AssertionError("TLS 1.1 is spoken")
    except (ssl.SSLError, ConnectionResetError):
        pass


def check_reload(c, cert, key, directory):
    """New connections get the new certificate; one that is there goes on."""
    new_cert, new_key = make(directory, "second")
    with connect(c.http, cert) as before:
        bad = pathlib.Path(cert + ".bad")
        bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        trusted = cert + ".trusted"
        pathlib.Path(trusted).write_bytes(pathlib.Path(cert).read_bytes())
        os.rename(bad, cert)
        cluster.until(lambda: "the certificate before stays in force" in c.logs(), 20,
                      "the bad file is seen")
        assert ask(c.http, trusted)
        os.rename(new_key, key)
        os.rename(new_cert, cert)

        def new():
            try:
                return ask(c.http, cert)
            except ssl.SSLError:
                return None
        cluster.until(new, 20, "the new certificate is shown")
        send(before, BODY)
        assert everything(before).startswith(b"HTTP/1.1 200")


def check_refusals(directory):
    cert, key = make(directory, "open", 0o644)
    _, other_key = make(directory, "other")
    router = cluster.BUILD / "router/baton-router"
    for flags, message in (
            (["--tls-cert", cert, "--tls-key", key], "mode 0644 lets others at the key"),
            (["--tls-cert", cert, "--tls-key", other_key], "is not the key of"),
            (["--tls-cert", other_key, "--tls-key", other_key], other_key + ": "),
            (["--tls-cert", "/nowhere", "--tls-key", other_key], "/nowhere: No such file")):
        done = subprocess.run([str(router), "--model", str(cluster.MODEL), "--port", "0",
                               "--worker-endpoint", "tcp://127.0.0.1:*", *flags],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and message in done.stderr, (flags, done.stderr)


def main():
    with tempfile.TemporaryDirectory() as directory:
        cert, key = make(directory, "first")
        other = make(directory, "stranger")[0]
        with cluster.Cluster(prefill=1, decode=1,
                             router_args=f"--tls-cert {cert} --tls-key {key}") as c:
            assert c.http.startswith("https://")
            check_answers(c, cert)
            check_leaving(c, cert)
            check_strangers(c, other)
            check_reload(c, cert, key, directory)
        check_refusals(directory)
    print("answers over TLS are whole; a new certificate is taken up; the rest is refused")


if __name__ == "__main__":
    sys.exit(main())
