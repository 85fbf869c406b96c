"""batonctl quantize on the tiny model: what it refuses, what it writes, how much it costs in accuracy,
and that the result serves."""
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import cluster

TEXTS = cluster.MODEL / "text"
ACCURACY = cluster.BUILD / "tests/bench/accuracy"


def quantize(*args):
    done = subprocess.run([str(cluster.BATONCTL), "quantize", *map(str, args)],
                          capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def refuses(base):
    (base / "full").mkdir()
    (base / "full" / "note").write_text("x")
    (base / "short.txt").write_text("Once.")
    bad = base / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    for args, text in [
            ([], "--model"), (["--model", base / "none", "--out", base / "o1"], "none"),
            (["--model", cluster.MODEL], "--out"), (["--model", bad, "--out", base / "o2"], "model_type"),
            (["--model", cluster.MODEL, "--out", base / "full"], "empty"),
            (["--model", cluster.MODEL, "--out", base / "o3", "--format", "int3"], "int3"),
            (["--model", cluster.MODEL, "--out", base / "o4", "--text", base / "missing.txt"], "missing.txt"),
            (["--model", cluster.MODEL, "--out", base / "o5", "--text", base / "short.txt"], "short.txt"),
            (["--model", cluster.MODEL, "--out", base / "no" / "where"], "where")]:
        code, _, err = quantize(*args)
        assert code in (1, 2, 3) and text in err, (args, code, err)


def header(directory):
    with open(directory / "model.safetensors", "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size)), 8 + size


def check_file(directory, int4):
    """Names, dtypes, shapes, no holes, and values in their ranges."""
    tensors, start = header(directory)
    data = (directory / "model.safetensors").read_bytes()[start:]
    spans = sorted(t["data_offsets"] for t in tensors.values())
    assert spans[0][0] == 0 and spans[-1][1] == len(data)
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:])), "a hole"
    expert = "model.layers.2.mlp.experts.3.gate_proj.weight"
    if int4:
        assert tensors[expert]["dtype"] == "U8" and tensors[expert]["shape"] == [64, 128]
        assert tensors[expert + "_group_scale"]["shape"] == [64, 2]
        a, b = tensors[expert]["data_offsets"]
        nibbles = [n for byte in data[a:b] for n in (byte & 15, byte >> 4)]
        assert 8 not in nibbles and {7, 9} <= set(nibbles), "int4 goes from -7 to 7"
        a, b = tensors[expert + "_group_scale"]["data_offsets"]
        assert all(1 <= s <= 18 for s in data[a:b])
    else:
        assert tensors[expert]["dtype"] == "I8" and tensors[expert]["shape"] == [64, 256]
        a, b = tensors[expert]["data_offsets"]
        values = struct.unpack(f"{b - a}b", data[a:b])
        assert min(values) >= -127 and max(values) == 127
    assert tensors[expert + "_scale"] ["dtype"] == "F32"
    for kept in ("lm_head.weight", "model.embed_tokens.weight",
                 "model.layers.2.self_attn.kv_b_proj.weight", "model.layers.0.mlp.gate_proj.weight"):
        assert tensors[kept]["dtype"] == "BF16", kept
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "baton"


def figures(*directories):
    out = subprocess.run([str(ACCURACY), str(TEXTS), *map(str, directories)], capture_output=True,
                         text=True, timeout=800)
    assert out.returncode == 0, out.stderr
    print(out.stdout)
    return {line.split()[1]: float(line.split()[2]) for line in out.stdout.splitlines()
            if line.startswith("figure ")}


def main():
    with tempfile.TemporaryDirectory(prefix="baton-quantize-") as temporary:
        base = pathlib.Path(temporary)
        refuses(base)
        made = {"int8": ["--format", "int8"], "w4a8-plain": ["--format", "w4a8"],
                "w4a8-awq": ["--format", "w4a8", "--text", TEXTS / "calibration.txt"]}
        for name, args in made.items():
            code, out, err = quantize("--model", cluster.MODEL, "--out", base / name, "--output",
                                      "json", *args)
            assert code == 0, err
            report = json.loads(out)
            assert len(report["layers"]) == 6 and report["bytes"] < report["source_bytes"]
            check_file(base / name, name != "int8")
            if name == "w4a8-awq":
                for layer in report["layers"][1:]:
                    assert layer["output_error_scaled"] <= layer["output_error_plain"], layer
                text = out
        again = base / "again"
        _, out, _ = quantize("--model", cluster.MODEL, "--out", again, "--output", "json",
                             *made["w4a8-awq"], "--threads", "1")
        assert out == text, "the number of threads changes the result"
        digest = [hashlib.sha256((d / "model.safetensors").read_bytes()).digest()
                  for d in (again, base / "w4a8-awq")]
        assert digest[0] == digest[1]
        f = figures(cluster.MODEL, *(base / name for name in made))
        exact = f["float32_perplexity"]
        for name in ("tiny", *made):
            assert f[f"{name}_perplexity"] < 1.01 * exact, name
            assert f[f"{name}_recall"] > f["float32_recall"] - 0.06, name
        with cluster.Cluster(model=base / "w4a8-awq", served_model_name="tiny") as c:
            answer = c.ctl("chat", "--temperature", "0", "Tell me a story about a fox.").stdout
            assert answer.startswith("Once upon a time"), answer
            c.wait_quiet()


if __name__ == "__main__":
    sys.exit(main())
