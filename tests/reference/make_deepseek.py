# SPDX-License-Identifier: Apache-2.0
"""Small random DeepSeek-V2 models (MLA, mixture of experts, yarn) with logits from transformers."""

import math
import sys

import torch

from common import FIXTURES, Weights, decoder_ends, random_ids, say, swiglu, tool, write_checkpoint

YARN = {
    "type": "yarn",
    "factor": 8,
    "beta_fast": 4,
    "beta_slow": 1,
    "original_max_position_embeddings": 48,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}


def deepseek(**more):
    """A configuration with the keys, in the spelling, of the published DeepSeek-V2 files."""
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": 220,
        "eos_token_id": 221,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 80,
        "kv_lora_rank": 32,
        "max_position_embeddings": 384,
        "moe_intermediate_size": 24,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 12,
        "rms_norm_eps": 1e-6,
        "rope_scaling": YARN,
        "rope_theta": 1000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 16,
        "vocab_size": 224,
        **more,
    }


# name: (config, shards, tokens)
VARIANTS = {
    "deepseek-v2-lite": (deepseek(), 1, 64),
    # low-rank queries, groups of experts; mscale differs from mscale_all_dim, so cos and sin are
    # scaled too; v heads wider than the part of q and k without positions; an rms_norm_eps that is
    # not the latent's; shards cut mid-layer
    "deepseek-v2": (
        deepseek(
            q_lora_rank=24,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            topk_method="group_limited_greedy",
            v_head_dim=20,
            num_hidden_layers=2,
            rope_scaling={**YARN, "mscale": 1.0},
            rms_norm_eps=1e-5,
        ),
        2,
        64,
    ),
}


def mla(w, p, c):
    heads, rope, lora = c["num_attention_heads"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    qk = c["qk_nope_head_dim"] + rope
    if c.get("q_lora_rank"):
        w.linear(p + "q_a_proj", c["q_lora_rank"], c["hidden_size"])
        w.norm(p + "q_a_layernorm", c["q_lora_rank"])
        w.linear(p + "q_b_proj", heads * qk, c["q_lora_rank"], 1.3)
    else:
        w.linear(p + "q_proj", heads * qk, c["hidden_size"], 1.3)
    w.linear(p + "kv_a_proj_with_mqa", lora + rope, c["hidden_size"], 1.3)
    # so small that the latent's norm shows its eps: always 1e-6, whatever rms_norm_eps says
    w.tensors[p + "kv_a_proj_with_mqa.weight"][:lora] *= 0.01
    w.norm(p + "kv_a_layernorm", lora)
    w.linear(p + "kv_b_proj", heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), lora, 1.3)
    w.linear(p + "o_proj", c["hidden_size"], heads * c["v_head_dim"], 1.3)


def mha(w, p, c):
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        w.linear(p + name, c["hidden_size"], c["hidden_size"], 1.3)


def experts(w, p, c):
    hidden, inter = c["hidden_size"], c["moe_intermediate_size"]
    w.linear(p + "gate", c["n_routed_experts"], hidden, 2.0)
    if c["topk_method"] == "noaux_tc":
        w.normal(p + "gate.e_score_correction_bias", c["n_routed_experts"], std=0.4)
    for e in range(c["n_routed_experts"]):
        swiglu(w, f"{p}experts.{e}", hidden, inter)
    swiglu(w, p + "shared_experts", hidden, inter * c["n_shared_experts"])


def decoder(w, c, prefix=""):
    """Weights of the language model of a DeepSeek-V2 or a DeepSeek-VL2 checkpoint."""
    decoder_ends(w, prefix + "model.", c["vocab_size"], c["hidden_size"], False, prefix + "lm_head")
    for i in range(c["num_hidden_layers"]):
        p = f"{prefix}model.layers.{i}."
        w.norm(p + "input_layernorm", c["hidden_size"])
        (mla if c.get("use_mla", True) else mha)(w, p + "self_attn.", c)
        w.norm(p + "post_attention_layernorm", c["hidden_size"])
        if i < c["first_k_dense_replace"]:
            swiglu(w, p + "mlp", c["hidden_size"], c["intermediate_size"])
        else:
            experts(w, p + "mlp.", c)


def assert_softmax_scale(model):
    """Yarn's mscale^2 belongs to the attention's scale: transformers before July 2026 lacked it."""
    c = model.config
    r = c.rope_parameters
    m = 0.1 * r["mscale_all_dim"] * math.log(r["factor"]) + 1
    expected = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5 * m * m
    for layer in model.model.layers:
        assert abs(layer.self_attn.scaling - expected) < 1e-7, (layer.self_attn.scaling, expected)
    published = 192**-0.5 * (0.1 * 0.707 * math.log(40) + 1) ** 2
    assert abs(published - 0.114721) < 1e-6, published


def make(name):
    config, shards, tokens = VARIANTS[name]
    folder = FIXTURES / name
    seed = 200 + list(VARIANTS).index(name)
    w = Weights(seed)
    decoder(w, config)
    dtype = getattr(torch, config["torch_dtype"])
    write_checkpoint(
        folder, config, w.tensors, dtype, shards, pattern="model-{:05d}-of-{:06d}.safetensors"
    )
    ids = random_ids(seed, tokens, config["vocab_size"])
    model = tool.load(folder)
    assert_softmax_scale(model)
    logits, trace = tool.forward(model, ids, trace=True)
    tool.write(
        folder / "reference.safetensors",
        tool.tensors_of(ids, logits, trace=trace),
        type(model).__name__,
        "float32",
        seed,
        **tool.noise(folder, ids, logits),
    )
    say(folder, logits)


if __name__ == "__main__":
    tool.exact_arithmetic()
    torch.set_num_threads(1)
    for variant in sys.argv[1:] or VARIANTS:
        make(variant)
