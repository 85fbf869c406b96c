"""deploy/quickstart as a new user runs it, on a release build in which warnings are errors."""
import os
import re
import shlex
import subprocess
import sys
import tempfile

import cluster

RELEASE = cluster.ROOT / "build"
QUICKSTART = cluster.ROOT / "deploy/quickstart"
STORY = "Once upon a time there was a playful fox named Lucy."


def run(*args, env=None, timeout=2400):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout,
                          env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{args} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def main():
    if not (RELEASE / "build.ninja").exists():
        run("meson", "setup", RELEASE, cluster.ROOT, "-Dtests=false")
    run("ninja", "-C", RELEASE)
    with tempfile.TemporaryDirectory(prefix="baton-test-") as state:
        env = {**os.environ, "XDG_RUNTIME_DIR": state,
               "PATH": f"{RELEASE / 'deploy/batonctl'}:{os.environ['PATH']}"}
        out = run(QUICKSTART, env=env)
        assert STORY in out, out
        for word in ("TTFT", "TPOT", "prompt tokens", "output tokens", "KV pushed", "hidden", "shm"):
            assert word in out, (word, out)
        assert "is down" in out and "configuring" not in out and "building" not in out, out

        out = run(QUICKSTART, "--keep", "--port", "0", "Who are you?", env=env)
        try:
            assert "small model" in out, out
            curl = re.search(r"^  curl .*\n.*$", out, re.M).group(0).replace("\\\n", " ")
            answer = run(*shlex.split(curl), env=env)
            assert "data: " in answer and "[DONE]" in answer, answer
            lines = re.findall(r"^  (batonctl (?:generate|status|get).*)$", out, re.M)
            assert len(lines) >= 3, out
            for line in lines:
                assert run(*shlex.split(line), env=env), line
        finally:
            run(RELEASE / "deploy/batonctl/batonctl", "down", env=env)
        print("quickstart answers, keeps, and what it prints works")


if __name__ == "__main__":
    sys.exit(main())
