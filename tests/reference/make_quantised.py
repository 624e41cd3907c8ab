#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints of a trained model, made by the libraries' own code, and `evenkeel check`
on them.

usage: make_quantised.py FILE.gguf LIBRARIES EVENKEEL [FOLDER [VARIANT ...]]

FILE.gguf: SmolLM2-135M-Instruct, whose dequantised weights are the trained model. LIBRARIES: a
folder with auto_gptq (0.7.1) and awq (autoawq 0.2.7), as `pip install --no-deps --target` leaves
them. GPTQ's weights are found by auto_gptq's GPTQ on the activations of a text and packed by its
QuantLinear; AWQ's are rounded to their groups' range and packed by awq's WQLinear_GEMM; FP8 is made
by transformers' Fp8Quantize. The reference's weights are what the same libraries decode, its logits
LlamaForCausalLM's in fp32. FOLDER keeps the checkpoints.
"""

import importlib.util

import pathlib
import subprocess
import sys
import tempfile
import types
from unittest import mock

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from common import tool, write_json
from gguf_model import load
from make_smollm2 import PROMPTS, tokenizer_of
from safetensors.torch import save_file


def package(name, folder):
    made = types.ModuleType(name)
    made.__path__ = [str(folder)]
    sys.modules[name] = made


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def libraries(folder):
    """(GPTQ, its QuantLinear, awq's WQLinear_GEMM, awq's dequantize_gemm), without their packages'
    own imports, which want a GPU and an old transformers."""
    folder = pathlib.Path(folder)
    package("gptq_parts", folder / "auto_gptq" / "quantization")
    gptq = importlib.import_module("gptq_parts.gptq").GPTQ
    linear = module("qlinear", folder / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.triton"):
        package(name, folder / name.replace(".", "/"))
    packing = importlib.import_module("awq.utils.packing_utils")
    sys.modules["awq.modules.triton.gemm"] = mock.MagicMock()
    gemm = module("gemm", folder / "awq/modules/linear/gemm.py").WQLinear_GEMM
    return gptq, linear, gemm, packing.dequantize_gemm


def linears(model):
    return {n: m for n, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}


@torch.no_grad()
def hessians(gptq, model, ids):
    """A GPTQ of every linear layer that has seen the text."""
    out, hooks = {n: gptq(m) for n, m in linears(model).items()}, []
    for n, m in linears(model).items():
        hooks.append(m.register_forward_hook(lambda _m, x, y, n=n: out[n].add_batch(x[0], y)))
    model(torch.tensor([ids]), use_cache=False)
    for h in hooks:
        h.remove()
    return out


@torch.no_grad()
def gptq_parts(libs, work, layer, bits, group, act, static):
    work.quantizer.configure(bits, perchannel=True, sym=False)
    with mock.patch.object(torch.cuda, "synchronize"):
        scale, zero, g_idx = work.fasterquant(
            percdamp=0.01, group_size=group, actorder=act, static_groups=static
        )
    half = torch.nn.Linear(layer.in_features, layer.out_features, bias=False).half()
    half.weight.data = layer.weight.data.half()
    packed = libs[1](bits, group, layer.in_features, layer.out_features, False)
    packed.pack(half, scale.half(), zero.half(), g_idx)
    names = ("qweight", "qzeros", "scales", "g_idx")
    with mock.patch.object(torch, "matmul", lambda _x, w: w):  # what it would multiply by
        values = packed(torch.zeros(layer.in_features, layer.in_features, dtype=torch.half))
    return {n: getattr(packed, n).clone() for n in names}, values.T


@torch.no_grad()
def awq_parts(libs, layer, group):
    w = layer.weight.data.reshape(-1, group)
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 15
    zero = (-torch.round(low / scale)).clamp(0, 15)
    shape = (layer.out_features, -1)
    half = torch.nn.Linear(layer.in_features, layer.out_features, bias=False).half()
    half.weight.data = layer.weight.data.half()
    half.weight.data = (
        torch.clamp(torch.round(w / scale), -zero, 15 - zero).mul(scale).reshape(shape).half()
    )
    with mock.patch.dict(libs[2].from_linear.__func__.__globals__, get_best_device=lambda: "cpu"):
        packed = libs[2].from_linear(
            half,
            4,
            group,
            False,
            scale.view(shape).T.contiguous().half(),
            zero.view(shape).T.contiguous(),
        )
    parts = {n: getattr(packed, n) for n in ("qweight", "qzeros", "scales")}
    return parts, libs[3](*parts.values(), 4, group).T


def fp8_parts(layer, block):
    config = types.SimpleNamespace(weight_block_size=block, scale_fmt=None)
    made = Fp8Quantize(types.SimpleNamespace(quantization_config=config))
    w, s = made._quantize_one("x.weight", layer.weight.data).values()
    return {"weight": w, "weight_scale_inv": s}, Fp8Dequantize(None)._dequantize_one(w, s)


def variants(libs):
    """name: (quantization_config, function of (name, layer, hessians) to (parts, decoded))"""

    def gptq(bits, group, act=False, static=False):
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act,
                  "sym": False, "checkpoint_format": "gptq", "static_groups": static}  # fmt: skip
        return config, lambda n, m, h: gptq_parts(libs, h[n], m, bits, group, act, static)

    awq = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "version": "gemm",
        "zero_point": True,
    }
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 64]}
    return {
        "gptq-4bit-64": gptq(4, 64),
        "gptq-4bit-128-act": gptq(4, 128, True),
        "gptq-4bit-64-static-act": gptq(4, 64, True, True),
        "gptq-8bit-64": gptq(8, 64),
        "awq-4bit-64": (awq, lambda n, m, h: awq_parts(libs, m, 64)),
        "fp8-64x64": (fp8, lambda n, m, h: fp8_parts(m, [64, 64])),
    }


def write_model(folder, model, config, make, work):
    """The packed checkpoint; model is left with the decoded weights."""
    tensors = {n: p.data.clone() for n, p in model.named_parameters()}
    for name, layer in linears(model).items():
        parts, values = make(name, layer, work)
        full = f"model.layers.{name}"
        del tensors[full + ".weight"]
        tensors |= {f"{full}.{k}": v.contiguous() for k, v in parts.items()}
        layer.weight.data = values.float().contiguous()
    c = model.config
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads, "vocab_size": c.vocab_size,
        "rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_parameters["rope_theta"],
        "max_position_embeddings": c.max_position_embeddings, "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id, "tie_word_embeddings": True,
        "quantization_config": config})  # fmt: skip


def loss_of(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()


def main(path, folder, evenkeel, keep=None, *wanted):
    tool.exact_arithmetic()
    libs, bad = libraries(folder), 0
    reader, _ = load(path)
    tokenizer = tokenizer_of(reader)
    text = "".join(PROMPTS[n][0] for n in ("chat", "code", "list", "scripts"))
    calibration, ids = tokenizer.encode(text).ids, tokenizer.encode(PROMPTS["prose"][0]).ids
    for name, (config, make) in variants(libs).items():
        if wanted and name not in wanted:
            continue
        _, model = load(path)
        plain, _ = tool.forward(model, ids)
        with tempfile.TemporaryDirectory() as temporary:
            at = pathlib.Path(keep or temporary) / name
            work = hessians(libs[0], model, calibration) if "gptq" in name else None
            write_model(at, model, config, make, work)
            logits, _ = tool.forward(model, ids)
            tool.write(
                at / "reference.safetensors", tool.tensors_of(ids, logits), name, "float32", 0
            )
            size = sum(f.stat().st_size for f in at.iterdir()) / 1e6
            print(f"{name}: {size:.0f} MB, loss {loss_of(logits, ids):.3f}, before quantising "
                  f"{loss_of(plain, ids):.3f}")  # fmt: skip
            check = [evenkeel, "check", str(at), "--quiet"]
            done = subprocess.run(
                [*check, "--reference", str(at / "reference.safetensors")],
                capture_output=True, text=True)  # fmt: skip
            print(f"  {done.stdout}{done.stderr}".rstrip(), flush=True)
            bad += done.returncode != 0
    sys.exit(bad != 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
