# SPDX-License-Identifier: Apache-2.0
"""Small random models of the Llama and Qwen2 families with logits from transformers."""

import json
import sys

import torch

from common import FIXTURES, Weights, decoder_ends, random_ids, say, swiglu, tool, write_checkpoint


def llama(**more):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        **more,
    }


def qwen2(**more):
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "bos_token_id": 3,
        "eos_token_id": 4,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 2,
        "use_cache": True,
        **more,
    }


def shape(hidden, layers, heads, kv, inter, vocab, head_dim=None, positions=2048):
    out = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inter,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
    }
    return {**out, "head_dim": head_dim} if head_dim else out


# name: (config, dtype of the weights, shards, tokens, extra files)
VARIANTS = {
    # every head its own key and value; the oldest dialect
    "llama-mha": (
        llama(
            **shape(64, 2, 4, 4, 44, 224),
            tie_word_embeddings=False,
            rope_theta=10000.0,
            rope_scaling=None,
            torch_dtype="float32",
        ),
        torch.float32,
        1,
        40,
        None,
    ),
    # grouped heads, tied head, the newest dialect; sizes that are no multiple of a vector
    "llama-gqa-tied": (
        llama(
            **shape(60, 3, 6, 2, 52, 260),
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            dtype="float32",
        ),
        torch.float32,
        1,
        44,
        None,
    ),
    # wavelengths 6, 16 | 40 | 100 ...: below, between and above 64/4 .. 64/1
    "llama-llama3-rope": (
        llama(
            **shape(48, 2, 4, 2, 72, 256, head_dim=20, positions=512),
            tie_word_embeddings=False,
            rope_theta=10000.0,
            rope_scaling={
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            torch_dtype="float32",
        ),
        torch.float32,
        3,
        66,
        {"generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 7, 9]}},
    ),
    "llama-linear-rope": (
        llama(
            **shape(64, 2, 4, 1, 64, 256),
            tie_word_embeddings=True,
            rope_theta=100.0,
            rope_scaling={"type": "linear", "factor": 4.0},
            torch_dtype="float32",
        ),
        torch.float32,
        1,
        60,
        None,
    ),
    # biases on all seven matrices of a layer, f16 weights
    "llama-biases-f16": (
        llama(
            **shape(72, 3, 6, 3, 80, 256),
            tie_word_embeddings=False,
            rope_theta=10000.0,
            torch_dtype="float16",
        )
        | {"attention_bias": True, "mlp_bias": True},
        torch.float16,
        1,
        40,
        None,
    ),
    "qwen2-tied": (
        qwen2(
            **shape(64, 2, 4, 2, 80, 256),
            tie_word_embeddings=True,
            rope_theta=1000000.0,
            torch_dtype="float32",
        ),
        torch.float32,
        1,
        48,
        None,
    ),
    "qwen2-bf16": (
        qwen2(
            **shape(64, 3, 4, 1, 88, 256),
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            dtype="bfloat16",
        ),
        torch.bfloat16,
        1,
        48,
        None,
    ),
}


def weights(c, seed):
    w = Weights(seed)
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    dim = c.get("head_dim") or hidden // heads
    qkv_bias = 0.5 if c["model_type"] == "qwen2" or c.get("attention_bias") else None
    o_bias = 0.2 if c.get("attention_bias") else None
    decoder_ends(w, "model.", c["vocab_size"], hidden, c["tie_word_embeddings"])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w.norm(p + "input_layernorm", hidden)
        w.linear(p + "self_attn.q_proj", heads * dim, hidden, 1.4, qkv_bias)
        w.linear(p + "self_attn.k_proj", kv * dim, hidden, 1.4, qkv_bias)
        w.linear(p + "self_attn.v_proj", kv * dim, hidden, 1.2, qkv_bias)
        w.linear(p + "self_attn.o_proj", hidden, heads * dim, 1.2, o_bias)
        w.norm(p + "post_attention_layernorm", hidden)
        swiglu(w, p + "mlp", hidden, c["intermediate_size"], 0.2 if c.get("mlp_bias") else None)
    return w.tensors


def make(name):
    config, dtype, shards, tokens, extra = VARIANTS[name]
    folder = FIXTURES / name
    seed = 100 + list(VARIANTS).index(name)
    write_checkpoint(folder, config, weights(config, seed), dtype, shards, extra=extra)
    ids = random_ids(seed, tokens, config["vocab_size"])
    model = tool.load(folder)
    logits, trace = tool.forward(model, ids, trace=True)
    tool.write(
        folder / "reference.safetensors",
        tool.tensors_of(ids, logits, trace=trace),
        type(model).__name__,
        "float32",
        seed,
        **tool.noise(folder, ids, logits),
    )
    if dtype == torch.bfloat16:
        half = tool.load(folder, "bfloat16")
        other, _ = tool.forward(half, ids)
        tool.write(
            folder / "reference-bf16.safetensors",
            tool.tensors_of(ids, other),
            type(half).__name__,
            "bfloat16",
            seed,
        )
    say(folder, logits)


if __name__ == "__main__":
    tool.exact_arithmetic()
    torch.set_num_threads(1)
    for variant in sys.argv[1:] or VARIANTS:
        make(variant)
