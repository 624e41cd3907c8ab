#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds our reading of checkpoints against the official libraries.

    compare_models.py --tensors build/tests/model/tensors [GGUF...]

1. Every configuration below tests/fixtures/configs: names, shapes and number of parameters of the
   official class, built without memory (torch's meta device); rotary frequencies of transformers.
2. Every checkpoint below tests/fixtures/reference: the bytes of every tensor.
3. Llama and Qwen2 checkpoints rewritten as GGUF by the `gguf` package, with the converter's row
   permutation, in every type that the package can quantise: the bytes of every tensor.
4. GGUF files given: the bytes of every tensor as the `gguf` package reads them.

Prints a Markdown report; exits 1 on a difference. Needs torch, transformers, safetensors, gguf,
numpy and xxhash.
"""

import argparse
import datetime
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
import xxhash
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_ONCE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
failures = 0


def row(*cells, good=True):
    global failures
    failures += not good
    print("| " + " | ".join(str(c) for c in cells) + (" |" if good else " **DIFFERENT** |"))


def ours(tool, path, *flags):
    out = subprocess.run([tool, *flags, path], capture_output=True, text=True, check=True).stdout
    tensors = {}
    for line in out.splitlines():
        part = line.split()
        if part[0] == "tensor":
            tensors[part[1]] = (part[2], part[3], tuple(int(x) for x in part[4].split(",")))
        elif part[0] == "total":
            return tensors, int(part[1])
    return out.split(), 0


def digest(data):
    return xxhash.xxh3_128(data).hexdigest()


# ---- 1. configurations


def official_model(config):
    """State of the official class without memory, or None where there is no such class."""
    kind = config.get("model_type")
    if kind == "deepseek_vl_v2":
        return None
    cls = {
        "llama": transformers.LlamaForCausalLM,
        "qwen2": transformers.Qwen2ForCausalLM,
        "deepseek_v2": transformers.DeepseekV2ForCausalLM,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    }[kind]
    settings = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    with torch.device("meta"):
        return cls(cls.config_class(**settings))


def hub_name(name):
    """transformers' in-memory names of Qwen2.5-VL back to the hub's."""
    name = name.replace("model.visual.", "visual.")
    return name.replace("model.language_model.", "model.")


def check_config(tool, folder):
    config = json.loads((folder / "config.json").read_text())
    tensors, total = ours(tool, str(folder))
    model = official_model(config)
    if model is None:
        row(folder.name, f"{total:,}", "no official class", check_rope(tool, folder, config))
        return
    params = dict(model.named_parameters())
    good = sum(p.numel() for p in params.values()) == total
    verdict = "equal total"
    if config["model_type"] != "deepseek_v2":  # transformers fuses the experts of a layer
        shapes = {hub_name(n): tuple(p.shape) for n, p in params.items()}
        good = good and shapes == {n: s for n, (_, _, s) in tensors.items()}
        verdict = f"{len(shapes)} names and shapes equal"
    row(folder.name, f"{total:,}", verdict, check_rope(tool, folder, config), good=good)


def plain_frequencies(theta, dim):
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))


def check_rope(tool, folder, config):
    """Largest difference from transformers, in units in the last place."""
    text = config.get("language_config") or config.get("text_config") or config
    deepseek = config["model_type"].startswith("deepseek_v")
    mla = deepseek and text.get("use_mla", True)
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = float(scaling.get("rope_theta") or text.get("rope_theta", 10000.0))
    heads = text.get("num_attention_heads", 32)
    dim = 64 if mla else text.get("head_dim") or text["hidden_size"] // heads
    if kind in ("default", "mrope"):
        want, amplitude = plain_frequencies(theta, dim), 1.0
    else:
        rope = {k if k != "type" else "rope_type": v for k, v in scaling.items()}
        c = transformers.LlamaConfig(
            hidden_size=dim * heads,
            num_attention_heads=heads,
            head_dim=dim,
            rope_parameters={**rope, "rope_theta": theta},
            max_position_embeddings=text["max_position_embeddings"],
        )
        want, amplitude = ROPE_INIT_FUNCTIONS[kind](c, "cpu")
    scale = (192 if mla else dim) ** -0.5
    if mla and scaling.get("mscale_all_dim"):
        scale *= (0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1) ** 2
    got = np.array([float.fromhex(x) for x in ours(tool, str(folder), "--rope")[0]], np.float32)
    want = np.concatenate([[amplitude, scale], want.numpy()]).astype(np.float32)
    return f"{int(np.abs(got.view(np.int32) - want.view(np.int32)).max())} ulp"


# ---- 2. safetensors


def stored(folder):
    """name -> raw bytes, dtype and shape, read by hand: the format is that simple."""
    out = {}
    for path in sorted(folder.glob("model*.safetensors")):
        raw = path.read_bytes()
        n = struct.unpack("<Q", raw[:8])[0]
        for name, e in json.loads(raw[8 : 8 + n]).items():
            if name != "__metadata__":
                a, b = e["data_offsets"]
                out[name] = (raw[8 + n + a : 8 + n + b], e["dtype"], tuple(e["shape"]))
    return out


def check_bytes(label, got, want, note=""):
    bad = [n for n, data in want.items() if n not in got or got[n][1] != digest(data)]
    good = not bad and len(got) == len(want)
    row(label, f"{len(want)}", sum(len(d) for d in want.values()), note, good=good)


# ---- 3. and 4. GGUF


def gguf_name(name):
    base, suffix = name.rsplit(".", 1)
    if base in GGUF_ONCE:
        return f"{GGUF_ONCE[base]}.{suffix}"
    _, _, layer, rest = base.split(".", 3)
    return f"blk.{layer}.{GGUF_LAYER[rest]}.{suffix}"


def permute(w, heads):
    """The converter's order of the rows of a llama's q and k."""
    return (
        w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    )


def unpermute(raw, heads):
    rows = raw.shape[0]
    return raw.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows, -1)


def to_float(data, dtype, shape):
    if dtype == "BF16":
        return (
            (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        )
    return (
        np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[dtype])
        .astype(np.float32)
        .reshape(shape)
    )


def rewrite(folder, path, kind):
    """Writes folder's checkpoint as a GGUF; returns the bytes that must be read back."""
    config = json.loads((folder / "config.json").read_text())
    arch, heads = config["model_type"], config["num_attention_heads"]
    kv = config.get("num_key_value_heads", heads)
    hidden = config["hidden_size"]
    w, want = gguf.GGUFWriter(path, arch), {}
    w.add_block_count(config["num_hidden_layers"])
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(config.get("head_dim") or hidden // heads)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_context_length(config["max_position_embeddings"])
    for name, (data, dtype, shape) in stored(folder).items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        x = to_float(data, dtype, shape)
        fits = x.ndim == 2 and x.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        kind_here = kind if fits else gguf.GGMLQuantizationType.F32
        want[name] = gguf.quants.quantize(x, kind_here).tobytes()
        if arch == "llama" and ".q_proj." in name:
            x = permute(x, heads)
        if arch == "llama" and ".k_proj." in name:
            x = permute(x, kv)
        w.add_tensor(gguf_name(name), gguf.quants.quantize(x, kind_here), raw_dtype=kind_here)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return want


def check_rewritten(tool, folder):
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    for kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        if hidden % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]:
            continue
        with tempfile.TemporaryDirectory() as temp:
            path = f"{temp}/x.gguf"
            want = rewrite(folder, path, gguf.GGMLQuantizationType[kind])
            check_bytes(folder.name, ours(tool, path, "--bytes")[0], want, kind)


def check_gguf(tool, path):
    reader = gguf.GGUFReader(path)
    field = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer")}
    arch = field["general.architecture"]
    heads = {
        "attn_q": field[f"{arch}.attention.head_count"],
        "attn_k": field[f"{arch}.attention.head_count_kv"],
    }
    back = {v: k for k, v in {**GGUF_LAYER, **GGUF_ONCE}.items()}
    want, kinds = {}, {}
    for t in reader.tensors:
        part = t.name.split(".")
        raw = np.ascontiguousarray(t.data).view(np.uint8)
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
        if part[0] != "blk":
            want[f"{back[part[0]]}.{part[1]}"] = raw.tobytes()
            continue
        if arch == "llama" and part[2] in heads:
            raw = unpermute(raw.reshape(raw.shape[0], -1), heads[part[2]])
        want[f"model.layers.{part[1]}.{back[part[2]]}.{part[3]}"] = raw.tobytes()
    check_bytes(
        pathlib.Path(path).name,
        ours(tool, path, "--bytes")[0],
        want,
        ", ".join(f"{n} {k}" for k, n in kinds.items()),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", required=True, help="the built tests/model/tensors")
    parser.add_argument("gguf", nargs="*")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(
        f"Made {datetime.date.today()} by `compare_models.py`; transformers "
        f"{transformers.__version__}, torch {torch.__version__.split('+')[0]}.\n"
    )
    print("| configuration | parameters | official class | rope |\n| --- | --- | --- | --- |")
    for folder in sorted((FIXTURES / "configs").iterdir()):
        check_config(args.tensors, folder)
    print("\n| checkpoint | tensors equal | bytes | types |\n| --- | --- | --- | --- |")
    for folder in sorted((FIXTURES / "reference").iterdir()):
        if (folder / "config.json").exists():
            want = {n: d for n, (d, _, _) in stored(folder).items()}
            check_bytes(folder.name, ours(args.tensors, str(folder), "--bytes")[0], want)
    for name in ("llama-mha", "llama-gqa-tied", "llama-biases-f16", "qwen2-tied", "qwen2-bf16"):
        check_rewritten(args.tensors, FIXTURES / "reference" / name)
    for path in args.gguf:
        check_gguf(args.tensors, path)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
