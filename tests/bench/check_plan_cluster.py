"""plan_cluster.py in its quick form: what it prints and writes, with the files of tests/bench/plan read back by
batonctl plan. How long anything took is not looked at."""
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

NAMES = ["ttft_128", "ttft_512", "tpot_512_x1", "tpot_512_x2"]


def main():
    script, program, build = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="baton-test-") as out:
        done = subprocess.run([sys.executable, script, program, build, out, "--quick"], text=True,
                              stdout=subprocess.PIPE, timeout=550)
        print(done.stdout)
        assert done.returncode == 0, done.returncode
        written = json.loads(pathlib.Path(out, "cluster.json").read_text())
    rows = written["rows"]
    assert [row["name"] for row in rows] == NAMES, rows
    for row in rows:
        predicted, measured = row["predicted_s"], row["measured_s"]
        assert all(math.isfinite(v) and v > 0 for v in (predicted, measured)), row
        best = row["best_s"]
        assert (best is not None) == row["name"].startswith("ttft"), row
        assert best is None or 0 < best <= measured, row
        assert best is None or math.isclose(row["best_error_percent"], 100 * (predicted - best) / best,
                                            abs_tol=1e-6), row
        assert math.isclose(row["error_percent"], 100 * (predicted - measured) / measured, abs_tol=1e-6), row
        assert row["requests"] == 2 if row["name"].startswith("ttft") else row["batch"], row
        if "measured_batch" in row:
            assert 0 < row["measured_batch"] <= row["batch"] * (1 + 1e-6), row
    # A longer prompt and a larger batch are more work: so says the planner, whatever it is calibrated with.
    assert rows[0]["predicted_s"] < rows[1]["predicted_s"], rows
    assert rows[2]["predicted_s"] <= rows[3]["predicted_s"], rows
    figures = re.findall(r"^figure plan_cluster_(\S+)_error (-?[\d.]+) % 0 ([\d.]+)$", done.stdout, re.M)
    assert [name for name, *_ in figures] == NAMES, done.stdout
    for (_, error, ratio), row in zip(figures, rows):
        assert abs(float(error) - row["error_percent"]) <= 0.06, (error, row)
        assert abs(float(ratio) - row["predicted_s"] / row["measured_s"]) <= 0.0006, (ratio, row)
    table = re.findall(r"^# (\S+) +([\d.]+) +([\d.]+) +(-?[\d.]+)(?: +([\d.]+) +(-?[\d.]+))?$", done.stdout, re.M)
    assert [name for name, *_ in table] == NAMES, done.stdout
    for (_, predicted, measured, _, best, _), row in zip(table, rows):
        assert abs(float(predicted) - 1e3 * row["predicted_s"]) <= 0.0006, (predicted, row)
        assert abs(float(measured) - 1e3 * row["measured_s"]) <= 0.0006, (measured, row)
        assert abs(float(best or 0) - 1e3 * (row["best_s"] or 0)) <= 0.0006, (best, row)


if __name__ == "__main__":
    sys.exit(main())
