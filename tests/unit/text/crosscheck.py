#!/usr/bin/env python3
"""Compares the tokenizer, decoder and chat forms with the Hugging Face `tokenizers` package and jinja2.

  crosscheck.py ENCODE_LINES SOURCE_DIR TINY_MODEL_DIR WORK_DIR [MODEL_DIR ...]

Makes a virtual environment in WORK_DIR. Exits 77 where PyPI can't be reached. Any further MODEL_DIR
is checked too. The seed is printed; BATON_TEST_SEED sets it.
"""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

PACKAGES = ["tokenizers==0.23.3", "jinja2==3.1.6", "markupsafe==3.0.3"]
STRINGS = 2500
DOCUMENTS = 12
CACHE_BYTES = 300000  # so small that texts are forgotten, too
# Digits goes by the Unicode version of Rust's library, which already has these digits of Unicode 17.
TOO_NEW = [(0x11DE0, 0x11DE9), (0x16FF4, 0x16FF6)]


def enter_venv(work):
    """Runs this script again inside the environment, which is made when it is not there."""
    venv = work / "venv"
    python = venv / "bin" / "python"
    check = [str(python), "-c", "import tokenizers, jinja2"]
    if not python.exists() or subprocess.run(check, capture_output=True).returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
        steps = [[sys.executable, "-m", "venv", str(venv)],
                 [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                  "--timeout", "20", "--retries", "1", *PACKAGES]]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode != 0:
                print("skipped: no environment with", ", ".join(PACKAGES), "can be made here:")
                print((done.stderr or done.stdout).strip()[-600:])
                sys.exit(77)
    os.environ["BATON_CROSSCHECK_VENV"] = "1"
    os.execv(python, [str(python), *sys.argv])


class Driver:
    """One encode_lines process."""

    def __init__(self, program, model, *arguments):
        self.process = subprocess.Popen([program, str(model), *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer.endswith(b"\n"):
            sys.exit(f"encode_lines died with {self.process.wait()} on: {line[:400]}")
        return answer[:-1].decode()

    def close(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            sys.exit(f"encode_lines ended with {self.process.returncode}")


def random_character(rng):
    ranges = [(0x20, 0x7E), (0x00, 0x1F), (0x80, 0x24F), (0x250, 0x6FF), (0x700, 0x1FFF), (0x2000, 0x2BFF),
              (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF),
              (0x1F300, 0x1FAFF), (0x20000, 0x33FFF), (0xE0000, 0x10FFFF)]
    while True:
        code = rng.randint(*rng.choice(ranges))
        if not any(low <= code <= high for low, high in TOO_NEW):
            return chr(code)


SPACES = [" ", "  ", "\n", "\r\n", "\t", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u200b",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "   ", "\n\n", " \n "]
WORDS = ["hello", "World", "the", "fox", "don't", "naïve", "Straße", "Привет", "мир", "中文", "漢字かな", "カナ", "한국어",
         "नमस्ते", "שלום", "مرحبا", "ไทย", "e\u0301", "\u0301", "x²", "½", "٣٤٥", "Ⅻ", "123", "4821", "3.14", "a_b", "#tag",
         "!word", "--", "...", "C++", "$5", "€9", "😀", "👩\u200d👩\u200d👧", "🇩🇪", "🫨", "\U0001fadf", "ſ", "ø", "À", "ÿ",
         "<｜", "｜>", "<", "<|", "User", "Assistant:"]


def random_string(rng, added):
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 20])):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS))
        elif kind < 0.6:
            parts.append(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 7]))
        elif kind < 0.7:
            parts.append(rng.choice(added))
        elif kind < 0.75:
            token = rng.choice(added)
            parts.append(token[rng.randrange(len(token)):] + token[:rng.randrange(len(token))])
        elif kind < 0.8:
            parts.append(random_character(rng) * rng.choice([3, 40]))
        else:
            parts.extend(random_character(rng) for _ in range(rng.choice([1, 2, 6])))
    return "".join(parts)


def prompts(rng, added):
    """Long texts, several with the same start or the same part in them."""
    for _ in range(DOCUMENTS):
        document = "".join(random_string(rng, added) for _ in range(150))
        for _ in range(6):
            at = rng.randrange(len(document))
            document = document[:at] + random_string(rng, added) + document[at + rng.choice([0, 0, 5, 500]):]
            yield document
            yield document[:rng.randrange(len(document))] + random_string(rng, added)


def check(what, text, mine, reference):
    if mine != reference:
        sys.exit(f"{what} differs\n  text {text!r}\n  here {mine}\n  reference {reference}")


def check_model(program, model, rng, strings):
    from tokenizers import Tokenizer
    spec = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    reference = Tokenizer.from_str(json.dumps(spec))
    added = [token["content"] for token in spec["added_tokens"]]
    without = Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))
    ids = sorted(reference.get_vocab().values())
    driver = Driver(program, model)

    def encode(kind, tokenizer, text):
        expected = " ".join(map(str, tokenizer.encode(text, add_special_tokens=False).ids))
        check("encoding", text, driver.ask(f"{kind} {text.encode().hex()}"), expected)

    for _ in range(strings):
        text = random_string(rng, added)
        encode("e", reference, text)
        encode("o", without, text)
    for _ in range(strings // 2):
        some = [rng.choice(ids) if rng.random() < 0.5 else rng.choice(ids[:260]) for _ in range(rng.randint(0, 30))]
        expected = reference.decode(some, skip_special_tokens=False)
        check("decoding", some, bytes.fromhex(driver.ask("d " + " ".join(map(str, some)))).decode(), expected)
    for unit in ["x", "e", " ", "1", "中", "\n", "!", "\u00a0", "😀", "\u0301", "\u200d", "ab", " \n", "x ", "é\u200d", "\r\n", "!a"]:
        encode("e", reference, unit * 20000)
    driver.close()
    driver = Driver(program, model, CACHE_BYTES)
    for text in prompts(rng, added):
        encode("e", reference, text)
        encode("o", without, text)
    driver.close()


def variant(work, name, base, change, config=None):
    """A model directory whose files are those of `base`, changed."""
    directory = work / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    spec = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    (directory / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.update(config or {})
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def odd_rules(spec):
    """Rules that no family has together; pairs as merges; whole pieces first; overlapping added tokens."""
    steps = spec["pre_tokenizer"]["pretokenizers"]
    steps[:-1] = [split("[\r\n]"), split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
                  split(r"(?i:'s|'t)|\P{L}\p{M}+|\S\.{2,3}(?<!x)"), {"type": "Digits", "individual_digits": False}]
    spec["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"]]
    spec["model"]["ignore_merges"] = True
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    for i, (content, normalized) in enumerate([("<a", False), ("<ab", True), ("ab<", False), ("b<c", True), ("<a>", False),
                                               ("user ", True), ("中文", False), ("中", True)]):
        spec["added_tokens"].append({"id": 2048 + i, "content": content, "normalized": normalized, **plain})


def check_chat(program, work, source, tiny, rng):
    import jinja2
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    templates = sorted((source / "chat_templates").glob("*.jinja"))
    tokens = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    texts = {path.stem: path.read_text(encoding="utf-8") for path in templates}
    texts["tiny"] = json.loads((tiny / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for name, text in texts.items():
        model = variant(work, "chat-" + name, tiny, lambda spec: None, {**tokens, "chat_template": text})
        driver = Driver(program, model)
        template = environment.from_string(text)
        for _ in range(200):
            messages = [{"role": rng.choice(["system", "user", "user", "assistant", "assistant"]),
                         "content": rng.choice(["", "a</think>b", "</think>x</think>\ny", "<think>z", "\n"]) +
                         random_string(rng, ["<｜User｜>", "</think>"])} for _ in range(rng.randint(1, 6))]
            expected = template.render(messages=messages, add_generation_prompt=True, **tokens)
            line = " ".join(f"{m['role']} {m['content'].encode().hex() or '-'}" for m in messages)
            mine = driver.ask("c " + line).partition(" ")
            check(f"chat form {name}", messages, bytes.fromhex(mine[0]).decode(), expected)
            check(f"chat ids {name}", messages, mine[2], driver.ask("e " + expected.encode().hex()))
        driver.close()


def main():
    program, source, tiny, work = sys.argv[1], *map(pathlib.Path, sys.argv[2:5])
    if "BATON_CROSSCHECK_VENV" not in os.environ:
        enter_venv(work)
    seed = int(os.environ.get("BATON_TEST_SEED", "20261122"))
    print("seed", seed, flush=True)
    rng = random.Random(seed)
    models = [tiny, source / "v2-style", variant(work, "odd-rules", tiny, odd_rules), *map(pathlib.Path, sys.argv[5:])]
    for model in models:
        check_model(program, model, rng, STRINGS)
        print(model.name, "agrees on", STRINGS, "strings", flush=True)
    check_chat(program, work, source, tiny, rng)
    print("chat forms agree")


if __name__ == "__main__":
    main()
