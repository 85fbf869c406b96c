#!/usr/bin/env python3
"""deploy/container/Containerfile without a container engine: the stages of its target `cpu` are run
step by step in chroots made of Debian packages, then with the UCX of target `cuda`. By default the programs
come from this build; with BATON_TEST_CONTAINER=full they are compiled in the recipe's own build stage, which
takes minutes."""
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import cluster

RECIPE = cluster.ROOT / "deploy/container/Containerfile"
FULL = os.environ.get("BATON_TEST_CONTAINER") == "full"
BASE = cluster.BUILD / "container-debian.tar"       # kept: making it takes a minute
PROGRAMS = {"baton-router": "router", "baton-prefill": "prefill-node", "baton-decode": "decode-node",
            "batonctl": "deploy/batonctl"}


def steps(recipe):
    """[(stage, from, [(instruction, words)])] of the recipe, lines joined."""
    text = re.sub(r"\\\n\s*", " ", "\n".join(line for line in recipe.splitlines()
                                           if not line.lstrip().startswith("#")))
    stages = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            stages.append((name.strip(), source.strip(), []))
        elif stages:
            stages[-1][2].append((word, rest.strip()))
    return stages


def check_recipe(text, stages):
    """Problems that need no machine to be seen."""
    names = [name for name, _, _ in stages]
    problems = [] if {"cpu", "cuda"} <= set(names) else ["a target is missing"]
    known = {"RUN", "COPY", "LABEL", "ENV", "EXPOSE", "USER", "HEALTHCHECK", "CMD"}
    for name, source, own in stages:
        if source not in names + ["debian:bookworm-slim", "${CUDA_IMAGE}"]:
            problems.append(f"{name}: from {source}")
        problems += [f"{name}: {word}" for word, _ in own if word not in known]
        for word, rest in own:
            origin = re.search(r"--from=(\S+)", rest)
            if word == "COPY" and origin and origin.group(1) not in names:
                problems.append(f"{name}: copies from {origin.group(1)}")
            if word == "COPY" and not origin:
                for path in rest.split()[:-1]:
                    if not (cluster.ROOT / path).exists():
                        problems.append(f"{name}: there is no {path}")
    for target in ("cpu", "cuda"):
        whole = lineage(stages, target)
        said = [word for _, own in whole for word, _ in own]
        users = [rest for _, own in whole for word, rest in own if word == "USER"]
        if not users or users[-1].split(":")[0] in ("root", "0"):
            problems.append(f"{target}: runs as root")
        if "HEALTHCHECK" not in said or "LABEL" not in said:
            problems.append(f"{target}: without HEALTHCHECK or LABEL")
        if any("install-packages" in rest or "build-essential" in rest for _, own in whole for _, rest in own):
            problems.append(f"{target}: has a compiler")
    if re.search(r"https?://|[a-z0-9-]+\.(io|com|org)/", text.replace("org.opencontainers", "")):
        problems.append("names a host")
    return problems


def lineage(stages, target):
    """[(name, steps)] from the first to `target`."""
    found = next((stage for stage in stages if stage[0] == target), None)
    return [] if found is None else lineage(stages, found[1]) + [(found[0], found[2])]


def prove(text):
    for old, new, said in (("USER 65532:65532", "USER root", "as root"), ("HEALTHCHECK", "#HEALTHCHECK", "without"),
                           ("--from=build ", "--from=builder ", "copies from"), ("AS cuda\n", "AS gpu\n", "missing"),
                           ("COPY tests/models/tiny", "COPY tests/models/none", "no tests/models/none"),
                           ("FROM base AS cpu", "FROM tools AS cpu", "compiler"),
                           ("FROM debian:bookworm-slim AS base", "FROM example.io/debian AS base", "from example")):
        assert old in text, old
        changed = text.replace(old, new)
        found = check_recipe(changed, steps(changed))
        assert any(said in problem for problem in found), (old, found)


# ---- roots

def inside(root, command, environment=None, user=None, check=True):
    """A shell line in `root`, with /proc, apart from this machine's processes."""
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
             'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && '
             'exec chroot ' + (f"--userspec={user} " if user else "") + '"$0" /bin/sh -c "$1"', str(root), command]
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
           "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=3000)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}: {done.stdout[-1500:]}{done.stderr[-3000:]}")
    return done


def debian(directory):
    """debian:bookworm-slim, nearly; skips where it can't be had."""
    if not BASE.exists():
        made = subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(directory)],
                              capture_output=True, text=True)
        if made.returncode != 0:
            cluster.skip(f"debootstrap: {made.stdout[-300:]}{made.stderr[-300:]}")
        subprocess.run(["tar", "-C", str(directory), "--exclude=./var/cache/apt/archives/*.deb", "-cf",
                        str(BASE) + ".part", "."], check=True)
        os.rename(str(BASE) + ".part", BASE)
    else:
        subprocess.run(["tar", "-C", str(directory), "-xf", str(BASE)], check=True)
    shutil.copy("/etc/resolv.conf", directory / "etc/resolv.conf")


def copy_into(root, rest, roots):
    origin = re.search(r"--from=(\S+)\s+", rest)
    words = shlex.split(re.sub(r"--from=\S+", "", rest))
    start = roots[origin.group(1)] if origin else cluster.ROOT
    target = root / words[-1].lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    for word in words[:-1]:
        source = pathlib.Path(start) / word.lstrip("/")
        if source.is_dir():
            for part in (allowed() if word == "." else [""]):
                shutil.copytree(source / part, target / part, symlinks=True, dirs_exist_ok=True) \
                    if (source / part).is_dir() else shutil.copy2(source / part, target / part)
        else:
            shutil.copy2(source, target)


def allowed():
    """What .containerignore lets in."""
    lines = (cluster.ROOT / ".containerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


def run_stage(name, own, root, roots):
    for word, rest in own:
        if word == "RUN":
            inside(root, rest)
        elif word == "COPY":
            copy_into(root, rest, roots)
    roots[name] = root


def built_here(directory):
    """What the build stage would leave, of this build's programs."""
    bin_dir = directory / "image/usr/local/bin"
    bin_dir.mkdir(parents=True)
    for name, folder in PROGRAMS.items():
        shutil.copy2(cluster.BUILD / folder / name, bin_dir / name)
    return directory


def sanitizers(root):
    """Libraries of a sanitized build, which no image has."""
    extra = root / "sanitizers"
    extra.mkdir(exist_ok=True)
    for name in PROGRAMS:
        done = subprocess.run(["ldd", str(cluster.BUILD / PROGRAMS[name] / name)], capture_output=True, text=True)
        for library, path in re.findall(r"(lib(?:asan|ubsan|tsan|stdc\+\+|gcc_s)\S*) => (\S+)", done.stdout):
            if "san" in done.stdout:
                shutil.copy2(path, extra / library)
    return {"LD_LIBRARY_PATH": "/sanitizers"}


def look(root, stages):
    """The finished image."""
    environment = {} if FULL else sanitizers(root)
    said = [entry for _, own in lineage(stages, "cpu") for entry in own]
    user = [rest for word, rest in said if word == "USER"][-1]
    ready = re.search(r"BATON_READY_FILE=(\S+)", " ".join(rest for word, rest in said if word == "ENV")).group(1)
    for name in PROGRAMS:
        path = f"/usr/local/bin/{name}"
        libraries = inside(root, f"ldd {path}", environment).stdout
        assert "not found" not in libraries, f"{name}: {libraries}"
        shown = inside(root, f"{name} --help", environment, user)
        assert name in shown.stdout, shown.stdout[:500]
    for tool in ("cc", "gcc", "g++", "clang", "ld", "as", "make", "ninja", "meson"):
        assert inside(root, f"command -v {tool}", check=False).returncode != 0, f"{tool} is in the image"
    assert inside(root, "id -u", user=user).stdout.strip() == user.split(":")[0] != "0"
    inside(root, f"touch {ready}.x && rm {ready}.x", user=user)
    # The health check says no where nothing runs, and in words.
    check = [rest for word, rest in said if word == "HEALTHCHECK"][-1]
    words = shlex.split(re.search(r"CMD\s+\[(.*)\]", check).group(1).replace(",", " "))
    done = inside(root, shlex.join(words), {**environment, "BATON_READY_FILE": ready}, user, check=False)
    assert done.returncode == 1 and ready in done.stderr, (done.returncode, done.stderr)


def look_at_ucx(root, stages, roots, directory):
    """The same image with the UCX of `cuda` in front of Debian's; False: none is to be had."""
    roots["ucx"] = directory / "ucx"
    fetched = subprocess.run([cluster.ROOT / "deploy/container/fetch-ucx", roots["ucx"] / "opt/ucx"],
                             capture_output=True, text=True)
    if fetched.returncode == 77:
        print(fetched.stderr.strip(), flush=True)
        return False
    assert fetched.returncode == 0, fetched.stderr
    own = next(own for name, _, own in stages if name == "cuda")
    for word, rest in own:
        if word == "COPY" and rest.startswith("--from=ucx "):
            copy_into(root, rest, roots)
    path = re.search(r"LD_LIBRARY_PATH=(\S+)", " ".join(rest for word, rest in own if word == "ENV")).group(1)
    environment = {} if FULL else sanitizers(root)
    environment["LD_LIBRARY_PATH"] = ":".join(filter(None, (path, environment.get("LD_LIBRARY_PATH"))))
    first = path.split(":", maxsplit=1)[0]
    for name in ("baton-prefill", "baton-decode", "batonctl"):
        libraries = inside(root, f"ldd /usr/local/bin/{name}", environment).stdout
        assert f"{first}/libucp.so.0" in libraries and "not found" not in libraries, libraries
    for module in ("ib", "ib_mlx5"):
        libraries = inside(root, f"ldd {first}/ucx/libuct_{module}.so.0", environment).stdout
        assert "not found" not in libraries, libraries
    said = inside(root, "batonctl doctor", {**environment, "ASAN_OPTIONS": "detect_leaks=0"}, check=False).stdout
    assert "shm: one token" in said, said
    return True


def main():
    recipe = RECIPE.read_text()
    stages = steps(recipe)
    assert check_recipe(recipe, stages) == [], check_recipe(recipe, stages)
    prove(recipe)
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        cluster.skip("the recipe is in order; to run its steps, root and debootstrap are needed")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        cluster.skip("the recipe is in order; to run its steps, mounts of its own are needed")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="baton-container-"))
    try:
        roots, first = {}, directory / "debian"
        first.mkdir()
        debian(first)
        if inside(first, "apt-get update", check=False).returncode != 0:
            cluster.skip("the recipe is in order; packages for its steps can't be had")
        own = dict((name, steps_) for name, _, steps_ in stages)
        if FULL:
            builder = directory / "builder"
            subprocess.run(["cp", "-a", first, builder], check=True)    # devices stay devices
            for name in ("tools", "build"):
                run_stage(name, own[name], builder, roots)
        else:
            (directory / "here").mkdir()
            roots["build"] = built_here(directory / "here")
        for name in ("base", "cpu"):
            run_stage(name, own[name], first, roots)
        look(first, stages)
        with_ucx = look_at_ucx(first, stages, roots, directory)
        print(f"the image's programs run{' with either UCX' if with_ucx else ''}, "
              f"as {'built by the recipe' if FULL else 'built here'}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
