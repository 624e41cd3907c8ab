# SPDX-License-Identifier: Apache-2.0
"""Our own reading of Qwen2.5-VL in fp64: nothing is permuted, windows are a mask."""

import json
import math
import pathlib

import numpy as np
import torch
from PIL import Image

from own_text import (
    attend,
    causal,
    checkpoint,
    decode,
    linear,
    rms_norm,
    rope_frequencies,
    rotate_half_split,
    swiglu,
)
from own_vl2 import gelu_erf


def smart_resize(h, w, low, high, f=28):
    """Python's round is half-to-even, as the official code's."""
    hb, wb = round(h / f) * f, round(w / f) * f
    if hb * wb > high:
        beta = math.sqrt(h * w / high)
        hb, wb = (max(f, math.floor(n / beta / f) * f) for n in (h, w))
    elif hb * wb < low:
        beta = math.sqrt(low / (h * w))
        hb, wb = (math.ceil(n * beta / f) * f for n in (h, w))
    return hb, wb


def patches_of(frames, p):
    """u8 frames [F, H, W, 3] to rows (pair of frames, block row, block column, row in block, column
    in block) of (channel, frame of the pair, y, x); and (pair, y, x) of every row's patch. A last
    frame without a partner is repeated; a still image is one frame."""
    if len(frames) % 2:
        frames = torch.cat((frames, frames[-1:]))
    t, h, w = len(frames) // 2, frames.shape[1] // 14, frames.shape[2] // 14
    mean, std = (torch.tensor(p[k], dtype=torch.float64) for k in ("image_mean", "image_std"))
    x = (frames.double() / 255 - mean) / std
    x = x.view(t, 2, h // 2, 2, 14, w // 2, 2, 14, 3)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1)
    at = torch.stack(
        torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij"), dim=-1
    )
    at = at.view(t, h // 2, 2, w // 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(t * h * w, 3)
    return x, at


def tower(v, w, frames, preprocessor, trace):
    x, at = patches_of(frames, preprocessor)
    dim = v["hidden_size"] // v["num_heads"]
    f = rope_frequencies(dim // 2, 10000.0, {})
    angles = (at[:, 1:].double()[..., None] * f).flatten(1)  # [rows: hpos f, wpos f]
    slice_ = at[:, None, 0] == at[None, :, 0]
    cell = at[:, 1:] // 2 // (v["window_size"] // 28)
    window = slice_ & (cell[:, None] == cell[None]).all(-1)
    x = x @ w["visual.patch_embed.proj.weight"].reshape(v["hidden_size"], -1).T
    for i in range(v["depth"]):
        p = f"visual.blocks.{i}"
        qkv = linear(w, p + ".attn.qkv", rms_norm(x, w[p + ".norm1.weight"], 1e-6))
        q, k, u = qkv.view(len(x), 3, v["num_heads"], dim).unbind(1)
        q, k = rotate_half_split(q, angles), rotate_half_split(k, angles)
        mask = slice_ if i in v["fullatt_block_indexes"] else window
        x = x + linear(w, p + ".attn.proj", attend(q, k, u, dim**-0.5, mask).flatten(1))
        x = x + swiglu(w, p + ".mlp", rms_norm(x, w[p + ".norm2.weight"], 1e-6))
        trace.setdefault(p, []).append(x)
    x = rms_norm(x, w["visual.merger.ln_q.weight"], 1e-6).reshape(len(x) // 4, -1)
    return linear(w, "visual.merger.mlp.2", gelu_erf(linear(w, "visual.merger.mlp.0", x)))


def mrope_angles(c, positions):
    """Frequency i turns by the row of positions that its section names."""
    half = c["hidden_size"] // c["num_attention_heads"] // 2
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(c["rope_scaling"]["mrope_section"]))
    assert len(row) == half
    f = rope_frequencies(2 * half, c["rope_theta"], {})
    return positions.double()[row].T * f


def attention(c, w, name, x, angles):
    n, heads, kv = len(x), c["num_attention_heads"], c["num_key_value_heads"]
    dim = c["hidden_size"] // heads
    q = rotate_half_split(linear(w, name + ".q_proj", x).view(n, heads, dim), angles)
    k = rotate_half_split(linear(w, name + ".k_proj", x).view(n, kv, dim), angles)
    u = linear(w, name + ".v_proj", x).view(n, kv, dim)
    k, u = (t.repeat_interleave(heads // kv, dim=1) for t in (k, u))
    return linear(w, name + ".o_proj", attend(q, k, u, dim**-0.5, causal(n)).flatten(1))


def logits(folder, ids, reference):
    folder = pathlib.Path(folder)
    c, w = checkpoint(folder)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    trace, merged = {}, []
    for i in range(sum(k.startswith("image.") for k in reference)):
        image = Image.fromarray(reference[f"image.{i}"].numpy())
        h, wide = smart_resize(
            image.height, image.width, preprocessor["min_pixels"], preprocessor["max_pixels"]
        )
        small = torch.from_numpy(np.array(image.resize((wide, h), Image.BICUBIC)))
        assert torch.equal(small, reference[f"resized.{i}"]), "the official resizing differs"
        merged.append(tower(c["vision_config"], w, small[None], preprocessor, trace))
    if "video.0" in reference:
        merged.append(tower(c["vision_config"], w, reference["video.0"], preprocessor, trace))
    trace = {k: torch.cat(v) for k, v in trace.items()}
    trace["visual"] = torch.cat(merged)
    x = w["model.embed_tokens.weight"][ids]
    seen = torch.isin(torch.tensor(ids), torch.tensor([c["image_token_id"], c["video_token_id"]]))
    x[seen] = trace["visual"]
    angles = mrope_angles(c, reference["position_ids"])
    out, more = decode(
        c,
        w,
        x,
        lambda name, y: attention(c, w, name, y, angles),
        lambda _layer, name, y: swiglu(w, name, y),
    )
    return out, {**trace, **more}
