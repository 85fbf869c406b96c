#!/usr/bin/env python3
"""What the READMEs for users and operators say is there: verbs, flags, files, and the messages of
the table of symptoms. Copies with one thing broken have to be noticed."""
import functools
import pathlib
import re
import shlex
import subprocess

import cluster

ROOT = cluster.ROOT
DOCUMENTS = ("README.md", "deploy/README.md", "deploy/kubernetes/README.md")
PROGRAMS = {"batonctl": cluster.BATONCTL, "baton-router": cluster.BUILD / "router/baton-router",
            "baton-prefill": cluster.BUILD / "prefill-node/baton-prefill",
            "baton-decode": cluster.BUILD / "decode-node/baton-decode"}
SCRIPTS = ("deploy/quickstart", "deploy/install-packages", "tests/run")
PASSED_ON = {"--router-args": "baton-router", "--prefill-args": "baton-prefill",
             "--decode-args": "baton-decode"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
FOLDERS = sorted(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "build")))
ENDS_COMMAND = {"|", "#", ">", ">>", "&&", ";"}


@functools.cache
def helped(program, *verb):
    done = subprocess.run([str(PROGRAMS[program]), *verb, "--help"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, (program, verb, done.stderr)
    return done.stdout


@functools.cache
def verbs():
    return frozenset(re.findall(r"^  ([a-z-]+) +(?!VERB)[a-z]", helped("batonctl"), re.M)) | {"VERB"}


@functools.cache
def flags(program, verb=None):
    if verb == "VERB":
        return frozenset(["--help"])
    text = helped(program, *([verb] if verb else []))
    return frozenset(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.M)) | \
        frozenset(re.findall(r"^  (-\w), --", text, re.M))


@functools.cache
def any_flag():
    known = frozenset().union(*(flags("batonctl", verb) for verb in verbs()),
                              *(flags(program) for program in PROGRAMS if program != "batonctl"))
    return known | frozenset(FLAG.findall("".join((ROOT / s).read_text() for s in SCRIPTS)))


@functools.cache
def printed():
    """All sources' text, strings of several lines joined."""
    text = "".join(p.read_text(errors="replace") for folder in FOLDERS if folder != "tests"
                   for p in sorted((ROOT / folder).rglob("*.c")))
    return re.sub(r'"\s*\n\s*"', "", text)


def codes(text):
    """Lines of code (continued ones joined) and what stands between backticks."""
    block = re.compile(r"^ {4}(.*)$", re.M)
    for line in re.sub(r"\\\n\s*", "", "\n".join(block.findall(text))).splitlines():
        yield line
    for paragraph in re.split(r"\n\s*\n", block.sub("\n", text)):
        for span in re.findall(r"`([^`]+)`", paragraph):
            yield " ".join(span.split())


def words_of(code):
    try:
        return shlex.split(code)
    except ValueError:      # an apostrophe of prose
        return code.split()


def check_command(program, words):
    verb = None
    if program == "batonctl":
        verb = words.pop(0) if words and re.fullmatch(r"[a-z-]+|VERB", words[0]) else None
        if verb is None or verb == "--help":
            return []
        if verb not in verbs():
            return [f"batonctl has no verb {verb}"]
    problems = []
    for i, word in enumerate(words):
        if word in ENDS_COMMAND:
            break
        name = word.split("=")[0]
        if not re.fullmatch(r"--?[a-z][a-z-]*", name):
            continue
        if name not in flags(program, verb) and name != "--help":
            problems.append(f"{program} {verb or ''} has no {name}")
        if name in PASSED_ON and i + 1 < len(words):
            problems += check_command(PASSED_ON[name], shlex.split(words[i + 1]))
    return problems


def check_commands(text):
    problems = []
    for code in codes(text):
        words = words_of(code)
        for i, word in enumerate(words):
            if word.split("/")[-1] in PROGRAMS:
                problems += check_command(word.split("/")[-1], words[i + 1:])
                break
        if FLAG.match(code):    # a flag alone, of whatever program
            name = FLAG.match(code).group()
            begins = "…" in code.split()[0]     # `--breaker-…`
            if not any(f == name or begins and f.startswith(name) for f in any_flag()):
                problems.append(f"no program has {name}")
    return problems


def check_files(text, here):
    problems = []
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http") and not (here / target).exists():
            problems.append(f"link to {target}")
    for code in codes(text):
        for path in re.findall(r"(?<![\w/.:$~-])[\w.-]+(?:/[\w.-]+)*/?", code):
            first = path.split("/")[0]
            if first == "build":    # may be there, of any kind: what is built from is looked for
                if not ROOT.joinpath(*path.split("/")[1:-1]).is_dir():
                    problems.append(f"nothing is built as {path}")
                continue
            local = "/" in path and (here / first).is_dir() or re.fullmatch(r".+\.md", path)
            if "/" in path and (first in FOLDERS or local) or local:
                # tests/bench/engine is a program that is built of engine.c
                if not any(p.exists() for p in (ROOT / path, here / path, ROOT / (path + ".c"))):
                    problems.append(f"there is no {path}")
            elif re.fullmatch(r"test_\w+\.py", path) and not (ROOT / "tests/system" / path).exists():
                problems.append(f"there is no {path}")
    return problems


def check_messages(text):
    problems, count = [], 0
    for row in re.findall(r"^\| ([^|]+) \|[^|]+\|[^|]+\|$", text, re.M):
        for message in re.findall(r"`([^`]+)`", row):
            for part in re.split(r"…|\b[A-Z]\b|\d+|[:;,()]|\w+_\w+|\brdma\b|\btcp\b", message):
                if len(part.strip()) >= 8:
                    count += 1
                    if part.strip() not in printed():
                        problems.append(f"nothing prints '{part.strip()}'")
    return problems if count or "| symptom |" not in text else ["no message was found"]


def problems_of(name, text):
    return check_commands(text) + check_files(text, (ROOT / name).parent) + check_messages(text)


def prove():
    """Each mistake alone is noticed."""
    right = ("Words, `batonctl scale prefill=2` and `--router-args`.\n\n    batonctl rollout decode "
             "--decode-args '--max-num-seqs 7'   # why\n    build/router/baton-router --port 1 \\\n"
             "      --host h\n\nSee `deploy/README.md` and `tests/system/test_documents.py`.\n\n"
             "| 429: `the queue is full: N requests wait` | look | do |\n")
    assert problems_of("README.md", right) == [], problems_of("README.md", right)
    for old, new in (("batonctl scale", "batonctl scales"), ("`--router-args`", "`--router-arg`"),
                     ("--decode-args", "--decode-arg"), ("--max-num-seqs", "--max-num-seq"),
                     ("--port", "--porto"), ("--host", "--hosts"), ("deploy/README", "deploy/READ"),
                     ("test_documents", "test_document"), ("queue is full", "queue is empty"),
                     ("build/router", "build/routers")):
        assert old in right and problems_of("README.md", right.replace(old, new)), (old, new)


def main():
    prove()
    problems = {name: problems_of(name, (ROOT / name).read_text()) for name in DOCUMENTS}
    assert not any(problems.values()), problems
    print("ok")


if __name__ == "__main__":
    main()
