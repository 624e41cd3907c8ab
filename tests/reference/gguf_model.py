# SPDX-License-Identifier: Apache-2.0
"""A GGUF file of the llama or qwen2 architecture as the official class with dequantised weights."""

import gguf
import torch
import transformers

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


def field(reader, key):
    return reader.fields[key].contents()


def config_of(reader, architecture):
    """The facts that the GGUF states, as the class's configuration."""
    key = lambda k: field(reader, f"{architecture}.{k}")
    names = [t.name for t in reader.tensors]
    head_dim = {}
    if f"{architecture}.attention.key_length" in reader.fields:
        head_dim = {"head_dim": key("attention.key_length")}
    return CLASSES[architecture][0](
        **head_dim,
        vocab_size=len(field(reader, "tokenizer.ggml.tokens")),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
        max_position_embeddings=key("context_length"),
        bos_token_id=field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=field(reader, "tokenizer.ggml.eos_token_id"),
        tie_word_embeddings="output.weight" not in names,
    )


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, stem = stem.split(".")
    return f"model.layers.{layer}.{NAMES[stem]}.{kind}"


def permute(w, heads):
    """Half-split rotary pairs to interleaved ones: the order of q and k in a llama GGUF."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).transpose(1, 2).reshape(w.shape)


def unpermute(w, heads):
    """gguf row h*d + 2i + j is Hugging Face's row h*d + j*(d/2) + i."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(w.shape)


def weights_of(reader, architecture, config):
    out = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).float()
        w = w.reshape([int(n) for n in reversed(t.shape)])
        if architecture == "llama" and ".attn_q." in t.name:
            w = unpermute(w, config.num_attention_heads)
        elif architecture == "llama" and ".attn_k." in t.name:
            w = unpermute(w, config.num_key_value_heads)
        out[hf_name(t.name)] = w
    return out


def load(path):
    """(reader, model) with eager attention, in fp32."""
    reader = gguf.GGUFReader(path)
    architecture = field(reader, "general.architecture")
    config = config_of(reader, architecture)
    config._attn_implementation = "eager"
    model = CLASSES[architecture][1](config).float().eval()
    weights = weights_of(reader, architecture, config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    assert missing == tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":  # llama3's scaling, as a divisor of each frequency
            model.model.rotary_emb.inv_freq /= torch.from_numpy(t.data.copy())
    return reader, model
