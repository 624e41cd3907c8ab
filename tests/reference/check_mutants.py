# SPDX-License-Identifier: Apache-2.0
"""Are the fixtures sharp? Put one well-known mistake at a time into our own implementation and see
that the fixture meant for it departs beyond the tolerance of `evenkeel check` (1e-4): the two forms
of GELU by a factor of five, everything else by hundreds."""

import contextlib
import copy
import json
import sys

import torch

import check_own
import own_deepseek
import own_qwen25vl
import own_text
import own_vl2
from common import FIXTURES, assert_pillow


@contextlib.contextmanager
def patched(changes):
    """Sets (module, name, value) for the duration."""
    old = [(m, n, getattr(m, n)) for m, n, _ in changes]
    try:
        for m, n, value in changes:
            setattr(m, n, value)
        yield
    finally:
        for m, n, value in old:
            setattr(m, n, value)


def everywhere(name, value):
    """The function under that name in every module that imported it."""
    return [
        (m, name, value)
        for m in (own_text, own_deepseek, own_qwen25vl, own_vl2)
        if hasattr(m, name)
    ]


def with_config(change):
    """The configuration is read wrongly."""

    def checkpoint(folder, original=own_text.checkpoint):
        c, w = original(folder)
        c = copy.deepcopy(c)
        change(c)
        change(c.get("language_config", {}))
        return c, w

    return everywhere("checkpoint", checkpoint)


def with_weights(change):
    def checkpoint(folder, original=own_text.checkpoint):
        c, w = original(folder)
        change(w)
        return c, w

    return everywhere("checkpoint", checkpoint)


def drop(*keys):
    def change(c):
        for k in keys:
            c.pop(k, None)

    return with_config(change)


def put(**values):
    def change(c):
        c.update({k: v for k, v in values.items() if k in c})

    return with_config(change)


def without(ending):
    """Tensors of that name are forgotten."""

    def change(w):
        for k in [k for k in w if k.endswith(ending)]:
            w[k] = torch.zeros_like(w[k])

    return with_weights(change)


def swapped(x, angles):
    """The other rotary layout."""
    return own_rotate_interleaved(x, angles)


own_rotate_half_split, own_rotate_interleaved = (
    own_text.rotate_half_split,
    own_text.rotate_interleaved,
)
own_tanh, own_erf = own_vl2.gelu_tanh, own_vl2.gelu_erf


def raster_unfold(w, x):
    """The projector's blocks with the features (dy, dx, c) in place of (c, dy, dx)."""
    width = x.shape[1]
    key = "projector.layers.0.weight"
    t = w[key]
    mixed = t.view(len(t), 4, width).transpose(1, 2).reshape(t.shape)
    return own_project({**w, key: mixed}, x)


own_project, own_rows = own_vl2.project, own_vl2.rows_of


def columns_first(w, features, grid):
    n_w, n_h = grid
    local = features[1:].view(n_h, n_w, *features.shape[1:]).transpose(0, 1)
    return own_rows(w, torch.cat((features[:1], local.reshape(features[1:].shape))), grid)


def biased_route(c, w, name, x):
    """Weights of the chosen experts taken with the correction bias still on them."""
    ids, weights = own_route(c, w, name, x)
    b = w.get(name + ".gate.e_score_correction_bias")
    if b is None:
        return ids, weights
    s = (x @ w[name + ".gate.weight"].T).sigmoid() + b
    g = s.gather(1, ids)
    return ids, g / g.sum(-1, keepdim=True) * c["routed_scaling_factor"]


own_route, own_yarn_m = own_deepseek.route, own_deepseek.yarn_m


def no_mscale2(c, n):
    return own_rope_of(c, n)[:2] + (1.0,)


def no_amplitude(c, n):
    angles, _, m = own_rope_of(c, n)
    return angles, 1.0, m


own_rope_of = own_deepseek.rope_of


def plain_positions(c, positions):
    return own_mrope(c, torch.arange(positions.shape[1]).expand(3, -1))


own_mrope = own_qwen25vl.mrope_angles


def full_everywhere(q, k, v, scale, _mask):
    return own_text.attend(q, k, v, scale, torch.ones(len(q), len(k), dtype=torch.bool))


def eps_of_config(x, weight, eps):
    return own_rms(x, weight, 1e-5 if eps == 1e-6 else eps)


own_rms = own_text.rms_norm


def one_slice(frames, p):
    """Attention of the tower over all frames of a video at once."""
    x, at = own_patches(frames, p)
    return x, torch.cat((torch.zeros_like(at[:, :1]), at[:, 1:]), dim=1)


own_patches = own_qwen25vl.patches_of


def frames_apart(frames, p):
    """The two frames of a pair in the other order."""
    return own_patches(frames[[1, 0, *range(2, len(frames))]], p)


# (fixture, or fixture/file; mistake; what to patch)
MUTANTS = [
    ("llama-mha", "interleaved rope", everywhere("rotate_half_split", swapped)),
    ("llama-mha", "eps 1e-6 for 1e-5", put(rms_norm_eps=1e-6)),
    ("llama-gqa-tied", "theta 10000", put(rope_parameters={"rope_theta": 10000.0})),
    ("llama-llama3-rope", "rope scaling ignored", drop("rope_scaling")),
    (
        "llama-llama3-rope",
        "blend of frequencies ignored",
        put(
            rope_scaling={
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0001,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            }
        ),
    ),
    ("llama-linear-rope", "rope scaling ignored", drop("rope_scaling")),
    ("llama-biases-f16", "o bias forgotten", without("o_proj.bias")),
    ("llama-biases-f16", "down bias forgotten", without("down_proj.bias")),
    ("qwen2-tied", "k bias forgotten", without("k_proj.bias")),
    ("qwen2-bf16", "v bias forgotten", without("v_proj.bias")),
    ("deepseek-v2-lite", "no mscale^2", [(own_deepseek, "rope_of", no_mscale2)]),
    (
        "deepseek-v2-lite",
        "yarn ignored but for mscale^2",
        [(own_text, "yarn_frequencies", lambda f, *_: f)],
    ),
    (
        "deepseek-v2-lite",
        "half-split rope",
        [(own_deepseek, "rotate_interleaved", own_rotate_half_split)],
    ),
    ("deepseek-v2-lite", "shared experts forgotten", without("shared_experts.down_proj.weight")),
    ("deepseek-v2-lite", "weights normalised", put(norm_topk_prob=True)),
    ("deepseek-v2", "cos and sin not scaled", [(own_deepseek, "rope_of", no_amplitude)]),
    ("deepseek-v2", "groups ignored", put(topk_method="greedy")),
    ("deepseek-v2", "scaling factor ignored", put(routed_scaling_factor=1.0)),
    ("deepseek-v2", "latent's eps from rms_norm_eps", everywhere("rms_norm", eps_of_config)),
    ("deepseek-vl2", "correction bias ignored", without("e_score_correction_bias")),
    ("deepseek-vl2", "correction bias in the weights", [(own_deepseek, "route", biased_route)]),
    ("deepseek-vl2", "softmax for sigmoid", put(scoring_func="softmax")),
    ("deepseek-vl2", "weights not normalised", put(norm_topk_prob=False)),
    ("deepseek-vl2-tiny", "interleaved rope", everywhere("rotate_half_split", swapped)),
    ("deepseek-vl2-tiny", "erf for tanh in the tower", [(own_vl2, "gelu_tanh", own_erf)]),
    ("deepseek-vl2-tiny", "tanh for erf in the projector", [(own_vl2, "gelu_erf", own_tanh)]),
    (
        "deepseek-vl2-tiny",
        "projector's features in raster order",
        [(own_vl2, "project", raster_unfold)],
    ),
    ("deepseek-vl2-tiny", "newlines forgotten", without("image_newline")),
    ("deepseek-vl2-small", "separator forgotten", without("view_seperator")),
    ("deepseek-vl2-small", "tiles by columns", [(own_vl2, "rows_of", columns_first)]),
    ("qwen2.5-vl", "one-dimensional positions", [(own_qwen25vl, "mrope_angles", plain_positions)]),
    (
        "qwen2.5-vl",
        "windows ignored",
        put(
            vision_config={
                **json.loads((FIXTURES / "qwen2.5-vl/config.json").read_text())["vision_config"],
                "fullatt_block_indexes": [0, 1, 2, 3],
            }
        ),
    ),
    (
        "qwen2.5-vl",
        "all blocks windowed",
        put(
            vision_config={
                **json.loads((FIXTURES / "qwen2.5-vl/config.json").read_text())["vision_config"],
                "fullatt_block_indexes": [],
            }
        ),
    ),
    ("qwen2.5-vl", "tanh for erf in the merger", [(own_qwen25vl, "gelu_erf", own_tanh)]),
    ("qwen2.5-vl", "tower's proj bias forgotten", without("attn.proj.bias")),
    (
        "qwen2.5-vl/reference-video.safetensors",
        "slices of time mixed in the tower",
        [(own_qwen25vl, "patches_of", one_slice)],
    ),
    (
        "qwen2.5-vl/reference-video.safetensors",
        "frames of a pair swapped",
        [(own_qwen25vl, "patches_of", frames_apart)],
    ),
    (
        "qwen2.5-vl/reference-video.safetensors",
        "one-dimensional positions",
        [(own_qwen25vl, "mrope_angles", plain_positions)],
    ),
]


def main():
    assert_pillow()
    torch.set_num_threads(1)
    dull = 0
    for name, mistake, changes in MUTANTS:
        name, _, file = name.partition("/")
        folder = FIXTURES / name
        family = json.loads((folder / "config.json").read_text())["model_type"]
        reference = check_own.read(folder / (file or "reference.safetensors"))
        with patched(changes):
            logits, trace = check_own.OWN[family](
                folder, reference["input_ids"].tolist(), reference
            )
        found = dict(check_own.departures(trace, logits, reference))
        first = next((k for k, v in found.items() if v > 1e-4), "none")
        sharp = found["logits"] > 3e-4
        dull += not sharp
        print(
            f"{'ok  ' if sharp else 'DULL'} {name:20} {mistake:40} logits {found['logits']:.1e}, "
            f"first {first}"
        )
    sys.exit(1 if dull else 0)


if __name__ == "__main__":
    main()
