"""batonctl plan: its JSON against the published formulas done again here, and what it refuses."""

import json
import math
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as tree

PROGRAM = None
G = 1024.0 ** 3
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "qk_nope_head_dim": 128, "topk_method": "noaux_tc", "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "moe_layer_freq": 1, "first_k_dense_replace": 3,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "hidden_act": "silu",
    "max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


class Plan(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.config = self.write("config.json", json.dumps(V3))

    def write(self, name, text):
        path = os.path.join(self.dir.name, name)
        with open(path, "wb") as out:
            out.write(text if isinstance(text, bytes) else text.encode())
        return path

    def run_plan(self, *words, model=None):
        return subprocess.run([PROGRAM, "plan", "--model", model or self.config, *words],
                              capture_output=True, text=True, timeout=60)

    def plan(self, *words, code=0):
        done = self.run_plan("--hardware", "h20", "--output", "json", *words)
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout)

    def refused(self, *words, model=None, hardware=("--hardware", "h20")):
        done = self.run_plan(*hardware, *words, model=model)
        self.assertEqual(done.returncode, 2, (words, done.stdout[-300:], done.stderr))
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr

    PUBLISHED = ("--calibration", "published", "--weights", "w4a8", "--input-tokens", "3260",
                 "--output-tokens", "1100", "--tpot", "10s", "--ttft", "100s", "--chunk", "0")

    def test_published_vectors(self):
        for tp in 1, 8:
            plan = self.plan(*self.PUBLISHED, "--prefill-layout", f"tp{tp},dp{8 // tp}",
                             "--decode-layout", "dp8", "--prefill-instances", "1",
                             "--decode-instances", "1", "--rate", "0.1")
            prompt, = plan["prefill_layouts"]
            cost = prompt["prompt"]
            self.assertAlmostEqual(cost["attention_operations"] * tp / G, 24730, delta=1)
            self.assertAlmostEqual(cost["expert_network_bytes"] / G, 40.392, delta=0.001)
            tensor = {1: 0, 8: 45.04 - 40.392}[tp]
            self.assertAlmostEqual(cost["tensor_network_bytes"] / G, tensor, delta=0.005)
            memory = prompt["memory"]
            whole = plan["question"]["model"]
            dense, moe = whole["dense_parameters"], whole["moe_parameters"]
            self.assertAlmostEqual((dense + moe / 2) / 1e9, 342.5, delta=1.5)
            self.assertAlmostEqual(memory["weight_bytes"] / (dense / tp + moe / 2 / 8), 1, 9)
            # 0.1067 GB of one byte each
            handoff = plan["disaggregated"]["handoff"]
            self.assertAlmostEqual(handoff["bytes"] / 2 / G, 0.1067, delta=0.0001)
            decode = plan["disaggregated"]["decode"]
            batch = max(decode["batch"], 1)
            step = decode["step"]
            self.assertAlmostEqual(step["attention_operations"] / batch / G, 60.29, delta=0.01)
            self.assertAlmostEqual(step["kv_read_bytes"] / batch / (61 * 3810 * 576 * 2), 1, 9)

    def test_sums_and_laws(self):
        plan = self.plan("--rate", "25", "--input-tokens", "3000", "--output-tokens", "400")
        self.assertTrue(plan["found"])
        best = plan["disaggregated"]
        cost = best["prefill"]["prompt"]
        self.assertAlmostEqual(cost["seconds_s"], cost["compute_s"] + cost["memory_s"] +
                               cost["network_s"] + cost["overhead_s"])
        self.assertAlmostEqual(best["ttft_s"], best["prefill"]["wait_s"] + cost["seconds_s"] +
                               best["handoff"]["visible_s"])
        decode = best["decode"]
        groups = decode["layout"]["instances"] * decode["layout"]["dp"]
        self.assertAlmostEqual(decode["batch"] / (25 * 399 * best["tpot_s"] / groups), 1, 6)
        self.assertEqual(best["cards"],
                         best["prefill"]["layout"]["cards"] + decode["layout"]["cards"])
        self.assertLessEqual(best["ttft_s"], 2)
        self.assertLessEqual(best["tpot_s"], 0.05)
        self.assertEqual([v["with"] for v in plan["variants"]],
                         ["as asked", "W4A8", "FP8 KV", "MTP", "DSA", "mHC"])
        self.assertEqual(plan["variants"][0]["outcome"], best)
        self.assertEqual(plan["disaggregate"],
                         best["cost_per_hour"] <= plan["aggregated"]["cost_per_hour"])
        lengths = plan["lengths"]
        self.assertEqual(sorted(one["ttft_s"] for one in lengths),
                         [one["ttft_s"] for one in lengths])
        curve = plan["goodput"]
        top = max(point["goodput_requests_per_s"] for point in curve["points"])
        self.assertEqual(curve["points"][curve["best"]]["goodput_requests_per_s"], top)
        for point in curve["points"]:
            self.assertLessEqual(point["prefill_cards"] + point["decode_cards"], curve["cards"])

    def test_the_answer_is_good_as_named_and_none_can_be_left_out(self):
        load = ("--rate", "60", "--input-tokens", "3000", "--output-tokens", "400")
        best = self.plan(*load)["disaggregated"]

        def name(layout):
            return f"tp{layout['tp']},dp{layout['dp']},ep{layout['ep']}"

        def named(fewer_prefill, fewer_decode):
            prefill, decode = best["prefill"]["layout"], best["decode"]["layout"]
            counts = (prefill["instances"] - fewer_prefill, decode["instances"] - fewer_decode)
            if 0 in counts:
                return False
            done = self.run_plan(
                "--hardware", "h20", "--output", "json", *load, "--prefill-layout", name(prefill),
                "--decode-layout", name(decode), "--prefill-instances", str(counts[0]),
                "--decode-instances", str(counts[1]))
            found = json.loads(done.stdout)
            self.assertEqual(done.returncode, 0 if found["found"] else 1, done.stderr)
            self.assertEqual(bool(found["why_not"]), not found["found"])
            return found

        self.assertGreater(best["prefill"]["layout"]["instances"], 1)
        whole = named(0, 0)
        self.assertEqual(whole["disaggregated"], best)
        for fewer in (1, 0), (0, 1):
            less = named(*fewer)
            self.assertFalse(less and less["found"], fewer)

    def test_lines_of_the_explanation_add_up(self):
        self.explained_by_numbers(self.plan("--explain")["explained"])

    def explained_by_numbers(self, lines):
        self.assertGreater(len(lines), 20)
        for line in lines:
            name, *_, numbers, value = line.split(" = ")
            with self.subTest(line):
                said = float(value.split()[0])
                self.assertLessEqual(set(numbers), set("0123456789.+-*/()e"))
                self.assertAlmostEqual(eval(numbers), said, delta=1e-4 * abs(said) + 1e-12)

    def test_limits_that_can_not_be_met_are_told(self):
        for words, part in ((("--ttft", "10ms"), "over 0.01 s of TTFT"),
                            (("--tpot", "1ms"), "over 0.001 s of TPOT"),
                            (("--max-instance-cards", "4"), "holds the model"),
                            (("--max-cards", "16"), "cards")):
            plan = self.plan(*words, "--rate", "50", code=1)
            self.assertFalse(plan["found"])
            self.assertIn(part, plan["why_not"])
            done = self.run_plan("--hardware", "h20", "--rate", "50", *words)
            self.assertEqual(done.returncode, 1)
            self.assertIn(part, done.stderr)
            self.assertIn("VERDICT", done.stdout)

    def test_charts_are_xml(self):
        path = os.path.join(self.dir.name, "a.svg")
        self.plan("--svg", path)
        charts = tree.parse(path).getroot().findall("{http://www.w3.org/2000/svg}g")
        self.assertEqual(len(charts), 3)
        self.roofs_bend_where_memory_and_peak_meet(charts[:2])
        self.assertIn("/none/a.svg", self.refused_svg())

    # H20: 296e12 of fp8 over 4e12 bytes/s are 74 operations a byte; at 60 % of the peak, 44.4.
    def roofs_bend_where_memory_and_peak_meet(self, charts):
        svg = "{http://www.w3.org/2000/svg}"
        for chart in charts:
            marks = sorted((float(text.get("x")), math.log(float(text.text)))
                           for text in chart.findall(f"{svg}text[@class='tick-x']"))
            (at_low, low), *_, (at_high, high) = marks
            paths = [series.find(f"{svg}path").get("d").split()
                     for series in chart.findall(f"{svg}g[@class='series']")[:2]]
            for path, knee in zip(paths, (74.0, 44.4)):
                points = [(float(x.lstrip("ML")), float(y)) for x, y in zip(path[::2], path[1::2])]
                top = min(y for _, y in points)
                first = min(x for x, y in points if y < top + 0.02)
                said = low + (first - at_low) / (at_high - at_low) * (high - low)
                self.assertAlmostEqual(math.exp(said), knee, delta=0.01 * knee)

    def refused_svg(self):
        done = self.run_plan("--hardware", "h20", "--svg", "/none/a.svg")
        self.assertEqual(done.returncode, 1)
        return done.stderr

    def test_files_of_measurements(self):
        catalogue = self.write("cards.json", json.dumps({"accelerators": [{
            "name": "mine", "title": "mine", **{
                key: {"value": value, "source": "here"} for key, value in (
                    ("memory_gb", 1000), ("memory_gb_s", 1000), ("bf16_tflops", 100),
                    ("node_cards", 8), ("inside_gb_s", 100), ("between_gb_s", 100),
                    ("reserve_gb", 1), ("price_per_hour", 7))}}]}))
        calibration = self.write("measured.json", json.dumps(
            {"prefill_mfu": 0.25, "decode_mfu": 0.5, "source": "a test"}))
        words = ("--catalogue", catalogue, "--prefill-hardware", "mine", "--ttft", "60s")
        one = self.plan(*words, "--weights", "bf16")
        half = self.plan(*words, "--weights", "bf16", "--calibration", calibration)
        self.assertEqual(one["question"]["prefill_hardware"]["name"], "mine")
        self.assertEqual(one["question"]["decode_hardware"]["name"], "h20")
        figures = one["question"]["prefill_hardware"]["figures"]
        for key, value in ("memory_gb", 1000), ("bf16_tflops", 100), ("between_gb_s", 100), ("cores", 1):
            self.assertAlmostEqual(figures[key], value, msg=key)
        self.assertEqual(half["question"]["calibration"], {"measured": True, "source": "a test"})
        ratio = (half["prefill_layouts"][0]["prompt"]["compute_s"] /
                 one["prefill_layouts"][0]["prompt"]["compute_s"])
        self.assertAlmostEqual(ratio, 0.6 / 0.25)

    def test_overheads_of_a_calibration(self):
        words = ("--weights", "w4a8", "--output-tokens", "2", "--ttft", "1h", "--tpot", "1h",
                 "--rate", "1e-6", "--chunk", "1024", "--prefill-layout", "tp8", "--decode-layout", "dp8",
                 "--prefill-instances", "1", "--decode-instances", "1", "--explain", "--calibration")
        plain = self.plan(*words, self.write("none.json", "{}"))
        late = self.plan(*words, self.write("late.json", json.dumps(
            {"step_overhead_s": 0.125, "sequence_overhead_s": 0.25, "request_overhead_s": 3})))
        for before, after in zip(plain["lengths"], late["lengths"]):
            chunks = -(-before["tokens"] // 1024)
            for name, of_each in ("prompt", 0.125 * chunks), ("ttft_s", 3 + 0.125 * chunks):
                one, other = (e[name]["seconds_s"] if name == "prompt" else e[name] - e["handoff_visible_s"]
                              for e in (before, after))
                self.assertAlmostEqual(other - one, of_each)
            for one, other in zip(before["steps"], after["steps"]):
                self.assertAlmostEqual(other["tpot_s"] - one["tpot_s"], 0.125 + 0.25 * one["batch"])
        explained = {line.split(" = ")[0]: line for line in late["explained"]}
        self.assertIn("*0.125", explained["prefill.overhead"])
        self.assertIn("0.125+1*0.25", explained["decode.overhead"])
        self.assertIn("+3 = ", explained["ttft"])
        self.explained_by_numbers(late["explained"])

    def test_attention_of_cpus_is_bf16(self):
        figures = {"memory_gb": 2000, "memory_gb_s": 1000, "bf16_tflops": 100, "int8_tops": 400,
                   "node_cards": 8, "inside_gb_s": 100, "between_gb_s": 100, "reserve_gb": 1,
                   "price_per_hour": 7}
        catalogue = self.write("two.json", json.dumps({"accelerators": [
            {"name": name, "title": name, **{key: {"value": value, "source": "here"}
                                             for key, value in figures.items()}}
            for name in ("cpu-x", "card-x")]}))
        words = ("--catalogue", catalogue, "--weights", "int8", "--ttft", "1h", "--tpot", "1h",
                 "--rate", "0.001", "--explain", "--hardware")
        for name, attention_peak in ("cpu-x", 100e12), ("card-x", 400e12):
            done = self.run_plan(*words, name, "--output", "json")
            self.assertEqual(done.returncode, 0, done.stderr)
            plan = json.loads(done.stdout)
            for cost in (plan["disaggregated"]["prefill"]["prompt"], plan["disaggregated"]["decode"]["step"]):
                attention = cost["attention_operations"]
                wanted = ((cost["operations"] - attention) / 400e12 + attention / attention_peak) / 0.6
                self.assertAlmostEqual(cost["compute_s"] / wanted, 1, places=6)
            self.explained_by_numbers(plan["explained"])

    def test_this_machine(self):
        done = self.run_plan("--hardware", "cpu", "--cores", "1", "--output", "json")
        plan = json.loads(done.stdout)
        self.assertEqual(plan["question"]["prefill_hardware"]["figures"]["cores"], 1)

    def test_words_that_are_wrong(self):
        text = self.refused(hardware=("--hardware", "nosuch"))
        for name in "h20", "h100", "mi300x", "cpu":
            self.assertIn(name, text)
        self.assertIn("h20", self.refused(hardware=()))
        for layout in "", "tp", "tp0", "tp3", "tp8,tp8", "xx8", "tp8,", "tp99999999999", "tp65536,dp65536":
            self.assertIn("layout", self.refused("--prefill-layout", layout))
        self.assertIn("ep 3", self.refused("--decode-layout", "dp8,ep3"))
        self.assertIn("together", self.refused("--prefill-instances", "2"))
        self.assertIn("MTP", self.refused("--mtp-drafts", "1", model=self.write(
            "no-mtp.json", json.dumps({**V3, "num_nextn_predict_layers": 0}))))
        self.assertIn("broken.json", self.refused("--catalogue", self.write("broken.json", "{")))
        self.assertIn("prefill_mfu", self.refused("--calibration", self.write(
            "c.json", '{"prefill_mfu": 2}')))
        self.assertIn("/none", self.refused(model="/none"))

    def test_hostile_configs(self):
        texts = [b"", b"[]", b"{", b"null", b"{}", b"\xff\xfe", b"[" * 100000, b"\0" * 100,
                 b'{"hidden_size": 1e999}']
        for key, value in V3.items():
            if isinstance(value, int) and not isinstance(value, bool) and key in (
                    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
                    "num_hidden_layers", "num_attention_heads", "n_routed_experts",
                    "num_experts_per_tok", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim"):
                for bad in -1, 1 << 62, "7", None, [], 1.5:
                    if key == "n_routed_experts" and bad is None:
                        continue  # a model without experts
                    texts.append(json.dumps({**V3, key: bad}).encode())
        for nth, text in enumerate(texts):
            path = self.write(f"hostile-{nth}.json", text)
            with self.subTest(text[:60]):
                done = self.run_plan("--hardware", "h20", model=path)
                self.assertEqual(done.returncode, 2, (text[-200:], done.stderr))
                self.assertIn(f"hostile-{nth}.json", done.stderr)
                self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
