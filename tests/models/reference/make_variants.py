#!/usr/bin/env python3
"""Writes tests/models/<variant>: small checkpoints of random weights, each another configuration
of the family, and golden.safetensors of the reference forward pass in fp32.

  make_variants.py tests/models [variant …]

The seeds are searched so that no choice of experts and no greedy token is near a tie: a correct
program then makes the same choices, and the comparison can be exact.
"""
import json
import os
import sys

import torch

from model import Model, save_safetensors

COMMON = {
    "attention_bias": False, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "kv_lora_rank": 32,
    "max_position_embeddings": 512, "moe_intermediate_size": 16, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": False,
    "num_attention_heads": 4, "num_experts_per_tok": 3, "num_hidden_layers": 3,
    "num_key_value_heads": 4, "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000, "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False, "topk_group": 1, "v_head_dim": 16, "vocab_size": 256,
}

VARIANTS = {
    # as DeepSeek-V2-Lite: no query compression, softmax, plain top-k, YaRN
    "v2-lite": (dict(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", torch_dtype="bfloat16",
        n_shared_experts=2, scoring_func="softmax", topk_method="greedy",
        rope_scaling={"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
                      "mscale_all_dim": 0.707, "original_max_position_embeddings": 64,
                      "type": "yarn"}), 1),
    # as DeepSeek-V2: groups by their best expert, a large scale; f16, sharded, every second layer
    "v2-groups": (dict(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", torch_dtype="float16",
        n_group=4, topk_group=2, q_lora_rank=24, num_hidden_layers=4, moe_layer_freq=2,
        scoring_func="softmax", topk_method="group_limited_greedy", routed_scaling_factor=16.0,
        v_head_dim=24, rope_scaling=None), 3),
    # as DeepSeek-V3 without YaRN and shared experts, f32
    "v3-f32": (dict(
        architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", torch_dtype="float32",
        hidden_size=48, kv_lora_rank=24, intermediate_size=64, n_group=2, topk_group=1, n_shared_experts=None,
        q_lora_rank=16, scoring_func="sigmoid", topk_method="noaux_tc", norm_topk_prob=True,
        routed_scaling_factor=2.5, num_experts_per_tok=2, vocab_size=200), 1),
    # DeepSeek-V3 with no groups at all, tied embeddings, YaRN whose two mscales differ
    "v3-tied": (dict(
        architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", torch_dtype="bfloat16",
        n_group=None, topk_group=None, first_k_dense_replace=0, scoring_func="sigmoid",
        topk_method="noaux_tc", norm_topk_prob=True, routed_scaling_factor=1.5,
        tie_word_embeddings=True, eos_token_id=[1, 2], num_nextn_predict_layers=1,
        rope_theta=50000.0,
        rope_scaling={"beta_fast": 16, "beta_slow": 2, "factor": 4.0, "mscale": 1.0,
                      "mscale_all_dim": 0.5, "original_max_position_embeddings": 32,
                      "rope_type": "yarn"}), 2),
    # no MoE layer; one head, odd sizes
    "dense": (dict(
        architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", torch_dtype="bfloat16",
        n_routed_experts=None, n_shared_experts=None, hidden_size=40, intermediate_size=72,
        kv_lora_rank=20, num_attention_heads=1, num_key_value_heads=1, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=14, vocab_size=131, scoring_func="softmax",
        topk_method="greedy"), 1),
}


def shapes(c):
    """Names and shapes of all tensors."""
    h, heads = c["hidden_size"], c["num_attention_heads"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (c["vocab_size"], h)

    def mlp(p, width):
        out.update({p + ".gate_proj.weight": (width, h), p + ".up_proj.weight": (width, h),
                    p + ".down_proj.weight": (h, width)})

    for n in range(c["num_hidden_layers"]):
        p = f"model.layers.{n}."
        a = p + "self_attn."
        out[p + "input_layernorm.weight"] = out[p + "post_attention_layernorm.weight"] = (h,)
        if c["q_lora_rank"]:
            out[a + "q_a_proj.weight"] = (c["q_lora_rank"], h)
            out[a + "q_a_layernorm.weight"] = (c["q_lora_rank"],)
            out[a + "q_b_proj.weight"] = (heads * qk, c["q_lora_rank"])
        else:
            out[a + "q_proj.weight"] = (heads * qk, h)
        out[a + "kv_a_proj_with_mqa.weight"] = (c["kv_lora_rank"] + c["qk_rope_head_dim"], h)
        out[a + "kv_a_layernorm.weight"] = (c["kv_lora_rank"],)
        out[a + "kv_b_proj.weight"] = (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"])
        out[a + "o_proj.weight"] = (h, heads * c["v_head_dim"])
        if not (c["n_routed_experts"] and n >= c["first_k_dense_replace"] and n % c["moe_layer_freq"] == 0):
            mlp(p + "mlp", c["intermediate_size"])
            continue
        out[p + "mlp.gate.weight"] = (c["n_routed_experts"], h)
        if c["topk_method"] == "noaux_tc":
            out[p + "mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
        for e in range(c["n_routed_experts"]):
            mlp(f"{p}mlp.experts.{e}", c["moe_intermediate_size"])
        if c["n_shared_experts"]:
            mlp(p + "mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
    return out


def weight(name, shape, generator):
    """Scaled so that states stay near 1 and logits spread over several units."""
    r = torch.randn(shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return 0.2 * r
    if len(shape) == 1:
        return 1 + 0.2 * r
    if name == "model.embed_tokens.weight":
        return r * 0.5
    if name == "lm_head.weight":
        return 3 * r * shape[1] ** -0.5
    return 1.5 * r * shape[1] ** -0.5


def tensors(c, seed):
    g, dtype = torch.Generator().manual_seed(seed), getattr(torch, c["torch_dtype"])
    return {name: weight(name, shape, g).to(torch.float32 if "correction_bias" in name else dtype)
            for name, shape in sorted(shapes(c).items())}


def write_checkpoint(where, c, seed, shards):
    os.makedirs(where, exist_ok=True)
    json.dump(c, open(os.path.join(where, "config.json"), "w"), indent=1, sort_keys=True)
    all_tensors = tensors(c, seed)
    if shards == 1:
        save_safetensors(os.path.join(where, "model.safetensors"), all_tensors)
        return
    names, weight_map = list(all_tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        mine = names[i::shards]
        save_safetensors(os.path.join(where, file), {k: all_tensors[k] for k in mine})
        weight_map.update({k: file for k in mine})
    total = sum(t.numel() * t.element_size() for t in all_tensors.values())
    json.dump({"metadata": {"total_size": total}, "weight_map": weight_map},
              open(os.path.join(where, "model.safetensors.index.json"), "w"), indent=1, sort_keys=True)


def golden(where, seed, tokens=80, steps=24):
    m, m64 = Model(where), Model(where, torch.float64)
    ids = torch.randint(2, m.c["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(seed + 1000))
    record, cache, out, gaps = {}, {}, [], []
    logits = m.forward(ids, cache, record=record)
    t = {"ids": ids.int(), "positions": torch.arange(tokens).int(), "logits": logits}
    if "experts" in record:
        t["experts"] = torch.stack(record["experts"]).int()
        t["expert_weights"] = torch.stack(record["expert_weights"])
    t["fp32_minus_fp64"] = (logits - m64.forward(ids)).abs().max().float().view(1)
    last = logits[-1]
    for _ in range(steps):
        out.append(int(last.argmax()))
        gaps.append(float(last.topk(2)[0].diff().abs()))
        last = m.forward(out[-1:], cache, absorbed=True)[-1]
    t["greedy"], t["greedy_gap"] = torch.tensor(out).int(), torch.tensor(gaps)
    t["router_gap"] = torch.tensor([min(m.router_gap, 1.0)])
    return t


def main(root, names):
    for name in names or VARIANTS:
        changes, shards = VARIANTS[name]
        c, where = {**COMMON, **changes}, os.path.join(root, name)
        for seed in range(1, 1000):
            write_checkpoint(where, c, seed, shards)
            t = golden(where, seed)
            if float(t["router_gap"]) > 2e-4 and float(t["greedy_gap"].min()) > 5e-3:
                break
        else:
            sys.exit(f"{name}: no seed without near-ties")
        save_safetensors(os.path.join(where, "golden.safetensors"), t)
        print(f"{name}: seed {seed}, logits std {float(t['logits'].std()):.2f}, "
              f"fp32-fp64 {float(t['fp32_minus_fp64']):.1e}, router gap {float(t['router_gap']):.1e}, "
              f"greedy gap {float(t['greedy_gap'].min()):.1e}, {len(set(t['greedy'].tolist()))} different tokens")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main(sys.argv[1], sys.argv[2:])
