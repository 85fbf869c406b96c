"""plan_cluster.py in its quick form: what it prints and writes, with the files of tests/bench/plan read back by
batonctl plan. How long anything took is not looked at."""
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

NAMES = ["ttft_128", "ttft_512", "tpot_512_x1", "tpot_512_x2", "tpot_512_x4"]
FITTED = ["ttft_128", "tpot_512_x1", "tpot_512_x2"]
SHOWN = [*FITTED, "ttft_512", "tpot_512_x4"]     # those of the fit first


def overheads_of(row, found):
    """By hand: a prompt here is one chunk, so a step, behind its request."""
    if row["kind"] == "ttft":
        return found["step_s"] + found["request_s"]
    return found["step_s"] + found["batch"] * found["sequence_s"]


def squares(rows, found):
    return sum(((row["engine_s"] + overheads_of(row, found | {"batch": row["batch"]})) / row["measured_s"] - 1) ** 2
               for row in rows)


def check_fit(rows, found):
    """What the planner adds is what was found, and nothing near it, and not below 0, is nearer to the points."""
    for row in rows:
        added = overheads_of(row, found | {"batch": row["batch"]})
        assert math.isclose(row["predicted_s"], row["engine_s"] + added, rel_tol=2e-3), (row, found)
    assert all(found[key] >= 0 for key in ("step_s", "sequence_s", "request_s")), found
    for kind, keys in ("tpot", ["step_s", "sequence_s"]), ("ttft", ["request_s"]):
        points = [row for row in rows if row["fitted"] and row["kind"] == kind]
        least = squares(points, found)
        for key in keys:
            for change in -1e-4, 1e-4:
                near = found | {key: found[key] + change}
                assert near[key] < 0 or squares(points, near) >= least - 1e-6, (kind, near, found, points)


def main():
    script, program, build = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="baton-test-") as out:
        done = subprocess.run([sys.executable, script, program, build, out, "--quick"], text=True,
                              stdout=subprocess.PIPE, timeout=550)
        print(done.stdout)
        assert done.returncode == 0, done.returncode
        written = json.loads(pathlib.Path(out, "cluster.json").read_text())
        files = [json.loads(pathlib.Path(out, name).read_text())
                 for name in ("calibration.json", "calibration_cluster.json")]
    rows, found = written["rows"], written["overheads"]
    assert [row["name"] for row in rows] == NAMES, rows
    assert [row["name"] for row in rows if row["fitted"]] == FITTED, rows
    check_fit(rows, found)
    assert math.isclose(files[1]["step_overhead_s"], files[0]["step_overhead_s"] + found["step_s"]), files
    assert files[1]["sequence_overhead_s"] == found["sequence_s"], files
    assert files[1]["request_overhead_s"] == found["request_s"], files
    for row in rows:
        predicted, measured = row["predicted_s"], row["measured_s"]
        assert all(math.isfinite(v) and v > 0 for v in (predicted, measured)), row
        best = row["best_s"]
        assert (best is not None) == row["name"].startswith("ttft"), row
        assert best is None or 0 < best <= measured, row
        assert best is None or math.isclose(row["best_error_percent"], 100 * (predicted - best) / best,
                                            abs_tol=1e-6), row
        assert math.isclose(row["error_percent"], 100 * (predicted - measured) / measured, abs_tol=1e-6), row
        assert math.isclose(row["engine_error_percent"], 100 * (row["engine_s"] - measured) / measured,
                            abs_tol=1e-6), row
        assert row["requests"] == (2 if row["name"].startswith("ttft") else row["batch"]), row
        if "measured_batch" in row:
            assert 0 < row["measured_batch"] <= row["batch"] * (1 + 1e-6), row
    # A longer prompt and a larger batch are more work: so says the planner, whatever it is calibrated with.
    for key in "engine_s", "predicted_s":
        assert rows[0][key] < rows[1][key], rows
        assert rows[2][key] <= rows[3][key] <= rows[4][key], rows
    figures = re.findall(r"^figure plan_cluster_(\S+)_error (-?[\d.]+) % 0 ([\d.]+)$", done.stdout, re.M)
    assert [name for name, *_ in figures] == ["fit_" * (name in FITTED) + name for name in NAMES], done.stdout
    for (_, error, ratio), row in zip(figures, rows):
        assert abs(float(error) - row["error_percent"]) <= 0.06, (error, row)
        assert abs(float(ratio) - row["predicted_s"] / row["measured_s"]) <= 0.0006, (ratio, row)
    table = re.findall(r"^# (\S+) +([\d.]+) +(-?[\d.]+) +([\d.]+) +([\d.]+) +(-?[\d.]+)(?: +([\d.]+) +(-?[\d.]+))?$",
                       done.stdout, re.M)
    assert [name for name, *_ in table] == SHOWN, done.stdout
    of_name = {row["name"]: row for row in rows}
    for name, engine, _, predicted, measured, _, best, _ in table:
        row = of_name[name]
        assert abs(float(engine) - 1e3 * row["engine_s"]) <= 0.0006, (engine, row)
        assert abs(float(predicted) - 1e3 * row["predicted_s"]) <= 0.0006, (predicted, row)
        assert abs(float(measured) - 1e3 * row["measured_s"]) <= 0.0006, (measured, row)
        assert abs(float(best or 0) - 1e3 * (row["best_s"] or 0)) <= 0.0006, (best, row)


if __name__ == "__main__":
    sys.exit(main())
