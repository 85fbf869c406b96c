"""Prefill and decode in network namespaces: packets are lost, late, doubled; the network parts.

Router and prefill workers live in this process's own namespace, decode workers in another, and
between them a third one in which wire_between.py bridges. `tc netem` would do, where the kernel has
it; this needs veth only. Skipped where namespaces are not allowed.
"""
import concurrent.futures
import ctypes
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import time

import cluster
import fleet

HERE, THERE = "10.201.77.1", "10.201.77.2"
CLONE_NEWNET = 0x40000000
AT_ONCE = 4
DEADLINE_S = 300


def sh(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def whole_checksums(device):
    """No offloading: what is bridged by hand has to be as on a wire."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for setting in (0x17, 0x1f, 0x24, 0x2c):        # STXCSUM, STSO, SGSO, SGRO
            value = bytearray(struct.pack("II", setting, 0))
            address = (ctypes.c_char * len(value)).from_buffer(value)
            request = struct.pack("16sP", device.encode(), ctypes.addressof(address))
            try:
                fcntl.ioctl(s, 0x8946, request)          # SIOCETHTOOL
            except OSError:
                if setting == 0x17:
                    raise


class Network:
    """Namespaces last as long as the processes in them: nothing is left behind."""

    def __init__(self, seed):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(f"unshare: {os.strerror(ctypes.get_errno())}")
        sh("ip", "link", "set", "lo", "up")
        self.far = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        self.bridge = None
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.holder = holder
        cluster.until(lambda: os.readlink(f"/proc/{self.far.pid}/ns/net")
                      != os.readlink("/proc/self/ns/net"), 10, "a namespace")
        for name, peer in (("here0", "here1"), ("there0", "there1")):
            sh("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
            whole_checksums(name)
            whole_checksums(peer)
            sh("ip", "link", "set", peer, "netns", holder.pid)
            sh("nsenter", "-t", holder.pid, "-n", "ip", "link", "set", peer, "up")
        sh("ip", "link", "set", "there0", "netns", self.far.pid)
        sh("ip", "addr", "add", f"{HERE}/24", "dev", "here0")
        sh("ip", "link", "set", "here0", "up")
        for command in (["addr", "add", f"{THERE}/24", "dev", "there0"],
                        ["link", "set", "there0", "up"], ["link", "set", "lo", "up"]):
            sh(*self.inside, "ip", *command)
        self.bridge = subprocess.Popen(
            ["nsenter", "-t", str(holder.pid), "-n", sys.executable,
             os.path.join(os.path.dirname(os.path.abspath(__file__)), "wire_between.py"),
             "here1", "there1", str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.bridge.stdout.readline().strip() == "bridging"
        cluster.until(lambda: subprocess.run(["ping", "-c", "1", "-W", "1", THERE], check=False,
                                             capture_output=True).returncode == 0
                      if os.path.exists("/bin/ping") or os.path.exists("/usr/bin/ping")
                      else self.reachable(), 20, "the link is up")

    def reachable(self):
        """Refused is an answer, too."""
        try:
            socket.create_connection((THERE, 9), 1).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    @property
    def inside(self):
        return ["nsenter", "-t", str(self.far.pid), "-n"]

    def state(self, loss=0.0, double=0.0, delay_ms=0.0, jitter_ms=0.0):
        self.bridge.stdin.write(f"{loss} {double} {delay_ms} {jitter_ms}\n")
        self.bridge.stdin.flush()
        assert self.bridge.stdout.readline().strip() == "set"

    def close(self):
        for process in (self.bridge, self.holder, self.far):
            if process:
                process.stdin.close()
                process.wait(60)


def run_all(f, bodies, want):
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda body: fleet.ask(f.http, body, 2 * DEADLINE_S), bodies))
    for index, (got, error) in enumerate(answers):
        assert error or got == want[index], f"request {index}: {got} is not {want[index]}"
        assert not error or len(error) > 8, error
    return [error for _, error in answers if error]


def landing(f):
    return any(d.metric("baton_kv_pages", 'state="reserved"') for d in f.workers("decode"))


def parts(f, network, r, bodies, want, seconds):
    """Rules 2 and 3. Nobody on one side hears the other for so long, from the middle of a transfer
    on."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(run_all, f, bodies, want)
        cluster.until(lambda: landing(f) or job.done(), 3 * DEADLINE_S, "a transfer")
        time.sleep(r.uniform(0, 0.3))
        network.state(loss=1)
        time.sleep(seconds)
        network.state()
        errors = job.result()
    f.wait_ready_all(90)
    f.wait_quiet(90)
    print(f"parted for {seconds} s: errors {errors}", flush=True)
    assert not run_all(f, bodies[:2], want)


def main():
    seed = fleet.seed()
    try:
        network = Network(seed)
    except OSError as error:
        cluster.skip(f"no network namespaces here: {error}")
    r = random.Random(seed)
    bodies = [fleet.body_of(seed * 20 + i, 500 if i % 2 else r.randint(1, 120), 10) for i in range(4)]
    want = fleet.expected(bodies)
    try:
        with fleet.Fleet() as f:
            f.router("--heartbeat", 200, "--max-attempts", 20, "--poison-deaths", 0, "--flap-lives", 0,
                     "--request-timeout", f"{DEADLINE_S}s", worker_endpoint=f"tcp://{HERE}:*")
            for i in range(2):
                f.add("decode", f"decode-{i}", "--lease", "2s", "--kv-pages", 200, "--transport", "tcp",
                      "--transport-host", THERE, "--listen", f"tcp://{THERE}:*",
                      prefix=network.inside).start()
                f.add("prefill", f"prefill-{i}", "--chunked-prefill-size", 128, "--kv-pages", 200,
                      "--transport", "tcp", "--transport-host", HERE, "--listen",
                      f"tcp://{HERE}:*").start()
            f.wait_ready_all()
            assert not run_all(f, bodies, want)
            f.wait_quiet()
            for state in ({"delay_ms": 20, "jitter_ms": 10}, {"loss": 0.03, "double": 0.05},
                          {"loss": 0.02, "delay_ms": 5, "jitter_ms": 15, "double": 0.02}):
                network.state(**state)
                errors = run_all(f, bodies, want)
                network.state()
                f.wait_quiet(90)
                print(f"{state}: errors {errors}", flush=True)
                assert len(errors) < len(bodies), errors
                assert not run_all(f, bodies, want)
            for seconds in (0.5, 3, 8):     # shorter than the lease; longer; longer than "lost"
                parts(f, network, r, bodies, want, seconds)
    finally:
        network.close()


if __name__ == "__main__":
    sys.exit(main())
