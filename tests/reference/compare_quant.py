#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the reader of quantised checkpoints against the official unpackers, bit for bit.

usage: compare_quant.py TENSORS LIBRARIES [SEEDS]

TENSORS: tests/model/tensors. LIBRARIES: a folder with auto_gptq (0.7.1) and awq (autoawq 0.2.7), as
`pip install --no-deps --target` leaves them; FP8 is decoded by transformers. SEEDS: a folder that
gets one input for tests/fuzz/fuzz_quant a layout.
"""

import importlib.util, json, os, subprocess, sys, tempfile

import numpy as np, torch, xxhash
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize


def load(libraries, path):
    spec = importlib.util.spec_from_file_location(
        os.path.basename(path)[:-3], f"{libraries}/{path}"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sizes(hidden, kv, ffn):
    a, m = "self_attn", "mlp"
    return {
        f"{a}.q_proj": (hidden, hidden),
        f"{a}.k_proj": (kv, hidden),
        f"{a}.v_proj": (kv, hidden),
        f"{a}.o_proj": (hidden, hidden),
        f"{m}.gate_proj": (ffn, hidden),
        f"{m}.up_proj": (ffn, hidden),
        f"{m}.down_proj": (hidden, ffn),
    }


def words(rng, rows, cols):
    return torch.from_numpy(rng.integers(-(2**31), 2**31, (rows, cols)).astype(np.int32))


def scales(rng, rows, cols, dtype):
    return torch.from_numpy(rng.uniform(1e-3, 2e-2, (rows, cols)).astype(np.float32)).to(dtype)


def gptq(lib, rng, out, n, bits, group, act, dtype):
    g = n if group < 0 else group
    groups, per = -(-n // g), 32 // bits
    linear = lib.QuantLinear(bits, group, n, out, False, weight_dtype=dtype)
    zeros = rng.integers(1, 2**bits, (groups, out))  # a zero of 0 is out of the library's reach
    stored = np.zeros((groups, out // per), np.uint32)
    for c in range(out):
        stored[:, c // per] |= (zeros[:, c] - 1).astype(np.uint32) << np.uint32(bits * (c % per))
    linear.qweight, linear.qzeros = words(rng, n // per, out), torch.from_numpy(
        stored.view(np.int32)
    )
    linear.scales = scales(rng, groups, out, dtype)
    order = rng.permutation(n) if act else np.arange(n)
    linear.g_idx = torch.from_numpy((order // g).astype(np.int32))
    parts = {k: getattr(linear, k).clone() for k in ("qweight", "qzeros", "scales", "g_idx")}
    return parts, linear(torch.eye(n, dtype=dtype)).T


def awq(lib, rng, out, n, group):
    parts = {
        "qweight": words(rng, n, out // 8),
        "qzeros": words(rng, n // group, out // 8),
        "scales": scales(rng, n // group, out, torch.float16),
    }
    return (
        parts,
        lib.dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, group).T,
    )


def fp8(rng, out, n, block):
    raw = rng.integers(0, 256, (out, n)).astype(np.uint8)
    raw[(raw & 0x7F) == 0x7F] = 0
    w = torch.from_numpy(raw).view(torch.float8_e4m3fn)
    s = scales(rng, -(-out // block[0]), -(-n // block[1]), torch.float32)
    return {"weight": w, "weight_scale_inv": s}, Fp8Dequantize(None)._dequantize_one(w, s)


def layouts(libs, rng):
    def q(bits, group, act=False, dtype=torch.float16):
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act}
        return config, lambda o, n: gptq(libs[0], rng, o, n, bits, group, act, dtype)

    yield "gptq4", *q(4, 32)
    yield "gptq8", *q(8, 64)
    yield "gptq4_row", *q(4, -1)
    yield "gptq4_act", *q(4, 32, True)
    yield "gptq8_bf16", *q(8, 32, False, torch.bfloat16)
    for group in (32, 64):
        yield f"awq{group}", {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "version": "gemm",
        }, lambda o, n, g=group: awq(libs[1], rng, o, n, g)
    for block in ((32, 32), (16, 64), (8, 8)):
        yield f"fp8_{block[0]}_{block[1]}", {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": block,
        }, lambda o, n, b=block: fp8(rng, o, n, b)


def checkpoint(folder, config, make, rng, hidden, kv, ffn):
    """Writes it; the decoded weights by name."""
    tensors, want, layer = {}, {}, "model.layers.0"
    for name, (out, n) in sizes(hidden, kv, ffn).items():
        parts, w = make(out, n)
        want[f"{layer}.{name}.weight"] = w.float().contiguous().numpy()
        tensors.update({f"{layer}.{name}.{k}": v.contiguous() for k, v in parts.items()})
    for name, shape in (
        ("model.embed_tokens", (8, hidden)),
        ("lm_head", (8, hidden)),
        ("model.norm", (hidden,)),
        (f"{layer}.input_layernorm", (hidden,)),
        (f"{layer}.post_attention_layernorm", (hidden,)),
    ):
        tensors[name + ".weight"] = torch.from_numpy(rng.standard_normal(shape)).half()
    save_file(tensors, f"{folder}/model.safetensors")
    with open(f"{folder}/config.json", "w") as f:
        json.dump(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": hidden,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": ffn,
                "vocab_size": 8,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "torch_dtype": "float16",
                "quantization_config": config,
            },
            f,
        )
    return want


def main():
    program, libraries = sys.argv[1:3]
    libs = (
        load(libraries, "auto_gptq/nn_modules/qlinear/qlinear_cuda.py"),
        load(libraries, "awq/utils/packing_utils.py"),
    )
    rng, bad = np.random.default_rng(5), 0
    for name, config, make in layouts(libs, rng):
        with tempfile.TemporaryDirectory() as folder:
            want = checkpoint(folder, config, make, rng, 128, 64, 192)
            printed = subprocess.run([program, "--values", folder], capture_output=True, text=True)
            got = {
                f[1]: f[2:4]
                for f in map(str.split, printed.stdout.splitlines())
                if f[0] == "tensor"
            }
            n = sum(
                got.get(k, [0, 0])[1] == xxhash.xxh3_128_hexdigest(v.tobytes())
                for k, v in want.items()
            )
            types = {got[k][0] for k in want if k in got}
            print(
                f"{name:12} {n} of {len(want)} matrices bit-equal, as {' '.join(sorted(types))}",
                printed.stderr,
            )
            bad += n != len(want)
            if len(sys.argv) > 3:
                hidden = 64 if "64" in str(config) else 32
                checkpoint(folder, config, make, rng, hidden, hidden // 2, 64)
                with open(f"{folder}/model.safetensors", "rb") as f, open(
                    f"{sys.argv[3]}/{name}", "wb"
                ) as seed:
                    seed.write(json.dumps(config).encode() + b"\n" + f.read())
    sys.exit(bad != 0)


main()
