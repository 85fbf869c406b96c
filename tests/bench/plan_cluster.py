#!/usr/bin/env python3
"""The planner against a running cluster: one prefill and one decode worker on this machine, a core each.

  plan_cluster.py PLAN_PROGRAM BUILD_DIR OUT_DIR [--model DIR] [--quick]

PLAN_PROGRAM (tests/bench/plan) measures this machine and calibrates with the engine alone; its files stay in OUT_DIR.
`batonctl up` starts the cluster, `batonctl bench` measures it: TTFT by the length of prompts, one request at a time, and
TPOT by the batch, so many requests always open. `batonctl plan` says with the files what that deployment should do:
first as the engine alone would. What it then lacks is what a step, a sequence and a request cost outside of the model:
router, RPC, scheduling, the handoff's messages. Least squares of relative errors over some of the lengths and batches
give these three; OUT_DIR/calibration_cluster.json is the calibration with them, and the others are predicted by it.
Neither knows of other processes on the same cores, but for what of them is in the points of the fit. A run's median is
compared; its best TTFT is what is left where others use the cores (a best TPOT would be that of tokens which came
together). A prompt is never found in the cache.

  figure plan_cluster_ttft_<tokens>_error         ERROR % 0 PREDICTED/MEASURED
  figure plan_cluster_tpot_<context>_x<batch>_error
  figure plan_cluster_fit_..._error               the same of the points that the overheads come from

OUT_DIR/cluster.json holds the table. Exits 1 where the files are not read back as they were written.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHUNK = 2048            # of PLAN_PROGRAM's own prefill
CONTEXT = 512           # of decode on average: one of the lengths that `batonctl plan` lists
LAYOUT = "tp1,dp1,ep1"
SOURCE = 150            # characters of a calibration's source that are kept


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "tests/models/tiny")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


class Comparison:
    def __init__(self, options, cluster_module):
        self.options = options
        self.cluster_module = cluster_module
        quick = options.quick
        self.lengths = [128, 512] if quick else [128, 256, 512, 1024, 2048]
        self.batches = [1, 2, 4] if quick else [1, 2, 4, 8, 16]
        # What the overheads are found with; the rest is what they are tried on.
        self.fitted = {"ttft": [128] if quick else [256, 1024], "tpot": [1, 2] if quick else [1, 4, 16]}
        self.output = 16 if quick else 768    # long: few prompts are computed meanwhile
        self.prompts = 2 if quick else 11
        self.rounds = 1 if quick else 2
        self.seed = 0

    # ---- what is predicted

    def calibrate(self):
        command = [self.options.program, "--model", self.options.model, "--device", "cpu",
                   "--cores", "1", "--out", self.options.out, *(["--quick"] if self.options.quick else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def plan(self, tokens, calibration):
        """batonctl plan of this deployment, with hardly any load: no request waits for another."""
        out = self.options.out
        done = subprocess.run(
            [self.cluster_module.BATONCTL, "plan", "--model", self.options.model, "--hardware", "cpu-here",
             "--catalogue", out / "catalogue.json", "--calibration", calibration,
             "--prefill-layout", LAYOUT, "--decode-layout", LAYOUT, "--prefill-instances", "1",
             "--decode-instances", "1", "--rate", "1e-6", "--input-tokens", str(tokens),
             "--output-tokens", "2", "--chunk", str(CHUNK), "--quantile", "0", "--ttft", "1h",
             "--tpot", "1h", "--output", "json"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def predict_ttft(self, tokens, calibration):
        return self.plan(tokens, calibration)["disaggregated"]["ttft_s"]

    def predict(self, calibration):
        plan = self.plan(CONTEXT, calibration)
        self.read_back(plan, json.loads(calibration.read_text()))
        steps = next({s["batch"]: s["tpot_s"] for s in entry["steps"]} for entry in plan["lengths"]
                     if entry["tokens"] == CONTEXT)
        return ({("ttft", tokens): self.predict_ttft(tokens, calibration) for tokens in self.lengths} |
                {("tpot", batch): steps[batch] for batch in self.batches})

    def read_back(self, plan, calibration):
        """The program's files say to batonctl what the program itself computed with."""
        out = self.options.out
        card = json.loads((out / "catalogue.json").read_text())["accelerators"][0]
        question, step = plan["question"], plan["disaggregated"]["decode"]["step"]
        figures = question["prefill_hardware"]["figures"]
        for key, entry in card.items():
            if key in figures:
                assert math.isclose(figures[key], entry["value"], rel_tol=1e-6), (key, figures, entry)
        assert set(figures) & set(card) >= {"memory_gb_s", "bf16_tflops", "int8_tops"}, figures
        assert question["calibration"] == {"measured": True, "source": calibration["source"]}, question
        of_sequence, of_request = (calibration.get(key, 0) for key in ("sequence_overhead_s", "request_overhead_s"))
        of_step = calibration["step_overhead_s"]
        assert math.isclose(step["overhead_s"], of_step + of_sequence, rel_tol=1e-9, abs_tol=1e-12), step
        prefill, handoff = plan["disaggregated"]["prefill"], plan["disaggregated"]["handoff"]
        ttft = prefill["wait_s"] + prefill["service_s"] + handoff["visible_s"] + of_request
        assert math.isclose(plan["disaggregated"]["ttft_s"], ttft, rel_tol=1e-9), plan["disaggregated"]
        engine = json.loads((out / "calibration.json").read_text())
        later = of_step - engine["step_overhead_s"]
        prompts = {entry["tokens"]: entry["prompt"]["seconds_s"] - later * entry["prompt"]["steps"]
                   for entry in plan["lengths"]}
        compared = 0
        for run in json.loads((out / "comparison.json").read_text()):
            if run["phase"] == "prefill" and run["tokens"] in prompts:
                assert math.isclose(prompts[run["tokens"]], run["estimated_s"], rel_tol=1e-6), run
                compared += 1
        assert compared >= 3, "the program and batonctl plan have no length in common"

    # ---- what is measured

    def bench(self, cluster, *words):
        self.seed += 1
        done = cluster.ctl("bench", "--timeout", "300s", "--output", "json", "--seed", self.seed, *words)
        run = json.loads(done.stdout)["runs"][0]
        assert run["failed"] == 0 and run["unfinished"] == 0 and run["cached_tokens"] == 0, run
        return run

    def row(self, kind, tokens, batch, run):
        times, point = run[kind + "_s"], tokens if kind == "ttft" else batch
        return {"name": f"ttft_{tokens}" if kind == "ttft" else f"tpot_{tokens}_x{batch}",
                "kind": kind, "point": point, "fitted": point in self.fitted[kind], "tokens": tokens,
                "batch": batch, "measured_s": times["p50"], "best_s": times["min"] if kind == "ttft" else None,
                "requests": run["succeeded"]}

    def ttft(self, cluster, tokens):
        run = self.bench(cluster, "--concurrency", 1, "--num-requests", self.prompts, "--warmup", 1,
                         "--input-len", tokens, "--output-len", 2)
        return self.row("ttft", tokens, 1, run)

    def tpot(self, cluster, batch):
        run = self.bench(cluster, "--concurrency", batch, "--num-requests", batch * self.rounds, "--warmup",
                         batch, "--input-len", CONTEXT - self.output // 2, "--output-len", self.output)
        row = self.row("tpot", CONTEXT, batch, run)
        # By Little's law: less than `batch` where prompts were being computed meanwhile.
        row["measured_batch"] = (run["tpot_s"]["mean"] * (self.output - 1) * run["requests_per_s"])
        return row

    def measure(self):
        with self.cluster_module.Cluster(model=self.options.model, served_model_name="planned",
                                         prefill_args=f"--chunked-prefill-size {CHUNK}") as cluster:
            return ([self.ttft(cluster, tokens) for tokens in self.lengths] +
                    [self.tpot(cluster, batch) for batch in self.batches])

    # ---- what the two say together

    def write_overheads(self, step_s, sequence_s, request_s):
        """The engine's calibration with these on top of it."""
        calibration = json.loads((self.options.out / "calibration.json").read_text())
        calibration["step_overhead_s"] += step_s
        calibration |= {"sequence_overhead_s": sequence_s, "request_overhead_s": request_s,
                        "source": "overheads of a cluster; " + calibration["source"]}
        calibration["source"] = calibration["source"][:SOURCE]
        path = self.options.out / "calibration_cluster.json"
        path.write_text(json.dumps(calibration, indent=2) + "\n")
        return path

    def compared(self, rows):
        engine_file = self.options.out / "calibration.json"
        engine = self.predict(engine_file)
        fitted = {kind: [row for row in rows if row["fitted"] and row["kind"] == kind] for kind in self.fitted}
        step_s, sequence_s = fit([(row["batch"], row["measured_s"] - engine["tpot", row["point"]],
                                   row["measured_s"]) for row in fitted["tpot"]])
        steps_alone = self.write_overheads(step_s, sequence_s, 0)
        lacking = [(0, row["measured_s"] - self.predict_ttft(row["tokens"], steps_alone), row["measured_s"])
                   for row in fitted["ttft"]]
        request_s, _ = fit(lacking)
        whole = self.predict(self.write_overheads(step_s, sequence_s, request_s))
        for row in rows:
            measured, best, point = row["measured_s"], row["best_s"], (row["kind"], row["point"])
            row |= {"engine_s": engine[point], "engine_error_percent": 100 * (engine[point] / measured - 1),
                    "predicted_s": whole[point], "error_percent": 100 * (whole[point] / measured - 1),
                    "best_error_percent": best and 100 * (whole[point] / best - 1)}
        return {"step_s": step_s, "sequence_s": sequence_s, "request_s": request_s}


def fit(points):
    """(a, b), neither below 0, of the least sum of ((a + b * x - y) / scale)^2 over points (x, y, scale)."""
    weights = [(1 / (scale * scale), x, y) for x, y, scale in points]
    w, wx, wxx, wy, wxy = (sum(terms) for terms in zip(*(
        (v, v * x, v * x * x, v * y, v * x * y) for v, x, y in weights)))
    det = w * wxx - wx * wx
    lines = [(0, 0), (max(wy / w, 0), 0), (0, max(wxy / wxx, 0) if wxx else 0)]
    if det > 1e-9 * w * wxx:
        lines.append(((wy * wxx - wxy * wx) / det, (wxy * w - wy * wx) / det))
    return min((line for line in lines if min(line) >= 0),
               key=lambda line: sum(v * (line[0] + line[1] * x - y) ** 2 for v, x, y in weights))


def show_rows(title, rows):
    print(f"# {title}")
    print(f"# {'':<14} {'engine/ms':>10} {'error/%':>8} {'predicted/ms':>13} {'measured/ms':>13} {'error/%':>8} "
          f"{'best/ms':>10} {'error/%':>8}")
    for row in rows:
        print(f"# {row['name']:<14} {1e3 * row['engine_s']:10.3f} {row['engine_error_percent']:8.1f} "
              f"{1e3 * row['predicted_s']:13.3f} {1e3 * row['measured_s']:13.3f} {row['error_percent']:8.1f}" +
              (f" {1e3 * row['best_s']:10.3f} {row['best_error_percent']:8.1f}" if row["best_s"] else ""))


def show(rows, overheads, load):
    print(f"# {os.cpu_count()} cpus, load average {load[0]:.1f} before and {load[1]:.1f} after")
    print("# overheads beyond the engine's: a step {step_s:.6f} s, a sequence {sequence_s:.6f} s, "
          "a request {request_s:.6f} s".format(**overheads))
    show_rows("the overheads are fitted to these", [row for row in rows if row["fitted"]])
    show_rows("and tried on these", [row for row in rows if not row["fitted"]])
    for row in rows:
        print(f"figure plan_cluster_{'fit_' if row['fitted'] else ''}{row['name']}_error "
              f"{row['error_percent']:.1f} % 0 {row['predicted_s'] / row['measured_s']:.3f}")


def main():
    options = arguments()
    os.environ["BATON_TEST_BUILD"] = str(options.build.resolve())
    sys.path.insert(0, str(ROOT / "tests/system"))
    import cluster
    options.out.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options, cluster)
    before = os.getloadavg()[0]
    comparison.calibrate()
    rows = comparison.measure()
    after = os.getloadavg()[0]
    overheads = comparison.compared(rows)
    (options.out / "cluster.json").write_text(json.dumps(
        {"cpus": os.cpu_count(), "load_average_before": before, "load_average_after": after,
         "overheads": overheads, "rows": rows}, indent=2) + "\n")
    show(rows, overheads, (before, after))


if __name__ == "__main__":
    main()
