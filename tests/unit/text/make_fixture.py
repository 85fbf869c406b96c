#!/usr/bin/env python3
"""Writes v2-style/, hf_golden.json and broken_utf8.json: run by hand where the `tokenizers` package is installed.

  make_fixture.py TINY_MODEL_DIR

v2-style/ is a small tokenizer built as DeepSeek-V2 builds its own: its split rules, digits one by one, merges as text,
the bytes that no UTF-8 text has as added tokens, special tokens behind the vocabulary. hf_golden.json holds strings
with the ids that `tokenizers` gives for both models, and the pieces that it cuts them into by some lists of split rules. broken_utf8.json holds byte strings with what Python decodes them to.
"""
import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, pre_tokenizers

HERE = pathlib.Path(__file__).parent
SPLITS = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
WORDS = [" the", " and", " you", " hello", "hello", " world", "ing", "中文", "  ", "   ", "\u00e9", " мир", "...", "!!"]
CASES = ["", "a\u0085b", "a \u0085 b", "a\u180eb \u180e c", "\u200b \u200bx", "a\u2028b\u2029", "\u3000あ", " \u00a0x", "\x1c\x1dy",
         "new 🫨 emoji", "🫨🫩", "\U0001fadf\U0001fae9!", "\u0897ا", "\U00031350\U0002ebf0", "\u1c89a\ua7cbb", "a\x00b\x00", "\x00",
         "ø and ÿ", "123 45", "٣٤٥ Ⅻ ½", "hello  world\r\n\r\n x", "   \n  y  ", "don't!! stop...", "<｜User｜>hi<｜Assistant｜>",
         "<｜User｜", "<<｜User｜>>", "<｜begin▁of▁sentence｜>a<｜end▁of▁sentence｜>", " " * 40 + "5", "\t\t\tx" * 3, "e\u0301e\u0301\u0301 \u0301",
         "한국어 中文かなカナ", "C++/C#: x_1=[2]", "a" * 300]


V3_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]
ODD_SPLITS = [r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"(?i:'s|'t)|\P{L}\p{M}+|\S\.{2,3}(?<!x)", r"\p{N}+"]
SPACES = [0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x20, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x200A, 0x200B, 0x2028, 0x2029, 0x202F,
          0x205F, 0x2060, 0x3000, 0xFEFF]
# One of each category that Unicode 15 and 16 added: L, M, N, P, S.
NEWER = "\U00031350\U00010D40\U0001E4EC\U00011F43\U0001FAE8"


def byte_characters():
    """The byte-level alphabet."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in kept]
    return {**{b: chr(b) for b in kept}, **{b: chr(256 + i) for i, b in enumerate(moved)}}


def v2_style():
    letters = byte_characters()
    absent = [0xC0, 0xC1, *range(0xF5, 0x100)]
    vocab = {letters[b]: i for i, b in enumerate(b for b in range(256) if b not in absent)}
    merges = []
    for word in WORDS:
        parts = [letters[b] for b in word.encode()]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            parts[:2] = [parts[0] + parts[1]]
            if pair not in merges:
                merges.append(pair)
            vocab.setdefault(parts[0], len(vocab))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    first = len(vocab)
    contents = [("<｜begin▁of▁sentence｜>", True), ("<｜end▁of▁sentence｜>", True)] + [(letters[b], False) for b in absent]
    split = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in SPLITS]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": first + i, "content": c, **plain, "special": s} for i, (c, s) in enumerate(contents)],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            *split, {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "vocab": vocab, "merges": merges},
    }


def broken_utf8():
    """Byte strings, mostly of bytes near the borders of the UTF-8 tables, and their decoding with U+FFFD."""
    rng = random.Random(1)
    edges = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4,
             0xF5, 0xFF, 0x00]
    whole = ["é", "中", "\uffff", "\ud7ff", "\ue000", "😀", "\U00010000", "\U0010ffff"]
    for _ in range(400):
        data = b""
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.6:
                data += bytes([rng.choice(edges)])
            elif kind < 0.7:
                data += bytes([rng.randrange(256)])
            else:
                character = rng.choice(whole).encode()
                data += character[:rng.randint(1, len(character))]
        yield {"bytes_hex": data.hex(), "text_hex": data.decode("utf-8", "replace").encode().hex()}


def main():
    tiny = pathlib.Path(sys.argv[1])
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<｜begin▁of▁sentence｜>",
              "eos_token": "<｜end▁of▁sentence｜>", "tokenizer_class": "LlamaTokenizerFast", "unk_token": None,
              "chat_template": (HERE / "chat_templates" / "v2.jinja").read_text(encoding="utf-8")}
    directory = HERE / "v2-style"
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(v2_style(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    golden = {}
    for name, path in (("tiny", tiny), ("v2-style", directory)):
        reference = Tokenizer.from_file(str(path / "tokenizer.json"))
        golden[name] = []
        for text in CASES:
            ids = reference.encode(text, add_special_tokens=False).ids
            golden[name].append({"text_hex": text.encode().hex(), "ids": ids,
                                 "decoded_hex": reference.decode(ids, skip_special_tokens=False).encode().hex()})
    texts = CASES + [f"a{chr(c)}b {chr(c)}{chr(c)}5 {chr(c)}" for c in SPACES] + [f"x{c}1 {c}{c}!" for c in NEWER]
    for name, patterns in (("v3", V3_SPLITS), ("v2", SPLITS), ("odd", ODD_SPLITS)):
        steps = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns])
        golden["split-" + name] = [{"rules": patterns}] + [
            {"text_hex": text.encode().hex(), "sizes": [len(piece.encode()) for piece, _ in steps.pre_tokenize_str(text)]}
            for text in texts]
    lines = ",\n".join(f' "{name}": [\n' + ",\n".join("  " + json.dumps(c) for c in cases) + "\n ]" for name, cases in golden.items())
    (HERE / "hf_golden.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    cases = ",\n".join(" " + json.dumps(c) for c in broken_utf8())
    (HERE / "broken_utf8.json").write_text("[\n" + cases + "\n]\n", encoding="utf-8")


main()
