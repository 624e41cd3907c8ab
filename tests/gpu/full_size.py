#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Full-size shapes on a GPU against transformers, from one checkpoint written to disk.

usage: full_size.py EVENKEEL [--folder /tmp] [--device cuda:0] [--small] [NAME[:LAYERS] ...]

Random weights of a real configuration (tests/fixtures/configs) are written as a checkpoint. The
official class reads it and computes logits in fp32, and in bf16 what that alone costs; `evenkeel
check` runs the same files with F32 and with BF16 activations, the whole prompt in one step and by
few tokens a step, with the kernels that decode. DeepSeek-VL2 is not in transformers:
its language models run as DeepseekV2ForCausalLM (small) and DeepseekV3ForCausalLM (base), from the
same tensors without their prefix. In a mixture of experts a router's near tie falls either way and
moves everything behind it, so there layers are also taken alone, each as a model of one layer whose
embedding is what the reference gave to that layer. NAME:LAYERS cuts a model to its first layers.
Needs torch, transformers >= 5.17, accelerate, safetensors.
"""

import argparse
import copy
import json
import pathlib
import shutil
import subprocess
import sys
import time
from itertools import product

import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
from common import Weights, picture, qwen_text, qwen_vision, tool, write_checkpoint  # noqa: E402
from make_deepseek import decoder  # noqa: E402

CONFIGS = HERE.parent / "fixtures" / "configs"
TOKENS, WHOLE = 96, 4096
# activations, and most tokens of a step: all of the prompt, one as in decoding, few as in a batch
WAYS = list(product(("float32", "bfloat16"), (WHOLE, 24, 1)))
# defaults of DeepseekV2Config that the published VL2 files rely on
VL2_LANGUAGE = {
    "aux_loss_alpha": 0.001,
    "kv_lora_rank": 512,
    "moe_layer_freq": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 30,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "v_head_dim": 128,
}
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}
MLA_TEXT = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
SMALL = {  # shapes of a trial on a CPU
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 260,
    "n_routed_experts": 8,
}


def read_config(name, layers, small):
    config = json.loads((CONFIGS / name / "config.json").read_text())
    text = config.get("language_config", config)
    if "language_config" in config:
        text.update(VL2_LANGUAGE | text)
        config["vision_config"]["layers"] = 1  # text alone: the tower is not asked
    if small:
        text.update({k: v for k, v in SMALL.items() if k in text})
        text.update(MLA_TEXT if "kv_lora_rank" in text else {"num_key_value_heads": 2})
        text["num_key_value_heads"] = 4 if "kv_lora_rank" in text else 2
        shrink_vision(config, text)
    if layers:
        text["num_hidden_layers"] = layers
    return config, text


def shrink_vision(config, text):
    if "kv_lora_rank" in text:
        config.get("projector_config", {})["n_embed"] = text["hidden_size"]
        return
    config["vision_config"].update(
        depth=8,
        hidden_size=32,
        intermediate_size=44,
        num_heads=2,
        out_hidden_size=text["hidden_size"],
        fullatt_block_indexes=[7],
    )
    config["rope_scaling"]["mrope_section"] = [2, 3, 3]
    for i, kind in enumerate(("image", "video", "vision_start", "vision_end", "vision")):
        config[kind + "_token_id"] = 250 + i


class Run:
    """One model: its folder, the class that is its reference, and what is asked of both."""

    def __init__(self, args, name, layers):
        self.args, self.name, self.layers = args, name, layers
        self.config, self.text = read_config(name, layers, args.small)
        self.folder = pathlib.Path(args.folder) / f"full-size-{name}"
        self.weights = Weights(7, args.device, torch.bfloat16)
        self.exact = None  # the official model in fp32, where it is there already

    def note(self, what):
        print(f"{self.name}: {what}", flush=True)

    def check(self, folder, what):
        """Whether every way through the model agrees with the folder's reference."""
        return [self.check_steps(folder, what, act, chunk) for act, chunk in WAYS]

    def check_steps(self, folder, what, act, chunk):
        """evenkeel check with activations of the configuration's dtype, set to act, and at most
        chunk tokens a step."""
        config = json.loads((folder / "config.json").read_text())
        (config.get("language_config") or config)["torch_dtype"] = act
        config["torch_dtype"] = act
        (folder / "config.json").write_text(json.dumps(config))
        command = [
            self.args.evenkeel,
            "check",
            str(folder),
            "--quiet",
            "--devices",
            self.args.device if "cuda" in self.args.device else "cpu:0",
            "--reference",
            str(folder / "reference.safetensors"),
            "--prefill-chunk",
            str(chunk),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        steps = f"{chunk} a step" if chunk < WHOLE else "in one step"
        print(f"-- {self.name}, {what}, {act}, {steps}: exit {done.returncode}")
        print(done.stdout + done.stderr, end="", flush=True)
        return done.returncode == 0

    def load(self, source, dtype, attention="eager"):
        """The official class on the device: of a folder, or (class, configuration, tensors)."""
        options = {
            "dtype": dtype,
            "attn_implementation": attention,
            "experts_implementation": "eager",
        }
        if self.args.device != "cpu":
            options["device_map"] = self.args.device
        if isinstance(source, pathlib.Path):
            cls = getattr(transformers, self.config["architectures"][0])
            return cls.from_pretrained(source, local_files_only=True, **options).eval()
        cls, config, tensors = source
        made = cls.config_class(**config)
        model, info = cls.from_pretrained(
            None, config=made, state_dict=dict(tensors), output_loading_info=True, **options
        )
        if info["missing_keys"] or info["unexpected_keys"]:
            raise SystemExit(f"{cls.__name__}: {info}")
        return model.eval()

    def logits(self, source, ids, inputs, traced=False):
        """fp32 logits, the trace, what bf16 alone costs, also with the library's other attention:
        two official runs in bf16 do not lose equally much."""
        exact, self.exact = self.exact or self.load(source, torch.float32), None
        logits, trace = tool.forward(exact, ids, traced, **inputs)
        del exact
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
        notes = []
        for attention in ("sdpa", "eager"):
            rough = self.load(source, torch.bfloat16, attention)
            notes.append(tool.bf16_note(logits, tool.forward(rough, ids, **inputs)[0]))
            del rough
        self.note(f"official bf16 with sdpa attention: {notes[0]['bf16']}")
        return logits, trace, notes[1]

    def write_reference(self, folder, ids, logits, note, **tensors):
        tool.write(
            folder / "reference.safetensors",
            tool.tensors_of(ids, logits) | tensors,
            self.name,
            "float32",
            7,
            **note,
        )
        self.note(
            f"{len(ids)} tokens, max |logit| {logits.abs().max():.2f}, official bf16 against fp32: "
            f"{note['bf16']}"
        )

    def random_ids(self, n):
        generator = torch.Generator().manual_seed(11)
        return torch.randint(
            0, self.text["vocab_size"] * 9 // 10, (n,), generator=generator
        ).tolist()


def qwen(run):
    """Qwen2.5-VL: text with a picture that needs no resizing."""
    from PIL import Image

    c, dim = run.config, run.text["hidden_size"] // run.text["num_attention_heads"]
    qwen_text(run.weights, c, dim)
    qwen_vision(run.weights, c["vision_config"])
    write_checkpoint(
        run.folder,
        c,
        run.weights.tensors,
        torch.bfloat16,
        extra={"preprocessor_config.json": PREPROCESSOR},
    )
    run.weights.tensors.clear()
    ids = run.random_ids(TOKENS)
    ids[20:23] = [c["vision_start_token_id"], c["image_token_id"], c["vision_end_token_id"]]
    tool.assert_pillow = lambda: None  # 448 x 336 is a multiple of 28: nothing is resized
    run.exact = run.load(run.folder, torch.float32)
    images = [Image.fromarray(picture(5, 448, 336))]
    ids, inputs, extra = tool.image_inputs(run.exact, run.folder, ids, images)
    logits, _, note = run.logits(run.folder, ids, inputs)
    run.write_reference(run.folder, ids, logits, note, **extra)
    return run.check(run.folder, "whole, with a picture")


def source_of(run, text, tensors):
    """Of which the official class is made: the folder, or the language model inside of VL2's."""
    if "language_config" not in run.config:
        return run.folder
    text = {k: v for k, v in text.items() if k not in ("architectures", "model_type")}
    if text.get("topk_method") != "noaux_tc":
        return transformers.DeepseekV2ForCausalLM, text, tensors
    more = {"rope_interleave": True, "q_lora_rank": None}
    return transformers.DeepseekV3ForCausalLM, text | more, tensors


def vl2_ends(w, config, hidden):
    """Tower and projector, which text does not reach, of any values."""
    v = config["vision_config"]
    width, inner, b = v["width"], int(v["width"] * v["mlp_ratio"]), "vision.blocks.0."
    for name in ("image_newline", "view_seperator"):
        w.normal(name, hidden)
    w.normal("vision.patch_embed.proj.weight", width, 3, 14, 14)
    w.normal("vision.patch_embed.proj.bias", width)
    w.normal("vision.pos_embed", 1, 27 * 27, width)
    for name in (b + "norm1", b + "norm2", "vision.norm", "vision.attn_pool.norm"):
        w.norm(name, width, bias=0.1)
    w.normal("vision.attn_pool.latent", 1, 1, width)
    for p in (b, "vision.attn_pool."):
        w.linear(p + "mlp.fc1", inner, width, bias=0.1)
        w.linear(p + "mlp.fc2", width, inner, bias=0.1)
    for name, out in (
        (b + "attn.qkv", 3),
        (b + "attn.proj", 1),
        ("vision.attn_pool.q", 1),
        ("vision.attn_pool.kv", 2),
        ("vision.attn_pool.proj", 1),
    ):
        w.linear(name, out * width, width, bias=0.1)
    w.linear("projector.layers.0", hidden, 4 * width, bias=0.1)
    w.linear("projector.layers.2", hidden, hidden, bias=0.1)


def write_deepseek(run, folder, text, tensors):
    """The language model alone, or inside of a VL2 checkpoint."""
    config = copy.deepcopy(run.config)
    if "language_config" not in config:
        write_checkpoint(folder, config | text, tensors, torch.bfloat16)
        return
    config["language_config"] |= text
    w = Weights(8, run.args.device, torch.bfloat16)
    vl2_ends(w, config, text["hidden_size"])
    w.tensors |= {"language." + k: v for k, v in tensors.items()}
    write_checkpoint(folder, config, w.tensors, torch.bfloat16)


def one_layer(run, tensors, i, given):
    """Layer i as a model of its own: token t's embedding is what the reference gave to the layer at
    position t, the last norm only scales, and a small head makes logits of the layer's output."""
    text = dict(
        run.text,
        num_hidden_layers=1,
        vocab_size=len(given),
        first_k_dense_replace=int(i < run.text["first_k_dense_replace"]),
    )
    layer, w = f"model.layers.{i}.", Weights(9, run.args.device, torch.bfloat16)
    w.linear("lm_head", len(given), text["hidden_size"], gain=2.5)
    w.tensors |= {
        "model.layers.0." + k[len(layer) :]: v for k, v in tensors.items() if k.startswith(layer)
    }
    w.tensors["model.embed_tokens.weight"] = given
    w.tensors["model.norm.weight"] = torch.ones(text["hidden_size"])
    return check_deepseek(run, f"layer {i} alone", text, w.tensors, list(range(len(given))))


def layer_inputs(run, source, ids):
    """What the reference gives to each layer, rounded to bf16."""
    model, given = run.load(source, torch.float32), []

    def keep(_module, args, kwargs):
        x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        given.append(x[0].bfloat16())

    for layer in model.model.layers:
        layer.register_forward_pre_hook(keep, with_kwargs=True)
    model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return given


def check_deepseek(run, what, text, tensors, ids):
    write_deepseek(run, run.folder, text, tensors)
    logits, _, note = run.logits(source_of(run, text, tensors), ids, {})
    run.write_reference(run.folder, ids, logits, note)
    return run.check(run.folder, what)


def deepseek(run):
    decoder(run.weights, run.text)
    tensors, ids = run.weights.tensors, run.random_ids(TOKENS)
    ok = check_deepseek(run, "whole", run.text, tensors, ids)
    given = layer_inputs(run, source_of(run, run.text, tensors), ids)
    for i in (0, len(given) - 1):
        ok += one_layer(run, tensors, i, given[i])
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("evenkeel", help="the program")
    p.add_argument("names", nargs="*", help="NAME or NAME:LAYERS, of tests/fixtures/configs")
    p.add_argument("--folder", default="/tmp", help="where checkpoints are written and removed")
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--small", action="store_true", help="tiny shapes: tries the script on a CPU")
    args = p.parse_intermixed_args()
    tool.exact_arithmetic()
    transformers.logging.set_verbosity_error()
    print(f"{tool.versions()}, {args.device}", flush=True)
    bad = 0
    for name, _, layers in (n.partition(":") for n in args.names):
        start, run = time.monotonic(), Run(args, name, int(layers or 0))
        run.note(f"{run.text['num_hidden_layers']} layers")
        try:
            with torch.no_grad():
                bad += not all((qwen if name.startswith("qwen") else deepseek)(run))
        finally:
            shutil.rmtree(run.folder, ignore_errors=True)
        run.note(f"{time.monotonic() - start:.1f} s")
        if args.device != "cpu":
            torch.cuda.empty_cache()
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
