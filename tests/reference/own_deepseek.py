# SPDX-License-Identifier: Apache-2.0
"""Our own reading of DeepSeek-V2: MLA in the absorbed form and mixture of experts, in fp64."""

import math

import torch

from own_text import (
    attend,
    causal,
    checkpoint,
    decode,
    gqa,
    linear,
    rms_norm,
    rope_frequencies,
    rope_settings,
    rotate_interleaved,
    swiglu,
)


def yarn_m(factor, mscale):
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def rope_of(c, n):
    """(angles [T, d/2], amplitude of cos and sin, factor of the attention's scale)."""
    mla = c.get("use_mla", True)
    dim = c["qk_rope_head_dim"] if mla else c["hidden_size"] // c["num_attention_heads"]
    theta, s = rope_settings(c)
    angles = torch.outer(torch.arange(n, dtype=torch.float64), rope_frequencies(dim, theta, s))
    if not s:
        return angles, 1.0, 1.0
    m_all = yarn_m(s["factor"], s["mscale_all_dim"])
    return angles, yarn_m(s["factor"], s["mscale"]) / m_all, m_all * m_all


def mla(c, w, name, x, rope):
    """Scores against the latent itself: W_uk is folded into q, W_uv into the output."""
    angles, amplitude, mscale2 = rope
    n, heads = len(x), c["num_attention_heads"]
    nope, dim, lora = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c.get("kv_lora_rank") or 512
    if c.get("q_lora_rank"):
        a = rms_norm(linear(w, name + ".q_a_proj", x), w[name + ".q_a_layernorm.weight"], 1e-6)
        q = linear(w, name + ".q_b_proj", a)
    else:
        q = linear(w, name + ".q_proj", x)
    q_nope, q_pe = q.view(n, heads, nope + dim).split([nope, dim], dim=-1)
    latent, k_pe = linear(w, name + ".kv_a_proj_with_mqa", x).split([lora, dim], dim=-1)
    latent = rms_norm(latent, w[name + ".kv_a_layernorm.weight"], 1e-6)
    w_uk, w_uv = (
        w[name + ".kv_b_proj.weight"].view(heads, -1, lora).split([nope, c["v_head_dim"]], dim=1)
    )
    q_latent = torch.einsum("qhd,hdl->qhl", q_nope, w_uk)
    q_pe = rotate_interleaved(q_pe, angles) * amplitude
    k_pe = rotate_interleaved(k_pe[:, None], angles) * amplitude
    keys = torch.cat((latent[:, None], k_pe), dim=-1).expand(n, heads, -1)
    out = attend(
        torch.cat((q_latent, q_pe), dim=-1),
        keys,
        latent[:, None].expand(n, heads, -1),
        (nope + dim) ** -0.5 * mscale2,
        causal(n),
    )
    return linear(w, name + ".o_proj", torch.einsum("qhl,hvl->qhv", out, w_uv).flatten(1))


def route(c, w, name, x):
    """(expert ids [T, k], weights [T, k])."""
    logits = x @ w[name + ".gate.weight"].T
    k, experts = c["num_experts_per_tok"], c["n_routed_experts"]
    s = logits.softmax(-1) if c.get("scoring_func", "softmax") == "softmax" else logits.sigmoid()
    choice = s
    if c["topk_method"] == "noaux_tc":
        choice = s + w[name + ".gate.e_score_correction_bias"]
        best_two = choice.view(len(x), c["n_group"], -1).topk(2, dim=-1).values.sum(-1)
        choice = keep_groups(c, choice, best_two, experts)
    elif c["topk_method"] == "group_limited_greedy":
        choice = keep_groups(c, choice, s.view(len(x), c["n_group"], -1).amax(-1), experts)
    ids = choice.argsort(-1, descending=True)[:, :k]
    weights = s.gather(1, ids)
    if k > 1 and c.get("norm_topk_prob"):
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * c.get("routed_scaling_factor", 1.0)


def keep_groups(c, choice, group_score, experts):
    kept = group_score.argsort(-1, descending=True)[:, : c["topk_group"]]
    mask = torch.zeros_like(group_score).scatter_(1, kept, 1.0)
    return choice * mask.repeat_interleave(experts // c["n_group"], dim=1)


def mixture(c, w, name, x):
    ids, weights = route(c, w, name, x)
    out = swiglu(w, name + ".shared_experts", x)
    for t in range(len(x)):
        for e, weight in zip(ids[t].tolist(), weights[t]):
            out[t] = out[t] + weight * swiglu(w, f"{name}.experts.{e}", x[t])
    return out


def language(c, w, x, prefix=""):
    """Logits and trace from embedded tokens x [T, D]."""
    rope = rope_of(c, len(x))

    def attention(name, y):
        return mla(c, w, name, y, rope) if c.get("use_mla", True) else gqa(c, w, name, y, rope[0])

    def mlp(layer, name, y):
        dense = layer < c.get("first_k_dense_replace", 0) or layer % c.get("moe_layer_freq", 1)
        return swiglu(w, name, y) if dense else mixture(c, w, name, y)

    return decode({"rms_norm_eps": 1e-6, **c}, w, x, attention, mlp, prefix)


def text_logits(folder, ids):
    c, w = checkpoint(folder)
    return language(c, w, w["model.embed_tokens.weight"][ids])
