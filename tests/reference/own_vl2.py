# SPDX-License-Identifier: Apache-2.0
"""Our own reading of DeepSeek-VL2: tiling, tower, projector, layout of image tokens, in fp64."""

import json
import math
import pathlib

import numpy as np
import torch
from PIL import Image

import own_deepseek
from own_text import attend, checkpoint, linear


def best_candidate(width, height, candidates):
    best, best_key = None, (-1, 0)
    for w, h in candidates:
        s = min(w / width, h / height)
        effective = min(int(width * s) * int(height * s), width * height)
        key = (effective, -(w * h - effective))
        if key > best_key:
            best, best_key = (w, h), key
    return best


def pad_to(image, w, h):
    """Fit inside w x h by bicubic resizing, then centre on grey 127."""
    width, height = image.size
    new_w, new_h = w, h
    if width / height > w / h:
        new_h = round(height / width * w)
    elif width / height < w / h:
        new_w = round(width / height * h)
    out = np.full((h, w, 3), 127, np.uint8)
    x, y = round((w - new_w) * 0.5), round((h - new_h) * 0.5)
    out[y : y + new_h, x : x + new_w] = np.asarray(image.resize((new_w, new_h), Image.BICUBIC))
    return out


def tiles_of(images, c):
    """(u8 tiles [n, S, S, 3]: global view, then local views, of every image; [(n_w, n_h)])."""
    size = c["vision_config"]["image_size"]
    tiles, grid = [], []
    for array in images:
        image = Image.fromarray(array)
        w, h = (
            best_candidate(*image.size, c["candidate_resolutions"])
            if len(images) <= 2
            else (size, size)
        )
        local = pad_to(image, w, h)
        tiles.append(pad_to(image, size, size))
        tiles += [
            local[y : y + size, x : x + size] for y in range(0, h, size) for x in range(0, w, size)
        ]
        grid.append((w // size, h // size))
    return torch.from_numpy(np.stack(tiles)), grid


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * w[name + ".weight"]
        + w[name + ".bias"]
    )


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tower(v, w, tile, trace):
    """One tile, u8 [S, S, 3], to [grid^2, width]."""
    patch, heads, width = v["patch_size"], v["heads"], v["width"]
    grid = v["image_size"] // patch
    x = (tile.double() / 255 - 0.5) / 0.5
    x = x[: grid * patch, : grid * patch].reshape(grid, patch, grid, patch, 3)
    x = x.permute(0, 2, 4, 1, 3).reshape(grid * grid, -1)
    x = x @ w["vision.patch_embed.proj.weight"].reshape(width, -1).T
    x = x + w["vision.patch_embed.proj.bias"] + w["vision.pos_embed"][0]
    everything = torch.ones(len(x), len(x), dtype=torch.bool)
    for i in range(v["layers"]):
        p = f"vision.blocks.{i}"
        qkv = linear(w, p + ".attn.qkv", layer_norm(w, p + ".norm1", x))
        q, k, u = qkv.view(len(x), 3, heads, -1).unbind(1)
        out = attend(q, k, u, (width // heads) ** -0.5, everything)
        x = x + linear(w, p + ".attn.proj", out.flatten(1))
        inner = gelu_tanh(linear(w, p + ".mlp.fc1", layer_norm(w, p + ".norm2", x)))
        x = x + linear(w, p + ".mlp.fc2", inner)
        trace.setdefault(p, []).append(x)
    return layer_norm(w, "vision.norm", x)


def project(w, x):
    """[g^2, width] to [ceil(g/2)^2, hidden]: 2x2 blocks, feature c*4 + dy*2 + dx."""
    g = math.isqrt(len(x))
    half = (g + 1) // 2
    padded = torch.zeros(2 * half, 2 * half, x.shape[1], dtype=x.dtype)
    padded[:g, :g] = x.view(g, g, -1)
    blocks = padded.view(half, 2, half, 2, -1).permute(0, 2, 4, 1, 3).reshape(half * half, -1)
    return linear(w, "projector.layers.2", gelu_erf(linear(w, "projector.layers.0", blocks)))


def rows_of(w, features, grid):
    """Features of one image's tiles, in the order of its tokens."""
    g = math.isqrt(features.shape[1])
    newline = w["image_newline"]

    def lines(rows):
        return [torch.cat((r, newline[None])) for r in rows]

    n_w, n_h = grid
    local = (
        features[1:].view(n_h, n_w, g, g, -1).permute(0, 2, 1, 3, 4).reshape(n_h * g, n_w * g, -1)
    )
    return torch.cat(lines(features[0].view(g, g, -1)) + [w["view_seperator"][None]] + lines(local))


def logits(folder, ids, reference):
    folder = pathlib.Path(folder)
    c, w = checkpoint(folder)
    image_id = next(
        t["id"]
        for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        if t["content"] == "<image>"
    )
    n = sum(k.startswith("image.") for k in reference)
    tiles, grids = tiles_of([reference[f"image.{i}"].numpy() for i in range(n)], c)
    assert torch.equal(tiles, reference["tiles"]), "tiles differ from the official processor's"
    trace = {}
    seen = [tower(c["vision_config"], w, t, trace) for t in tiles]
    trace = {k: torch.stack(v) for k, v in trace.items()}
    trace["vision"] = torch.stack(seen)
    trace["projector"] = torch.stack([project(w, s) for s in seen])
    x = w["language.model.embed_tokens.weight"][ids]
    rows, at = [], 0
    for n_w, n_h in grids:
        rows.append(rows_of(w, trace["projector"][at : at + 1 + n_w * n_h], (n_w, n_h)))
        at += 1 + n_w * n_h
    x[torch.tensor(ids) == image_id] = torch.cat(rows)
    out, more = own_deepseek.language(c["language_config"], w, x, "language.")
    return out, {**trace, **more}
