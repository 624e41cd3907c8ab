# SPDX-License-Identifier: Apache-2.0
"""Our own reading of the Llama and Qwen2 families, independent of transformers: plain torch in
fp64 from the checkpoint's files. `check_own.py` holds the committed references against it."""

import json
import math
import pathlib

import torch
from safetensors.torch import load_file


def checkpoint(folder):
    """config.json and all tensors in fp64, through the index where there is one."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return config, {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    tensors = {}
    weight_map = json.loads(index.read_text())["weight_map"]
    for file in sorted(set(weight_map.values())):
        part = load_file(folder / file)
        tensors.update({k: v.double() for k, v in part.items() if weight_map[k] == file})
    assert set(tensors) == set(weight_map)
    return config, tensors


def rms_norm(x, weight, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def linear(w, name, x):
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def silu(x):
    return x / (1 + torch.exp(-x))


def swiglu(w, name, x):
    return linear(
        w,
        name + ".down_proj",
        silu(linear(w, name + ".gate_proj", x)) * linear(w, name + ".up_proj", x),
    )


def rope_settings(c):
    """(theta, scaling dictionary or {}) from either dialect."""
    new = c.get("rope_parameters") or {}
    old = c.get("rope_scaling") or {}
    return new.get("rope_theta", c.get("rope_theta", 10000.0)), {**old, **new}


def rope_frequencies(dim, theta, scaling):
    f = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return f / scaling["factor"]
    if kind == "llama3":
        orig, factor = scaling["original_max_position_embeddings"], scaling["factor"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = ((orig * f / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * f / factor + smooth * f
    if kind == "yarn":
        return yarn_frequencies(f, dim, theta, scaling)
    assert kind in ("default", "mrope"), kind
    return f


def yarn_frequencies(f, dim, theta, s):
    """models.md D: frequencies between the two corrections are blended."""

    def index(turns):
        return (
            dim
            * math.log(s["original_max_position_embeddings"] / (2 * math.pi * turns))
            / (2 * math.log(theta))
        )

    low = max(math.floor(index(s.get("beta_fast", 32))), 0)
    high = min(math.ceil(index(s.get("beta_slow", 1))), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return f / s["factor"] * ramp + f * (1 - ramp)


def rotate_half_split(x, angles):
    """x [T, heads, d], angles [T, d/2]: pairs (i, i + d/2)."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotate_interleaved(x, angles):
    """Pairs (2i, 2i + 1), in place."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def attend(q, k, v, scale, mask):
    """q, k [T, heads, d], v [T, heads, e]; mask [T, T] is true where attention is allowed."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)


def causal(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def gqa(c, w, name, x, angles):
    n, heads, kv = len(x), c["num_attention_heads"], c["num_key_value_heads"]
    dim = c.get("head_dim") or c["hidden_size"] // heads
    q = rotate_half_split(linear(w, name + ".q_proj", x).view(n, heads, dim), angles)
    k = rotate_half_split(linear(w, name + ".k_proj", x).view(n, kv, dim), angles)
    v = linear(w, name + ".v_proj", x).view(n, kv, dim)
    k, v = (t.repeat_interleave(heads // kv, dim=1) for t in (k, v))
    return linear(w, name + ".o_proj", attend(q, k, v, dim**-0.5, causal(n)).flatten(1))


def decode(c, w, x, attention, mlp, prefix=""):
    """The decoder from embedded tokens to logits; trace of every module by its name."""
    trace = {prefix + "model.embed_tokens": x}
    for i in range(c["num_hidden_layers"]):
        p = f"{prefix}model.layers.{i}."
        x = x + attention(
            p + "self_attn", rms_norm(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"])
        )
        x = x + mlp(
            i, p + "mlp", rms_norm(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        )
        trace[p[:-1]] = x
    x = rms_norm(x, w[prefix + "model.norm.weight"], c["rms_norm_eps"])
    trace[prefix + "model.norm"] = x
    head = prefix + ("model.embed_tokens" if c.get("tie_word_embeddings") else "lm_head")
    return linear(w, head, x), trace


def text_logits(folder, ids):
    """Logits [T, V] and trace of a Llama or Qwen2 checkpoint."""
    c, w = checkpoint(folder)
    dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    angles = torch.outer(
        torch.arange(len(ids), dtype=torch.float64), rope_frequencies(dim, *rope_settings(c))
    )
    return decode(
        c,
        w,
        w["model.embed_tokens.weight"][ids],
        lambda name, x: gqa(c, w, name, x, angles),
        lambda _layer, name, x: swiglu(w, name, x),
    )
