"""A cluster of real processes for one test: started by batonctl, ended by pid whatever happens.

The build directory comes from BATON_TEST_BUILD (meson sets it), the checkpoint from BATON_TEST_MODEL.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("BATON_TEST_BUILD", ROOT / "build"))
MODEL = pathlib.Path(os.environ.get("BATON_TEST_MODEL", ROOT / "tests/models/tiny"))
BATONCTL = BUILD / "deploy/batonctl/batonctl"
SKIP = 77
BUSY = ("vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting",
        "baton_quiesced_unacknowledged")      # of a worker that has nothing each is 0


# Outlives a test that is killed: at the end of its standard input it ends what is left.
GUARD = """
import shutil, subprocess, sys, time
sys.stdin.read()
for _ in range(2):
    subprocess.run([sys.argv[1], "down", "--grace", "0s", "--state-dir", sys.argv[2]],
                   capture_output=True)
    time.sleep(0.2)
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIP)


PATIENCE = 4    # how much slower than ours a machine may be before a wait gives up


def until(condition, seconds, what):
    """Polls; the last look is after the time is over, so a slow machine gets its chance."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= end
        value = condition()
        if value:
            return value
        if late:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def stand_still(pid):
    """Stops a process; none of its threads runs when this returns."""
    os.kill(pid, signal.SIGSTOP)

    def stopped():
        states = []
        for path in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
            try:
                states.append(path.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0])
            except OSError:
                pass                # a thread that has ended
        return all(state in "TtZX" for state in states)
    until(stopped, 60, f"process {pid} stands still")


def rpc_client():
    """The module; in a virtual environment it takes zmq and protobuf from the system's packages."""
    try:
        import baton_client
    except ImportError:
        sys.path.append("/usr/lib/python3/dist-packages")
        import baton_client
    return baton_client


class Cluster:
    """with Cluster(prefill=1, decode=2, prefill_args="…", curve=True) as c: c.http, c.rpc, c.status()"""

    def __init__(self, prefill=1, decode=1, model=MODEL, **args):
        self.dir = tempfile.mkdtemp(prefix="baton-test-")
        self.pids = {}
        self.args = ["--prefill", str(prefill), "--decode", str(decode), "--model", str(model),
                     "--port", "0", "--wait", "400s"]
        for name, value in args.items():
            self.args += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
        self.guard = subprocess.Popen([sys.executable, "-c", GUARD, str(BATONCTL), self.dir],
                                      stdin=subprocess.PIPE, start_new_session=True)

    def ctl(self, verb, *args, check=True, timeout=500):
        command = [str(BATONCTL), verb, "--state-dir", self.dir, *map(str, args)]
        if verb in ("status", "get", "chat", "generate", "describe", "top", "events", "tokenize"):
            command[2:2] = ["--timeout", "120s"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} gave {done.returncode}: {done.stderr}")
        return done

    def __enter__(self):
        try:
            self.ctl("up", *self.args)
            with open(os.path.join(self.dir, "default/cluster.json"), encoding="utf-8") as file:
                state = json.load(file)
            self.http, self.rpc = state["http"], state["rpc"]
            self.routers = state["routers"]
            self.pids = {p["id"]: p["pid"] for p in state["processes"]}
            return self
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind, value, trace):
        logs = self.logs() if kind else None
        clean = self.stop()
        if logs:
            print(logs, file=sys.stderr)
        elif not clean:
            raise AssertionError("a process did not end in order")

    def logs(self):
        out = []
        for path in sorted(pathlib.Path(self.dir, "default").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-60:]
            out.append(f"---- {path.name}\n" + "\n".join(lines))
        return "\n".join(out)

    def sanitizer_reports(self):
        marks = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:",
                 "WARNING: ThreadSanitizer", "broken invariant", "assertion failed")
        found = []
        for path in pathlib.Path(self.dir, "default").glob("*.log"):
            text = path.read_text(errors="replace")
            found += [f"{path.name}: {line}" for line in text.splitlines()
                      if any(mark in line for mark in marks)]
        return found

    def stop(self):
        """Ends everything; True when all processes had lived until now and ended in order."""
        if not self.dir:
            return True
        directory, clean = self.dir, True
        kept = pathlib.Path(directory, "default")
        logs = None
        for pid in self.pids.values():
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        if kept.exists():
            for name, pid in reversed(self.pids.items()):
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
            try:
                until(lambda: not any(self.alive(n) for n in self.pids), 30, "an orderly end")
            except AssertionError:
                clean = False
            reports = self.sanitizer_reports()
            if reports:
                logs = "\n".join(reports) + "\n" + self.logs()
        try:
            self.dir = directory
            self.ctl("down", "--grace", "0s", check=False)
        finally:
            self.dir = None
            shutil.rmtree(directory, ignore_errors=True)
            self.guard.kill()
            self.guard.wait()
            self.guard.stdin.close()
        if logs:
            print(logs, file=sys.stderr)
            raise AssertionError("a sanitizer or an invariant complained")
        return clean

    def alive(self, name):
        try:
            with open(f"/proc/{self.pids[name]}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
                return fields[0] not in "ZX" or int(fields[17]) > 1     # other threads may still end
        except OSError:
            return False

    def kill(self, name, sig=signal.SIGKILL):
        os.kill(self.pids[name], sig)

    def status(self):
        return json.loads(self.ctl("status", "--output", "json").stdout)

    def metrics(self, endpoint, seconds=60):
        """{'name{labels}': value} as a worker says it itself."""
        rpc, worker = rpc_client(), rpc_client().pb["worker"]
        secret = os.path.join(self.dir, "default/operator.key") if "#" in endpoint else None
        with rpc.Client(endpoint, secret) as client:
            text = client.call("baton.v1.Worker/Metrics", worker.MetricsRequest(),
                               worker.MetricsResponse, seconds).text
        return {key: float(value) for key, value in
                (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")}

    def busy(self, endpoint):
        """Whether a worker has anything; also when it does not say."""
        try:
            metrics = self.metrics(endpoint, 10)
        except (TimeoutError, rpc_client().RpcError):
            return True
        values = [value for key, value in metrics.items() if re.split(r"[{ ]", key)[0] in BUSY]
        return not values or any(values)

    def quiet(self):
        """True when no request is left anywhere and every page of every live worker is free: as the
        workers say it themselves, as what the router knows may be a heartbeat old."""
        status = self.status()
        return (not status["requests"] and status["queued"] == 0 and not any(
            self.busy(w["rpc"]) for w in status["workers"] if w["state"] != "lost"))

    def wait_quiet(self, seconds=30):
        try:
            until(self.quiet, seconds, "all pages free and no request left")
        except AssertionError:
            print(json.dumps(self.status(), indent=1), file=sys.stderr)
            raise
