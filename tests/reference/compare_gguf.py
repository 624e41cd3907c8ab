#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The DeepSeek-V2 fixtures as GGUF files of llama.cpp's deepseek2, and `evenkeel check` on them.

usage: compare_gguf.py EVENKEEL [FOLDER]

Names of tensors and keys are those of the gguf package (get_tensor_name_map, GGUFWriter), values as
llama.cpp's converter gives them: experts stacked, and kv_b_proj whole, as files had it before the
absorbed form, or as k_b (transposed) and v_b by heads. F32 and BF16 hold the fixtures' weights to
the bit. FOLDER keeps the files.
"""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import torch
from safetensors.torch import load_file

from common import FIXTURES, tool, write_checkpoint


def keys(w, c, absorbed):
    rope, lora = c["qk_rope_head_dim"], c["kv_lora_rank"]
    qk, v = c["qk_nope_head_dim"] + rope, c["v_head_dim"]
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(1 if absorbed else c["num_attention_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_rope_dimension_count(rope)
    w.add_vocab_size(c["vocab_size"])
    if c["q_lora_rank"]:
        w.add_q_lora_rank(c["q_lora_rank"])
    w.add_kv_lora_rank(lora)
    w.add_key_length(lora + rope if absorbed else qk)
    w.add_value_length(lora if absorbed else v)
    if absorbed:
        w.add_key_length_mla(qk)
        w.add_value_length_mla(v)
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_count(c["n_routed_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c["routed_scaling_factor"])
    w.add_expert_weights_norm(c["norm_topk_prob"])
    if c["topk_method"] != "greedy":
        w.add_expert_group_count(c["n_group"])
        w.add_expert_group_used_count(c["topk_group"])
    scaling = c["rope_scaling"]
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(scaling["factor"])
    w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    w.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    w.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    w.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


def tensors(c, weights, absorbed):
    """(name in Hugging Face's spelling as llama.cpp's converter has it, tensor)"""
    stacked = {}
    for name, value in weights.items():
        if ".experts." in name:
            stem, _, rest = name.partition(".experts.")
            e, _, kind = rest.partition(".")
            stacked.setdefault(f"{stem}.experts.{kind}", {})[int(e)] = value
        elif absorbed and name.endswith("kv_b_proj.weight"):
            heads, nope = c["num_attention_heads"], c["qk_nope_head_dim"]
            both = value.view(heads, nope + c["v_head_dim"], -1)
            yield name.replace("kv_b_proj", "k_b_proj"), both[:, :nope].transpose(1, 2)
            yield name.replace("kv_b_proj", "v_b_proj"), both[:, nope:]
        else:
            yield name, value
    for name, parts in stacked.items():
        yield name, torch.stack([parts[e] for e in sorted(parts)])


def write(path, c, weights, absorbed, kind):
    w = gguf.GGUFWriter(path, "deepseek2")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, c["num_hidden_layers"])
    keys(w, c, absorbed)
    for name, value in tensors(c, weights, absorbed):
        full = names.get_name(name, try_suffixes=(".weight", ".bias"))
        value = value.float().contiguous().numpy()
        made = kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        w.add_tensor(full, gguf.quants.quantize(value, made), raw_dtype=made)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def reference(folder, c, weights, path):
    """The official class on the fixture's weights, cos and sin unscaled: a GGUF tells of no other
    mscale than that of all dimensions."""
    with tempfile.TemporaryDirectory() as temporary:
        at = pathlib.Path(temporary)
        write_checkpoint(at, c, weights, torch.float32)
        ids = load_file(folder / "reference.safetensors")["input_ids"].tolist()
        model = tool.load(at)
        logits, _ = tool.forward(model, ids)
        tool.write(path, tool.tensors_of(ids, logits), type(model).__name__, "float32", 0)


def main(evenkeel, keep=None):
    bad, types = 0, gguf.GGMLQuantizationType
    for fixture in ("deepseek-v2-lite", "deepseek-v2"):
        folder = FIXTURES / fixture
        c = json.loads((folder / "config.json").read_text())
        c["rope_scaling"]["mscale"] = c["rope_scaling"]["mscale_all_dim"]
        weights = {}
        for file in folder.glob("*.safetensors"):
            weights |= load_file(file) if "reference" not in file.name else {}
        with tempfile.TemporaryDirectory() as temporary:
            at = pathlib.Path(keep or temporary)
            reference(folder, c, weights, at / "reference.safetensors")
            for absorbed, kind in itertools.product((False, True), (types.F32, types.BF16)):
                path = at / f"{fixture}-{'k_b-v_b' if absorbed else 'kv_b'}-{kind.name}.gguf"
                write(path, c, weights, absorbed, kind)
                command = [evenkeel, "check", path, "--quiet", "--reference"]
                done = subprocess.run(
                    [*command, at / "reference.safetensors"], capture_output=True, text=True
                )
                print(f"{path.name}\n  {done.stdout}{done.stderr}".rstrip())
                bad += done.returncode != 0
    sys.exit(bad != 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
