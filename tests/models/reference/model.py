"""Reference forward pass of the DeepSeek V2 and V3 family in plain PyTorch.

Written to be read, not to be fast. It is what the goldens of tests/models were made with; nothing
of it is used by the programs. Attention exists twice: in the multi-head form (keys and values are
expanded from the latent) and in the absorbed form (the queries are taken to the latent space, so
that only the latent is cached).
"""
import json
import math
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
TYPES = {v: k for k, v in NAMES.items()}


def save_safetensors(path, tensors):
    """8 bytes of header length, the JSON header padded with spaces to 8 bytes, then the raw data."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for k, t in tensors.items():
        n = t.numel() * t.element_size()
        header[k] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + n]}
        at += n
    j = json.dumps(header, separators=(",", ":")).encode()
    j += b" " * (-len(j) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(j)) + j)
        for t in tensors.values():
            t = t.contiguous()
            f.write((t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().tobytes())


def load_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    n, = struct.unpack_from("<Q", data)
    out = {}
    for k, h in json.loads(data[8:8 + n]).items():
        if k != "__metadata__":
            a, b = h["data_offsets"]
            raw = torch.from_numpy(np.frombuffer(data[8 + n + a:8 + n + b], dtype=np.uint8).copy())
            out[k] = raw.view(TYPES[h["dtype"]]).view(h["shape"])
    return out


def load_checkpoint(where):
    index = os.path.join(where, "model.safetensors.index.json")
    if not os.path.exists(index):
        return load_safetensors(os.path.join(where, "model.safetensors"))
    out = {}
    for shard in sorted(set(json.load(open(index))["weight_map"].values())):
        out.update(load_safetensors(os.path.join(where, shard)))
    return out


def yarn_mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(c):
    """1/sqrt(d), times mscale^2 where YaRN says so."""
    scale, y = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5, c.get("rope_scaling")
    if y and y.get("mscale_all_dim", 0):
        scale *= yarn_mscale(y["factor"], y["mscale_all_dim"]) ** 2
    return scale


def rope_tables(c, n):
    """Cosine and sine [n, qk_rope_head_dim/2], fp32; frequencies blended where YaRN is on."""
    d, base, y = c["qk_rope_head_dim"], c["rope_theta"], c.get("rope_scaling")
    extra = (1.0 / base ** (np.arange(0, d, 2, dtype=np.float32) / d)).astype(np.float32)
    m = 1.0
    if y:
        inter = extra / y["factor"]

        def correction(rotations):
            original = y["original_max_position_embeddings"]
            return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))
        low = max(math.floor(correction(y.get("beta_fast", 32))), 0)
        high = min(math.ceil(correction(y.get("beta_slow", 1))), d - 1)
        if low == high:
            high += 0.001
        keep = 1 - np.clip((np.arange(d // 2, dtype=np.float32) - low) / (high - low), 0, 1)
        extra = (inter * (1 - keep) + extra * keep).astype(np.float32)
        m = yarn_mscale(y["factor"], y.get("mscale", 1)) / yarn_mscale(y["factor"], y.get("mscale_all_dim", 0))
    t = np.outer(np.arange(n, dtype=np.float32), extra)
    return (np.cos(t) * m).astype(np.float32), (np.sin(t) * m).astype(np.float32)


def rotate(x, cos, sin):
    """x [T, heads, d], pairs interleaved as stored; the result has the two halves in a row."""
    x0, x1 = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([x0 * cos - x1 * sin, x1 * cos + x0 * sin], -1)


class Model:
    """model = Model(directory); logits = model.forward(ids). One sequence at a time, no batch."""

    def __init__(self, where, dtype=torch.float32):
        self.c = json.load(open(os.path.join(where, "config.json")))
        self.w = {k: t.to(dtype) for k, t in load_checkpoint(where).items()}
        self.cos, self.sin = (torch.from_numpy(t).to(dtype)
                              for t in rope_tables(self.c, self.c["max_position_embeddings"]))
        self.router_gap = math.inf

    def lin(self, x, name):
        return F.linear(x, self.w[name + ".weight"])

    def norm(self, x, name):
        # the published classes of the two latent norms are made without rms_norm_eps
        eps = 1e-6 if name.endswith(("q_a_layernorm", "kv_a_layernorm")) else self.c["rms_norm_eps"]
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return self.w[name + ".weight"] * (x * scale)

    def queries_and_latent(self, x, n, start):
        """q_nope [T,h,nope], q_pe [T,h,rope] rotated, c_kv [T,lora] normed, k_pe [T,rope] rotated."""
        c, p, T = self.c, f"model.layers.{n}.self_attn.", x.shape[0]
        if c.get("q_lora_rank"):
            q = self.lin(self.norm(self.lin(x, p + "q_a_proj"), p + "q_a_layernorm"), p + "q_b_proj")
        else:
            q = self.lin(x, p + "q_proj")
        q = q.view(T, c["num_attention_heads"], -1)
        q_nope, q_pe = q.split([c["qk_nope_head_dim"], c["qk_rope_head_dim"]], -1)
        kv = self.lin(x, p + "kv_a_proj_with_mqa")
        c_kv = self.norm(kv[:, :c["kv_lora_rank"]], p + "kv_a_layernorm")
        cos, sin = self.cos[start:start + T], self.sin[start:start + T]
        return q_nope, rotate(q_pe, cos, sin), c_kv, rotate(kv[:, None, c["kv_lora_rank"]:], cos, sin)[:, 0]

    def attention(self, x, n, cache, absorbed):
        """cache: {layer: (c_kv, k_pe)} of the tokens before; it is extended."""
        c, p, T = self.c, f"model.layers.{n}.self_attn.", x.shape[0]
        start = cache[n][0].shape[0] if n in cache else 0
        q_nope, q_pe, c_kv, k_pe = self.queries_and_latent(x, n, start)
        if start:
            c_kv, k_pe = torch.cat([cache[n][0], c_kv]), torch.cat([cache[n][1], k_pe])
        cache[n] = c_kv, k_pe
        w = self.w[p + "kv_b_proj.weight"].view(c["num_attention_heads"], -1, c["kv_lora_rank"])
        w_k, w_v = w.split([c["qk_nope_head_dim"], c["v_head_dim"]], 1)
        if absorbed:
            q = torch.einsum("thn,hnl->htl", q_nope, w_k)
            k = v = c_kv[None]
        else:
            q = q_nope.transpose(0, 1)
            k, v = torch.einsum("sl,hnl->hsn", c_kv, w_k), torch.einsum("sl,hvl->hsv", c_kv, w_v)
        s = (q @ k.transpose(1, 2) + q_pe.transpose(0, 1) @ k_pe.T) * softmax_scale(c)
        seen = torch.arange(start + T)[None] <= torch.arange(start, start + T)[:, None]
        o = torch.softmax(s.masked_fill(~seen, float("-inf")), -1) @ v
        if absorbed:
            o = torch.einsum("htl,hvl->htv", o, w_v)
        return self.lin(o.transpose(0, 1).reshape(T, -1), p + "o_proj")

    def mlp(self, x, p):
        return self.lin(F.silu(self.lin(x, p + ".gate_proj")) * self.lin(x, p + ".up_proj"), p + ".down_proj")

    def best(self, scores, count):
        """The best `count` of each row; notes the smallest gap to one that was left out."""
        if count < scores.shape[1]:
            t = scores.topk(count + 1, -1)[0]
            self.router_gap = min(self.router_gap, float((t[:, -2] - t[:, -1]).min()))
        return scores.topk(count, -1)[1]

    def route(self, x, p):
        """Experts and weights of each token, [T, num_experts_per_tok] both, in the order of choice."""
        c = self.c
        logits = F.linear(x, self.w[p + ".gate.weight"])
        scores = torch.sigmoid(logits) if c["scoring_func"] == "sigmoid" else torch.softmax(logits, -1)
        choice = scores
        if c["topk_method"] == "noaux_tc":
            choice = scores + self.w[p + ".gate.e_score_correction_bias"]
        if c["topk_method"] != "greedy" and (c.get("n_group") or 1) > 1:
            g = choice.view(x.shape[0], c["n_group"], -1)
            # V2 takes a group by its best expert, V3 by the sum of its two best
            of_group = g.topk(2, -1)[0].sum(-1) if c["topk_method"] == "noaux_tc" else g.max(-1)[0]
            kept = self.best(of_group, c["topk_group"])
            keep = torch.zeros(g.shape[:2], dtype=torch.bool).scatter_(1, kept, True)
            choice = g.masked_fill(~keep[..., None], float("-inf")).flatten(1)
        idx = self.best(choice, c["num_experts_per_tok"])
        w = scores.gather(1, idx)
        v2, norm = c["model_type"] == "deepseek_v2", c["norm_topk_prob"]
        if norm and not (v2 and c["num_experts_per_tok"] == 1):
            w = w / (w.sum(-1, keepdim=True) + 1e-20)
            if v2:  # normalised or scaled, V3 both
                return idx, w
        return idx, w * c["routed_scaling_factor"]

    def moe(self, x, p, record):
        idx, w = self.route(x, p)
        record.setdefault("experts", []).append(idx)
        record.setdefault("expert_weights", []).append(w)
        y = torch.zeros_like(x)
        for e in range(self.c["n_routed_experts"]):
            t, k = torch.where(idx == e)
            if len(t):
                y[t] += self.mlp(x[t], f"{p}.experts.{e}") * w[t, k, None]
        return y + self.mlp(x, p + ".shared_experts") if self.c.get("n_shared_experts") else y

    def is_moe(self, n):
        c = self.c
        return bool(c.get("n_routed_experts")) and n >= c["first_k_dense_replace"] \
            and n % c.get("moe_layer_freq", 1) == 0

    def layer(self, x, n, cache, absorbed, record):
        p = f"model.layers.{n}."
        x = x + self.attention(self.norm(x, p + "input_layernorm"), n, cache, absorbed)
        h = self.norm(x, p + "post_attention_layernorm")
        return x + (self.moe(h, p + "mlp", record) if self.is_moe(n) else self.mlp(h, p + "mlp"))

    def forward(self, ids, cache=None, absorbed=False, record=None):
        """Logits [T, vocab]. `record`, a dict, gets experts and expert_weights of each MoE layer."""
        cache, record = {} if cache is None else cache, {} if record is None else record
        x = self.w["model.embed_tokens.weight"][torch.as_tensor(ids)]
        for n in range(self.c["num_hidden_layers"]):
            x = self.layer(x, n, cache, absorbed, record)
        x = self.norm(x, "model.norm")
        return self.lin(x, "model.embed_tokens" if self.c.get("tie_word_embeddings") else "lm_head")
