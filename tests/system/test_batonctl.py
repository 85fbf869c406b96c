"""The operator's verbs against a real cluster, and what they say when something is wrong."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request

import cluster

# Stands for all three programs: tells what it was given, waits until all it waits for have told
# theirs (which are the ranks of its group), is ready, and ends at SIGTERM or with the test.
STUB = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name = args.get("--worker-id", "router")
told = pathlib.Path(sys.argv[0]).parent
held = [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
secret = args.get("--group-secret-file")
args.update(pid=os.getpid(), held=held, secret=secret and open(secret).read(),
            secret_mode=secret and os.stat(secret).st_mode & 0o777)
key = args.get("--curve-secret-file")
if key:
    args.update(key=open(key).read(), key_mode=os.stat(key).st_mode & 0o777,
                allow=open(args["--curve-allow-file"]).read())
(told / (name + ".new")).write_text(json.dumps(args))
(told / (name + ".new")).rename(told / (name + ".told"))
if (told / (name + ".ends")).exists():
    sys.exit("it can not go on")
size = int(args.get("--tensor-parallel-size", args.get("--data-parallel-size", 1)))
leader = name if args.get("--rank", "0") == "0" else name.rsplit(".", 1)[0]
ranks = [leader] + [f"{leader}.{r}" for r in range(1, size)]
def nap():
    time.sleep(0.01)
    os.kill(int(os.environ["STUB_TEST"]), 0)
while not all((told / (r + ".told")).exists() for r in ranks) or (told / (name + ".waits")).exists():
    nap()
path = pathlib.Path(args["--ready-file"])
path.with_suffix(".tmp").write_text(json.dumps({"http": "http://h", "rpc": "tcp://" + "h" * 253 +
                                               ":65535" + ("#" + "ab" * 32 if key else "")}))
path.with_suffix(".tmp").rename(path)
while True:
    nap()
"""


def run(*args, binary=cluster.BATONCTL, env=None):
    done = subprocess.run([str(binary), *map(str, args)], capture_output=True, text=True,
                          timeout=120, env=env)
    return done.returncode, done.stdout, done.stderr


class Stubs:
    """A batonctl whose programs are stubs, in a directory of its own."""

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.state = self.dir / "state"
        self.binary = self.dir / "bin/batonctl"
        self.binary.parent.mkdir()
        shutil.copy2(cluster.BATONCTL, self.binary)
        for name in ("baton-router", "baton-prefill", "baton-decode"):
            stub = self.binary.parent / name
            stub.write_text(f"#!{sys.executable}\n{STUB}")
            stub.chmod(0o755)
        os.environ["STUB_TEST"] = str(os.getpid())

    def mark(self, name, what):
        return self.binary.parent / f"{name}.{what}"

    def told(self):
        return {p.stem: json.loads(p.read_text()) for p in self.binary.parent.glob("*.told")}

    def command(self, *args):
        return ["up", "--model", cluster.MODEL, "--port", 0, "--state-dir", self.state, "--wait",
                "60s", *args]

    def forget(self):
        for kind in ("told", "waits", "ends"):
            for path in self.binary.parent.glob("*." + kind):
                path.unlink()

    def assert_all_gone(self):
        assert not (self.state / "default").exists()
        for name, args in self.told().items():
            assert not running(args["pid"]), name
        self.forget()


def running(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def stubs():
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        s = Stubs(directory)
        try:
            yield s
        finally:
            for args in s.told().values():
                if running(args["pid"]):
                    os.kill(args["pid"], signal.SIGKILL)


def ranks_are_started_together():
    """Every rank with its place; those of a group wait for each other, so none may be waited for
    before all are started."""
    with stubs() as s:
        code, out, err = run(*s.command("--prefill", 2, "--prefill-tp", 2, "--decode-dp", 3),
                             binary=s.binary)
        assert code == 0, err
        assert "router, 2 prefill (2 ranks each), 1 decode (3 ranks)\n" in out, out
        told = s.told()
        assert set(told) == {"router", "prefill-0", "prefill-0.1", "prefill-1", "prefill-1.1",
                             "decode-0", "decode-0.1", "decode-0.2"}, told
        for name, args in told.items():
            assert args["held"] == [], name
            if name == "router":
                continue
            worker, _, rank = name.partition(".")
            size = "--tensor-parallel-size" if "prefill" in name else "--data-parallel-size"
            assert args[size] == ("2" if "prefill" in name else "3"), (name, args)
            assert args["--rank"] == (rank or "0"), (name, args)
            assert args["--group-endpoint"] == f"ipc://{s.state}/default/{worker}.sock", (name, args)
            assert args["secret_mode"] == 0o600 and len(args["secret"]) == 64, (name, args)
            assert args["secret"] == told[worker]["secret"], name
        assert len({args["secret"] for args in told.values()} - {None}) == 3
        state = json.loads((s.state / "default/cluster.json").read_text())
        assert {p["id"]: p["pid"] for p in state["processes"]} == {n: a["pid"] for n, a in
                                                                   told.items()}
        code, _, err = run("down", "--state-dir", s.state, binary=s.binary)
        assert code == 0, err
        s.assert_all_gone()
        code, out, err = run(*s.command(), binary=s.binary, env={**os.environ, "BATON_DECODE_DP": "2"})
        assert code == 0 and "router, 1 prefill, 1 decode (2 ranks)\n" in out, (out, err)
        assert not {"--rank", "--tensor-parallel-size", "--group-endpoint"} & set(
            s.told()["prefill-0"]), s.told()
        assert s.told()["decode-0.1"]["--rank"] == "1"
        run("down", "--state-dir", s.state, binary=s.binary)
        s.assert_all_gone()


def rank_that_ends_ends_the_start():
    with stubs() as s:
        for name in ("decode-0.2", "decode-0"):
            s.mark(name, "ends").touch()
            for other in {"decode-0", "decode-0.1", "decode-0.2"} - {name}:
                s.mark(other, "waits").touch()
            code, _, err = run(*s.command("--decode-dp", 3), binary=s.binary)
            assert code == 3 and f"{name} ended while starting" in err, (code, err)
            assert "it can not go on" in err, err
            s.assert_all_gone()
        deep = s.state / ("x" * 90)
        code, _, err = run("up", "--model", cluster.MODEL, "--state-dir", deep, "--decode-dp", 2,
                           binary=s.binary)
        assert code == 2 and "--state-dir" in err and "107 bytes" in err, (code, err)
        code, _, err = run(*s.command("--decode-cpus", 0, "--decode-dp", 2), binary=s.binary)
        assert code == 2 and "1 for 2 workers" in err, (code, err)
        s.assert_all_gone()


def interrupted_start_leaves_nothing():
    with stubs() as s:
        for sig in (signal.SIGINT, signal.SIGTERM):
            s.mark("decode-0.1", "waits").touch()
            child = subprocess.Popen(
                [str(s.binary), *map(str, s.command("--decode-dp", 2))], stderr=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
            cluster.until(lambda: {"decode-0", "decode-0.1"} <= set(s.told()), 20, "ranks that wait")
            child.send_signal(sig)
            _, err = child.communicate(timeout=120)
            assert child.returncode == 1 and sig.name in err, (child.returncode, err)
            s.assert_all_gone()
        # Who ignores a signal, as a job in the background of a script does, is not ended by it.
        s.mark("decode-0", "waits").touch()
        child = subprocess.Popen([str(s.binary), *map(str, s.command())], stderr=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True,
                                 preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        cluster.until(lambda: "decode-0" in s.told(), 20, "a worker that waits")
        child.send_signal(signal.SIGINT)
        s.mark("decode-0", "waits").unlink()
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0 and "1 prefill, 1 decode\n" in out, (out, err)
        run("down", "--state-dir", s.state, binary=s.binary)
        s.assert_all_gone()


def keys_are_made_for_all():
    """Before the first process starts, for each its own; the router's stands in its endpoint."""
    with stubs() as s:
        code, out, err = run(*s.command("--prefill-tp", 2, "--decode", 2, "--curve"), binary=s.binary)
        assert code == 0 and f"{s.state}/default/allow" in out, (out, err)
        told = s.told()
        assert set(told) == {"router", "prefill-0", "prefill-0.1", "decode-0", "decode-1"}, told
        for name, args in told.items():
            assert args["--curve-secret-file"] == f"{s.state}/default/{name}.key", (name, args)
            assert args["key_mode"] == 0o600 and "secret-key " in args["key"], (name, args)
            public = args["key"].split()[3]
            assert f"{public} {name}\n" in args["allow"] and args["allow"].count(public) == 1, args
            assert args["allow"] == told["router"]["allow"], "the list is whole before anybody starts"
            assert name == "router" or args["--router"] == f"tcp://{'h' * 253}:65535#{'ab' * 32}", args
        assert len({args["key"] for args in told.values()}) == 5
        assert " operator\n" in told["router"]["allow"]
        state = json.loads((s.state / "default/cluster.json").read_text())
        assert state["curve"] is True and state["rpc"] == told["decode-0"]["--router"], state
        code, _, err = run("down", "--state-dir", s.state, binary=s.binary)
        assert code == 0, err
        s.assert_all_gone()
        s.mark("decode-0", "ends").touch()
        code, _, err = run(*s.command("--curve"), binary=s.binary)
        assert code == 3 and "decode-0 ended while starting" in err, (code, err)
        s.assert_all_gone()
        code, _, err = run(*s.command(), binary=s.binary)
        assert code == 0 and "key" not in s.told()["router"], (err, s.told())
        assert json.loads((s.state / "default/cluster.json").read_text())["curve"] is False
        run("down", "--state-dir", s.state, binary=s.binary)
        s.assert_all_gone()


def wrong_usage(state):
    code, out, _ = run("--help")
    assert code == 0 and "chat" in out
    for args, code_wanted, text in [
            ([], 2, "batonctl VERB"), (["fly"], 2, "fly"), (["up"], 2, "--model"),
            (["up", "--model", "/does/not/exist", "--state-dir", state], 1, "/does/not/exist"),
            (["up", "--model", state, "--state-dir", state], 3, "config.json"),
            (["up", "--model", state, "--prefill", "-1"], 2, "--prefill"),
            (["up", "--model", state, "--prefill-tp", "17"], 2, "--prefill-tp"),
            (["up", "--model", state, "--decode-dp", "0"], 2, "--decode-dp"),
            (["up", "--model", state, "--name", "../x"], 2, "--name"),
            (["up", "--help"], 0, "loopback"), (["keygen", "--out", "/does/not/exist/k"], 1, "exist"),
            (["up", "--model", cluster.MODEL, "--port", "0", "--decode-cpus", "0-x", "--state-dir", state],
             2, "no number at 'x'"),
            (["down", "--state-dir", state], 3, "default"),
            (["status", "--state-dir", state], 3, "default"),
            (["status", "--rpc", "tcp://127.0.0.1:1", "--timeout", "500ms"], 3, ""),
            (["get", "--state-dir", state, "nothing"], 2, "nothing"),
            (["generate", "--state-dir", state], 2, "prompt"),
            (["chat", "--state-dir", state, "--temperature", "hot", "x"], 2, "--temperature")]:
        code, out, err = run(*args)
        assert code == code_wanted, (args, code, out, err)
        assert text in out + err, (args, err)


def decode_workers_do_without_prefill_workers():
    """Without prefill workers the router is told that decode workers compute the prompts, unless it is
    told otherwise; and so they do."""
    with stubs() as s:
        for args, mode in (([], "always"), (["--local-prefill", "never"], "never")):
            code, out, err = run(*s.command("--prefill", 0, *args), binary=s.binary)
            assert code == 0, err
            told = s.told()
            assert set(told) == {"router", "decode-0"}, told
            assert told["router"]["--local-prefill"] == mode, told["router"]
            assert run("down", "--state-dir", s.state, binary=s.binary)[0] == 0
            s.assert_all_gone()
    with cluster.Cluster(prefill=0, decode=1, decode_dp=2) as c:
        assert set(c.pids) == {"router", "decode-0", "decode-0.1"}, c.pids
        with urllib.request.urlopen(f"{c.http}/ready", timeout=120) as ready:
            assert ready.status == 200
        text = c.ctl("generate", "--temperature", "0", "--max-tokens", "5", "Once upon a time").stdout
        assert text.startswith("Once upon a time there was a playful"), text
        c.wait_quiet()


def cores_of_their_own():
    """Workers run on the cpus given, in the arithmetic given; the metrics say which."""
    cpus = sorted(os.sched_getaffinity(0))
    with cluster.Cluster(prefill_cpus=cpus[0], decode_cpus=cpus[-1], dtype="bfloat16") as c:
        assert os.sched_getaffinity(c.pids["prefill-0"]) == {cpus[0]}
        assert os.sched_getaffinity(c.pids["decode-0"]) == {cpus[-1]}
        assert "router" in c.pids and os.sched_getaffinity(c.pids["router"]) == set(cpus)
        answer = c.ctl("chat", "--temperature", "0", "Who are you?").stdout
        assert "small model" in answer, answer
        log = c.logs()
        assert log.count("bfloat16 arithmetic") == 2, log
        c.wait_quiet()


def groups_serve():
    """Workers of several ranks: what operators see of them, and the same answer as from one rank."""
    with cluster.Cluster(prefill=1, decode=1, prefill_tp=2, decode_dp=4) as c:
        assert set(c.pids) == {"router", "prefill-0", "prefill-0.1", "decode-0", "decode-0.1",
                               "decode-0.2", "decode-0.3"}, c.pids
        cluster.until(lambda: all(w["state"] == "ready" for w in c.status()["workers"]), 30,
                      "all ranks are ready")
        workers = {w["worker"]: w["group"] for w in c.status()["workers"]}
        assert workers == {"prefill-0": {"name": "prefill-0", "rank": 0, "size": 2}} | {
            "decode-0" + f".{r}" * (r > 0): {"name": "decode-0", "rank": r, "size": 4}
            for r in range(4)}, workers
        table = c.ctl("get", "workers").stdout
        assert "prefill-0 0/2" in table and "decode-0 3/4" in table, table
        text = c.ctl("generate", "--temperature", "0", "--max-tokens", "5", "Once upon a time").stdout
        assert text.startswith("Once upon a time there was a playful"), text
        far = c.ctl("doctor", "prefill-0", "decode-0.3", check=False)
        assert far.returncode in (0, 1) and "prefill-0 to decode-0.3" in far.stdout, far
        follower = c.ctl("doctor", "prefill-0.1", "decode-0", check=False)
        assert follower.returncode == 3 and "a rank of prefill-0" in follower.stderr, follower
        c.wait_quiet()
        c.kill("decode-0.2")
        cluster.until(lambda: not any(c.alive(f"decode-0.{r}") for r in (1, 2, 3)) and
                      not c.alive("decode-0"), 60, "a group ends as one")
        # Those that are lost are shown for a while.
        cluster.until(lambda: {w["state"] for w in c.status()["workers"] if w["role"] == "decode"}
                      <= {"lost"}, 30, "the router saw it")


def main():
    ranks_are_started_together()
    rank_that_ends_ends_the_start()
    interrupted_start_leaves_nothing()
    keys_are_made_for_all()
    decode_workers_do_without_prefill_workers()
    cores_of_their_own()
    groups_serve()
    with tempfile.TemporaryDirectory(prefix="baton-test-") as state:
        wrong_usage(state)
    with cluster.Cluster(prefill=1, decode=1, served_model_name="tiny") as c:
        workers = json.loads(c.ctl("get", "--output", "json", "workers").stdout)
        assert {w["role"] for w in workers} == {"prefill", "decode"}
        cluster.until(lambda: all(w["state"] == "ready" for w in c.status()["workers"]), 30,
                      "both are ready")
        assert "prefill-0" in c.ctl("get", "workers").stdout
        assert all(w["group"] is None for w in workers), workers
        assert json.loads(c.ctl("get", "--output", "json", "requests").stdout) == []
        assert c.status()["model"] == "tiny"
        again = c.ctl("up", *c.args, check=False)
        assert again.returncode == 1 and "is running" in again.stderr, again
        answer = c.ctl("chat", "--temperature", "0", "--timing",
                       "Tell me a story about a fox.").stdout
        assert answer.startswith("Once upon a time there was a playful fox named Lucy."), answer
        for word in ("TTFT", "TPOT", "KV pushed", "transport", "hidden"):
            assert word in answer, answer
        workers = json.loads(c.ctl("get", "--output", "json", "workers").stdout)
        assert {w["transport"] for w in workers} <= {"shm", "tcp", "rdma"}, workers
        with urllib.request.urlopen(f"{c.http}/metrics", timeout=120) as metrics:
            assert "# TYPE baton_http_clients_gone_total" in metrics.read().decode()
        text = c.ctl("generate", "--temperature", "0", "--max-tokens", "5", "Once upon a time").stdout
        assert text.startswith("Once upon a time there was a playful"), text
        talk = subprocess.run([str(cluster.BATONCTL), "chat", "--state-dir", c.dir, "--temperature",
                               "0"], input="Who are you?\nWhat is 7 + 5?\n", capture_output=True,
                              text=True, timeout=120)
        assert talk.returncode == 0 and "small model" in talk.stdout, talk
        bad = c.ctl("generate", "--max-tokens", "100000", "x", check=False)
        assert bad.returncode == 2 and "max_tokens" in bad.stderr, bad
        c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
