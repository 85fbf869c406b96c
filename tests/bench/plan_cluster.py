#!/usr/bin/env python3
"""The planner against a running cluster: one prefill and one decode worker on this machine, a core each.

  plan_cluster.py PLAN_PROGRAM BUILD_DIR OUT_DIR [--model DIR] [--quick]

PLAN_PROGRAM (tests/bench/plan) measures this machine and calibrates with the engine alone; its files stay in OUT_DIR.
`batonctl up` starts the cluster, `batonctl bench` measures it: TTFT by the length of prompts, one request at a time, and
TPOT by the batch, so many requests always open. `batonctl plan` says with the files what that deployment should do. So
an error is what the planner does not know of: router, RPC, scheduling, the handoff's messages, and other processes on
the same cores. A run's median is compared; its best TTFT is what is left where others use the cores (a best TPOT would
be that of tokens which came together). A prompt is never found in the cache.

  figure plan_cluster_ttft_<tokens>_error         ERROR % 0 PREDICTED/MEASURED
  figure plan_cluster_tpot_<context>_x<batch>_error

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
        self.lengths = [128, 512] if quick else [128, 512, 1024, 2048]
        self.batches = [1, 2] if quick else [1, 2, 4, 8]
        self.output = 16 if quick else 768    # long: few prompts are computed meanwhile
        self.prompts = 2 if quick else 11
        self.rounds = 1 if quick else 2
        self.seed = 0

    # ---- what is predicted

    def calibrate(self):
        command = [self.options.program, "--model", self.options.model, "--cores", "1", "--out",
                   self.options.out, *(["--quick"] if self.options.quick else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def plan(self, tokens):
        """batonctl plan of this deployment, with hardly any load: no request waits for another."""
        out = self.options.out
        done = subprocess.run(
            [self.cluster_module.BATONCTL, "plan", "--model", self.options.model, "--hardware", "cpu-here",
             "--catalogue", out / "catalogue.json", "--calibration", out / "calibration.json",
             "--prefill-layout", LAYOUT, "--decode-layout", LAYOUT, "--prefill-instances", "1",
             "--decode-instances", "1", "--rate", "1e-6", "--input-tokens", str(tokens),
             "--output-tokens", "2", "--chunk", str(CHUNK), "--quantile", "0", "--ttft", "1h",
             "--tpot", "1h", "--output", "json"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def read_back(self, plan):
        """The program's files say to batonctl what the program itself computed with."""
        out = self.options.out
        card = json.loads((out / "catalogue.json").read_text())["accelerators"][0]
        calibration = json.loads((out / "calibration.json").read_text())
        question, step = plan["question"], plan["disaggregated"]["decode"]["step"]
        figures = question["prefill_hardware"]["figures"]
        for key, entry in card.items():
            if key in figures:
                assert math.isclose(figures[key], entry["value"], rel_tol=1e-6), (key, figures, entry)
        assert set(figures) & set(card) >= {"memory_gb_s", "bf16_tflops", "int8_tops"}, figures
        assert question["calibration"] == {"measured": True, "source": calibration["source"]}, question
        assert math.isclose(step["overhead_s"], calibration["step_overhead_s"], abs_tol=1e-12), step
        prompts = {entry["tokens"]: entry["prompt"]["seconds_s"] for entry in plan["lengths"]}
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

    def row(self, name, tokens, batch, predicted, run):
        times = run[name[:4] + "_s"]
        measured, best = times["p50"], times["min"] if name.startswith("ttft") else None
        return {"name": name, "tokens": tokens, "batch": batch, "predicted_s": predicted,
                "measured_s": measured, "error_percent": 100 * (predicted / measured - 1),
                "best_s": best, "best_error_percent": best and 100 * (predicted / best - 1),
                "requests": run["succeeded"]}

    def ttft(self, cluster, tokens):
        predicted = self.plan(tokens)["disaggregated"]["ttft_s"]
        run = self.bench(cluster, "--concurrency", 1, "--num-requests", self.prompts, "--warmup", 1,
                         "--input-len", tokens, "--output-len", 2)
        return self.row(f"ttft_{tokens}", tokens, 1, predicted, run)

    def tpot(self, cluster, steps, batch):
        run = self.bench(cluster, "--concurrency", batch, "--num-requests", batch * self.rounds, "--warmup",
                         batch, "--input-len", CONTEXT - self.output // 2, "--output-len", self.output)
        row = self.row(f"tpot_{CONTEXT}_x{batch}", CONTEXT, batch, steps[batch], run)
        # By Little's law: less than `batch` where prompts were being computed meanwhile.
        row["measured_batch"] = (run["tpot_s"]["mean"] * (self.output - 1) * run["requests_per_s"])
        return row

    def rows(self):
        plan = self.plan(CONTEXT)
        self.read_back(plan)
        steps = next({s["batch"]: s["tpot_s"] for s in entry["steps"]} for entry in plan["lengths"]
                     if entry["tokens"] == CONTEXT)
        with self.cluster_module.Cluster(model=self.options.model, served_model_name="planned",
                                         prefill_args=f"--chunked-prefill-size {CHUNK}") as cluster:
            return ([self.ttft(cluster, tokens) for tokens in self.lengths] +
                    [self.tpot(cluster, steps, batch) for batch in self.batches])


def show(rows, load):
    print(f"# {os.cpu_count()} cpus, load average {load[0]:.1f} before and {load[1]:.1f} after")
    print(f"# {'':<14} {'predicted/ms':>13} {'measured/ms':>13} {'error/%':>8} {'best/ms':>10} {'error/%':>8}")
    for row in rows:
        print(f"# {row['name']:<14} {1e3 * row['predicted_s']:13.3f} {1e3 * row['measured_s']:13.3f} "
              f"{row['error_percent']:8.1f}" +
              (f" {1e3 * row['best_s']:10.3f} {row['best_error_percent']:8.1f}" if row["best_s"] else ""))
    for row in rows:
        print(f"figure plan_cluster_{row['name']}_error {row['error_percent']:.1f} % 0 "
              f"{row['predicted_s'] / row['measured_s']:.3f}")


def main():
    options = arguments()
    os.environ["BATON_TEST_BUILD"] = str(options.build.resolve())
    sys.path.insert(0, str(ROOT / "tests/system"))
    import cluster
    options.out.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options, cluster)
    before = os.getloadavg()[0]
    comparison.calibrate()
    rows = comparison.rows()
    after = os.getloadavg()[0]
    (options.out / "cluster.json").write_text(json.dumps(
        {"cpus": os.cpu_count(), "load_average_before": before, "load_average_after": after,
         "rows": rows}, indent=2) + "\n")
    show(rows, (before, after))


if __name__ == "__main__":
    main()
