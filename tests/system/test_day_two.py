"""What an operator's day needs of batonctl: every verb explains itself, completes, has a page and
speaks JSON; looking at a small cluster with get, describe, top, logs, events and tokenize."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cluster
from cluster import BATONCTL, BUILD, Cluster, until

PATIENCE = 120
QUICK = {**os.environ, "BATON_COMPLETE_TIMEOUT": "60s"}


def run(*args, **more):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=PATIENCE,
                          stdin=subprocess.DEVNULL, env=QUICK, **more)


def complete(*words):
    done = run(BATONCTL, "__complete", "--", *words)
    assert done.returncode == 0 and not done.stderr, done
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


def verbs():
    return [word for word in complete("") if not word.startswith("-")]


def lint(pages):
    pages = sorted(map(str, pathlib.Path(pages).glob("*.1")))
    if not shutil.which("groff"):
        print("groff is not there: pages are not checked")
        return
    done = run("groff", "-Kutf8", "-man", "-ww", "-z", "-Tutf8", *pages)
    assert done.returncode == 0 and not done.stderr, done.stderr


def check_verb(verb, pages):
    done = run(BATONCTL, verb, "--help")
    assert done.returncode == 0, (verb, done)
    assert re.search(rf"^  (\S+ )*batonctl {verb}\b|^  .*<\(batonctl {verb}\b", done.stdout, re.M), \
        f"{verb}: no example in\n{done.stdout}"
    assert re.search(r"^  -o, --output \S+$", done.stdout, re.M), f"{verb}: no --output"
    assert "--output=json" in complete(verb, "--output=j"), verb
    flags = re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", done.stdout, re.M)
    assert set(flags) <= set(complete(verb, "--")), (verb, flags)
    wrong = run(BATONCTL, verb, "--outptu=json")
    assert wrong.returncode == (3 if verb == "doctor" else 2) and not wrong.stdout, (verb, wrong)
    assert "'--outptu=json'; did you mean --output?" in wrong.stderr, (verb, wrong)
    page = pathlib.Path(pages, f"batonctl-{verb}.1")
    text = page.read_text()
    for section in ("NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES", "EXIT STATUS"):
        assert f".SH {section}\n" in text, f"{page}: no {section}"


def test_every_verb():
    with tempfile.TemporaryDirectory() as pages:
        done = run(BATONCTL, "man", "--dir", pages, "--output", "json")
        files = json.loads(done.stdout)["files"]
        assert f"{pages}/batonctl.1" in files
        helped = run(BATONCTL, "--help").stdout
        for verb in verbs():
            assert f"\n  {verb} " in helped, verb
            check_verb(verb, pages)
        assert len(files) == 1 + len(verbs())
        for program in ("router/baton-router", "prefill-node/baton-prefill",
                        "decode-node/baton-decode"):
            page = pathlib.Path(pages, os.path.basename(program) + ".1")
            page.write_text(run(BUILD / program, "--help=man").stdout)
            assert ".SH OPTIONS" in page.read_text()
        lint(pages)
    assert complete("status", "--output", "j") == ["json"]
    assert "did you mean 'status'?" in run(BATONCTL, "statsu").stderr
    assert run(BATONCTL, "statsu").returncode == 2


def test_shells():
    for shell in ("bash", "zsh", "fish"):
        script = run(BATONCTL, "completion", shell).stdout
        if not shutil.which(shell):
            print(f"{shell} is not there: its script is not run")
            continue
        with tempfile.NamedTemporaryFile("w", suffix=shell) as file:
            file.write(script)
            file.flush()
            checked = run(shell, "-n", file.name)
            assert checked.returncode == 0, (shell, checked.stderr)
    ask = ('source <("$0" completion bash); COMP_WORDS=("$0" {}); COMP_CWORD={}; '
           '_batonctl 2>&1; printf "%s\\n" "${{COMPREPLY[@]}}"')
    for words, count, expected in (("stat", 1, "status"), ("get --output = js", 4, "json"),
                                   ("completion fi", 2, "fish"), ("up --served-mo", 2,
                                                                 "--served-model-name")):
        done = run("bash", "-c", ask.format(words, count), BATONCTL)
        assert expected in done.stdout.split(), (words, done)


def as_json(c, *args):
    return json.loads(c.ctl(args[0], "-o", "json", *args[1:]).stdout)


def test_looking(c):
    for what in ("workers", "requests", "routers"):
        assert isinstance(as_json(c, "get", what), list)
    head = c.ctl("get", "workers", "-o", "wide").stdout.splitlines()[0]
    assert "ENDPOINT" in head and "ENDPOINT" not in c.ctl("get", "workers").stdout
    until(lambda: [r["state"] for r in as_json(c, "get", "routers")] == ["ready"], 30, "the router is ready")
    until(lambda: as_json(c, "describe", "worker", "decode-0")["state"] == "ready", 30, "decode-0 is ready")
    worker = as_json(c, "describe", "worker", "decode-0")
    assert worker["fingerprint"]["page_tokens"] == 64
    assert worker["answers"] is True and worker["events"]
    whole = as_json(c, "describe", "cluster")
    assert {w["worker"] for w in whole["workers"]} == {"prefill-0", "decode-0"}
    nobody = c.ctl("describe", "worker", "nobody", check=False)
    assert nobody.returncode == 1 and "nobody" in nobody.stderr
    top = as_json(c, "top")
    assert len(top["workers"]) == 2 and "stats" in top
    assert "WORKER" in c.ctl("top", "--once").stdout
    state = ["--state-dir", c.dir]
    assert set(complete("describe", *state, "worker", "de")) == {"decode-0"}
    assert "router" in complete("logs", *state, "")
    assert complete("status", *state, "--name", "") == ["default"]
    assert isinstance(as_json(c, "hints")["lines"], list)


def test_asking(c):
    answer = as_json(c, "generate", "--temperature", "0", "--max-tokens", "4", "Once upon")
    plain = c.ctl("generate", "--temperature", "0", "--max-tokens", "4", "Once upon").stdout
    assert plain == "Once upon" + answer["text"] + "\n" and answer["usage"]["completion_tokens"] == 4
    assert as_json(c, "chat", "--max-tokens", "3", "Hi")["usage"]["completion_tokens"] == 3
    tokens = as_json(c, "tokenize", "Once upon a time")
    assert tokens["count"] == len(tokens["tokens"]) == answer["usage"]["prompt_tokens"] + 2
    assert "".join(t["piece"] for t in tokens["tokens"][1:]) == "Once upon a time"
    chat = subprocess.run([str(BATONCTL), "tokenize", "--state-dir", c.dir, "--messages", "-",
                           "--count"], input='[{"role": "user", "content": "Hi"}]',
                          capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert int(chat.stdout) > 2
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("two words\n")
        file.flush()
        bad = c.ctl("tokenize", "--api-key-file", file.name, "x", check=False)
        assert bad.returncode == 2 and "two words" not in bad.stderr, bad


def lines_of(process):
    """Reads until the process ends; the test that asks ends it."""
    return [line.rstrip("\n") for line in process.stdout]


def test_logs_and_events(c):
    path = pathlib.Path(c.dir, "default/decode-0.log")
    # Between the two looks it may have said one line more.
    until(lambda: c.ctl("logs", "decode-0", "--tail", "2").stdout.splitlines() ==
          path.read_text().splitlines()[-2:], 30, "the last two lines")
    until(lambda: as_json(c, "logs", "decode-0")["lines"] == path.read_text().splitlines(), 30, "all lines")
    assert c.ctl("logs", "nobody", check=False).returncode == 3
    command = [str(BATONCTL), "events", "--state-dir", c.dir, "-f", "-o", "json"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = subprocess.Popen([str(BATONCTL), "logs", "--state-dir", c.dir, "-f", "decode-0"],
                           stdout=subprocess.PIPE, text=True)
    try:
        first = json.loads(follower.stdout.readline())
        assert first["kind"] == "router-started" and first["number"] == 1
        c.kill("decode-0", signal.SIGTERM)
        kinds = []
        while kinds[-1:] != ["worker-lost"]:
            event = json.loads(follower.stdout.readline())
            kinds += [event["kind"]] if event["worker"] == "decode-0" else []
        assert kinds[:2] == ["worker-connecting", "worker-ready"], kinds
        until(lambda: not c.alive("decode-0"), 60, "the end of decode-0")
        followed = lines_of(log)    # ends by itself
        assert log.wait(PATIENCE) == 0 and followed == path.read_text().splitlines()
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 0
    finally:
        for process in (follower, log):
            process.kill()
            process.wait()
            process.stdout.close()
    c.pids.pop("decode-0")
    numbers = [e["number"] for e in as_json(c, "events")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert as_json(c, "events", "--since", str(numbers[-1])) == []


def main():
    test_every_verb()
    test_shells()
    with Cluster(prefill=1, decode=1) as c:
        test_looking(c)
        test_asking(c)
        test_logs_and_events(c)
    print("good")


if __name__ == "__main__":
    main()
