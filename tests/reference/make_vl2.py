# SPDX-License-Identifier: Apache-2.0
"""Small random DeepSeek-VL2 models; ids, pixels and logits by the official repository's own code.

    git clone https://github.com/deepseek-ai/DeepSeek-VL2        (made at ef9f91e)
    pip install --no-deps --target LIBS transformers==4.38.2 tokenizers==0.15.2 \\
        huggingface_hub==0.23.5 attrdict==2.0.1 six
    python make_vl2.py DeepSeek-VL2 LIBS [variant ...]

That code wants old libraries, so it runs in a process of its own with LIBS in front; torch, timm,
Pillow and numpy are those of the other scripts. Its one call to xformers, plain attention that only
exists for GPUs, is answered by torch's scaled_dot_product_attention."""

import collections
import collections.abc
import importlib.machinery
import json
import sys
import types

import torch

if __name__ == "__main__":
    sys.path[:0] = sys.argv[2:0:-1]  # LIBS, then the repository


def stand_ins():
    """xformers' attention, and names that Python 3.10 moved and attrdict still imports."""
    for name in ("Mapping", "MutableMapping", "Sequence"):
        setattr(collections, name, getattr(collections.abc, name))

    def attention(q, k, v, p=0.0):
        assert p == 0.0
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    for name in ("xformers", "xformers.ops"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.memory_efficient_attention = attention
        sys.modules[name] = module


stand_ins()

from deepseek_vl2.models.modeling_deepseek_vl_v2 import (  # noqa: E402
    DeepseekVLV2Config,
    DeepseekVLV2ForCausalLM,
)
from deepseek_vl2.models.processing_deepseek_vl_v2 import (  # noqa: E402
    DeepseekVLV2Processor,
    ImageTransform,
)
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from common import (
    FIXTURES,
    Weights,
    assert_pillow,
    byte_tokenizer,
    picture,
    say,
    tool,  # noqa: E402
    write_checkpoint,
    write_json,
)
from make_deepseek import decoder  # noqa: E402

SPECIAL = [
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
]
SENTENCE = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
VOCABULARY = len(SENTENCE) + 256 + len(SPECIAL)
VISION = {
    "image_size": 70,
    "heads": 4,
    "layers": 2,
    "mlp_ratio": 3.7362,
    "model_name": "siglip_so400m_patch14_384",
    "model_type": "vision",
    "patch_size": 14,
    "width": 48,
}
CANDIDATES = [[70, 70], [70, 140], [140, 70], [140, 140], [70, 210], [210, 70]]


def language(**more):
    """Only what the published files state; what they leave out falls to the class's defaults."""
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 64,
        "intermediate_size": 80,
        "kv_lora_rank": 32,
        "lm_head": True,
        "max_position_embeddings": 4096,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 24,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "use_mla": True,
        "v_head_dim": 16,
        "vocab_size": VOCABULARY,
        **more,
    }


def vl2(language_config):
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "candidate_resolutions": CANDIDATES,
        "global_view_pos": "head",
        "language_config": language_config,
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": VISION["width"],
            "model_type": "mlp_projector",
            "n_embed": language_config["hidden_size"],
        },
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.2",
        "vision_config": VISION,
    }


# name: (language_config, shards, conversation, (width, height) of its images)
VARIANTS = {
    "deepseek-vl2-tiny": (
        language(
            use_mla=False,
            kv_lora_rank=None,
            qk_nope_head_dim=0,
            qk_rope_head_dim=0,
            v_head_dim=0,
            num_hidden_layers=2,
        ),
        1,
        ["<image>\n<image>\nSame?"],
        [(100, 60), (60, 150)],
    ),
    "deepseek-vl2-small": (
        language(num_hidden_layers=2),
        3,
        ["Hi <image> there.", "Yes!", "Why?"],
        [(130, 117)],
    ),
    "deepseek-vl2": (
        language(
            norm_topk_prob=True,
            routed_scaling_factor=2.0,
            scoring_func="sigmoid",
            topk_method="noaux_tc",
        ),
        1,
        ["A<image>B<image>C<image>?"],
        [(30, 20), (70, 70), (200, 24)],
    ),
}


def processor_config():
    return {
        "add_special_token": False,
        "candidate_resolutions": CANDIDATES,
        "downsample_ratio": 2,
        "ignore_id": -100,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_token": "<image>",
        "mask_prompt": False,
        "normalize": True,
        "pad_token": SENTENCE[2],
        "patch_size": VISION["patch_size"],
        "processor_class": "DeepseekVLV2Processor",
        "sft_format": "deepseek",
    }


def affine(w, name, out, inputs, gain=1.0):
    w.linear(name, out, inputs, gain, bias=0.2)


def transformer_mlp(w, p, width):
    inner = int(width * VISION["mlp_ratio"])
    affine(w, p + "mlp.fc1", inner, width, 1.4)
    affine(w, p + "mlp.fc2", width, inner, 1.4)


def vision(w, p="vision."):
    width, patch = VISION["width"], VISION["patch_size"]
    grid = VISION["image_size"] // patch
    w.normal(p + "patch_embed.proj.weight", width, 3, patch, patch, std=2 / (3 * patch**2) ** 0.5)
    w.normal(p + "patch_embed.proj.bias", width, std=0.3)
    w.normal(p + "pos_embed", 1, grid * grid, width, std=0.5)
    for i in range(VISION["layers"]):
        b = f"{p}blocks.{i}."
        w.norm(b + "norm1", width, bias=0.2)
        affine(w, b + "attn.qkv", 3 * width, width, 1.4)
        affine(w, b + "attn.proj", width, width, 1.4)
        w.norm(b + "norm2", width, bias=0.2)
        transformer_mlp(w, b, width)
    w.norm(p + "norm", width, bias=0.2)
    w.normal(p + "attn_pool.latent", 1, 1, width)
    affine(w, p + "attn_pool.q", width, width)
    affine(w, p + "attn_pool.kv", 2 * width, width)
    affine(w, p + "attn_pool.proj", width, width)
    w.norm(p + "attn_pool.norm", width, bias=0.2)
    transformer_mlp(w, p + "attn_pool.", width)


def weights(config, seed):
    w = Weights(seed)
    hidden = config["projector_config"]["n_embed"]
    w.normal("image_newline", hidden, std=0.7)
    w.normal("view_seperator", hidden, std=0.7)
    vision(w)
    affine(w, "projector.layers.0", hidden, 4 * VISION["width"], 1.4)
    affine(w, "projector.layers.2", hidden, hidden, 1.4)
    decoder(w, config["language_config"], "language.")
    return w.tensors


class Processor(DeepseekVLV2Processor):
    """The official processor without its constructor, which wants a tokenizer class of its own."""

    bos_id, eos_id, pad_id = 0, 1, 2


def processor(folder):
    p = object.__new__(Processor)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    p.encode = (
        lambda text, bos, eos: tokenizer.encode(text, add_special_tokens=False).ids + [1] * eos
    )
    p.ignore_id = -100
    p.image_token, p.image_token_id = "<image>", tokenizer.token_to_id("<image>")
    p.candidate_resolutions = [tuple(c) for c in CANDIDATES]
    p.image_size, p.patch_size, p.downsample_ratio = CANDIDATES[0][0], VISION["patch_size"], 2
    p.image_transform = ImageTransform((0.5,) * 3, (0.5,) * 3, True)
    p.sft_format, p.mask_prompt = "deepseek", False
    return p


def prepare(folder, turns, images):
    roles = ["<|User|>", "<|Assistant|>"]
    conversation = [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]
    conversation.append({"role": roles[len(turns) % 2], "content": ""})
    ids, _, tiles, mask, crop, _ = processor(folder).format_messages_v2(
        conversation, [Image.fromarray(i) for i in images]
    )
    assert ids[-1] == 1  # the empty answer contributes only eos, which generation takes off
    return ids[:-1], torch.stack(tiles), mask[:-1], torch.tensor(crop)


@torch.no_grad()
def official(config, tensors, ids, tiles, mask, crop, dtype=torch.float32):
    model = DeepseekVLV2ForCausalLM(DeepseekVLV2Config(**config)).float().eval()
    assert {type(l.self_attn).__name__ for l in model.language.model.layers} <= {
        "DeepseekV2Attention",
        "LlamaAttention",
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    model.to(dtype)
    trace, hooks = {}, []

    def keep(name):
        def hook(_module, args, out):
            out = out[0] if isinstance(out, tuple) else out
            trace[name] = (
                out.float().clone().squeeze(0) if out.shape[0] == 1 else out.float().clone()
            )

        return hook

    def keep_input(_module, args, kwargs):
        trace["language.model.embed_tokens"] = (
            kwargs["hidden_states"].clone()[0] if "hidden_states" in kwargs else args[0].clone()[0]
        )

    for i, b in enumerate(model.vision.blocks):
        hooks.append(b.register_forward_hook(keep(f"vision.blocks.{i}")))
    hooks.append(model.vision.register_forward_hook(keep("vision")))
    hooks.append(model.projector.register_forward_hook(keep("projector")))
    hooks.append(
        model.language.model.layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    )
    for i, layer in enumerate(model.language.model.layers):
        hooks.append(layer.register_forward_hook(keep(f"language.model.layers.{i}")))
    hooks.append(model.language.model.norm.register_forward_hook(keep("language.model.norm")))
    batch = torch.tensor([ids])
    out = model(
        input_ids=batch,
        attention_mask=torch.ones_like(batch),
        images=tiles[None].to(dtype),
        images_seq_mask=torch.tensor([mask]),
        images_spatial_crop=crop[None],
        use_cache=False,
        return_dict=True,
    )
    return out.logits[0].float(), trace


def make(name):
    text, shards, turns, sizes = VARIANTS[name]
    config = vl2(text)
    folder = FIXTURES / name
    seed = 300 + list(VARIANTS).index(name)
    tensors = weights(config, seed)
    write_checkpoint(
        folder,
        config,
        tensors,
        torch.bfloat16,
        shards,
        pattern="model-{:05d}-of-{:06d}.safetensors",
        extra={"processor_config.json": processor_config()},
    )
    write_json(folder / "tokenizer.json", byte_tokenizer(SENTENCE, SPECIAL))
    images = [picture(seed + i, w, h) for i, (w, h) in enumerate(sizes)]
    ids, tiles, mask, crop = prepare(folder, turns, images)
    stored = {k: v.bfloat16().float() for k, v in tensors.items()}
    logits, trace = official(config, stored, ids, tiles, mask, crop)
    half, _ = official(config, stored, ids, tiles, mask, crop, torch.bfloat16)
    out = tool.tensors_of(ids, logits, trace=trace)
    out.update({f"image.{i}": torch.from_numpy(image) for i, image in enumerate(images)})
    out["tiles"] = (
        ((tiles * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    )
    tool.write(
        folder / "reference.safetensors",
        out,
        "DeepseekVLV2ForCausalLM",
        "float32",
        seed,
        conversation=json.dumps(turns, ensure_ascii=False),
        **tool.bf16_note(logits, half),
        tiles_of_images=json.dumps(crop.tolist()),
    )
    print(f"{len(ids)} tokens, images {sizes}, tiles [width, height] {crop.tolist()}")
    say(folder, logits)


if __name__ == "__main__":
    assert_pillow()
    tool.exact_arithmetic()
    torch.set_num_threads(1)
    for variant in sys.argv[3:] or VARIANTS:
        make(variant)
