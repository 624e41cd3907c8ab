# SPDX-License-Identifier: Apache-2.0
"""A small random Qwen2.5-VL with two images: processor and logits of transformers (PIL backend)."""

import json

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from common import (
    FIXTURES,
    Weights,
    byte_tokenizer,
    picture,
    qwen_text,
    qwen_vision,
    say,
    tool,
    write_checkpoint,
    write_json,
)

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TOKEN = {s: 256 + i for i, s in enumerate(SPECIAL)}

CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": TOKEN["<|endoftext|>"],
    "eos_token_id": TOKEN["<|im_end|>"],
    "vision_start_token_id": TOKEN["<|vision_start|>"],
    "vision_end_token_id": TOKEN["<|vision_end|>"],
    "vision_token_id": TOKEN["<|vision_pad|>"],
    "image_token_id": TOKEN["<|image_pad|>"],
    "video_token_id": TOKEN["<|video_pad|>"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 4,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [2],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vocab_size": 264,
}

PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 28000,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEXT = f"<|im_start|>user\n{IMAGE}or{IMAGE}?<|im_end|>\n<|im_start|>assistant\n"
SIZES = [(200, 160), (250, 90)]  # width, height: one above max_pixels, one only rounded


def weights(seed):
    w = Weights(seed)
    qwen_text(w, CONFIG, 16)
    qwen_vision(w, CONFIG["vision_config"])
    return w.tensors


def resized(images):
    """What the processor's resizing makes of the images, before normalisation, as u8."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    out = []
    for image in images:
        h, w = smart_resize(
            image.height,
            image.width,
            factor=28,
            min_pixels=PREPROCESSOR["min_pixels"],
            max_pixels=PREPROCESSOR["max_pixels"],
        )
        out.append(image.resize((w, h), Image.BICUBIC))
    return out


VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
VIDEO_TEXT = f"<|im_start|>user\n{VIDEO}Go on?<|im_end|>\n<|im_start|>assistant\n"
FPS = 0.7  # 2 / 0.7 seconds a grid: truncated only after the multiplication, 5 and not 4


def video_positions(ids, video_id, grid, per_second, seconds_per_grid):
    """[3, T] for text with one video: a grid's t is p + trunc(i * seconds * per_second), and the
    text goes on after the greatest position of all rows, as in the releases (4.49 to 4.57) with
    which these models came. transformers 5 goes on after the longer side of a frame."""
    t, h, w = (int(n) for n in grid)
    out, p, at = [], 0, 0
    while at < len(ids):
        if ids[at] != video_id:
            out.append((p, p, p))
            p, at = p + 1, at + 1
            continue
        cells = [
            (p + int(i * seconds_per_grid * per_second), p + y, p + x)
            for i in range(t)
            for y in range(h // 2)
            for x in range(w // 2)
        ]
        out += cells
        p, at = max(max(c) for c in cells) + 1, at + len(cells)
    return torch.tensor(out).T.contiguous()


def make_video(folder, model, seed):
    """Three frames, so that the last is repeated; already a multiple of 28 pixels each way."""
    frames = torch.stack([torch.from_numpy(picture(seed + i, 140, 56)) for i in range(3)])
    processor = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    made = processor([frames.permute(0, 3, 1, 2)], return_tensors="pt")
    grids, video_id = made["video_grid_thw"], CONFIG["video_token_id"]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(VIDEO_TEXT).ids
    at = ids.index(video_id)
    cells = int(grids[0].prod()) // 4
    ids = ids[:at] + [video_id] * cells + ids[at + 1 :]
    kinds = (torch.tensor([ids]) == video_id).int() * 2
    positions = video_positions(ids, video_id, grids[0], 2, 2 / FPS)
    theirs, _ = model.model.get_rope_index(
        torch.tensor([ids]), kinds, video_grid_thw=grids, second_per_grid_ts=torch.tensor([2 / FPS])
    )
    assert torch.equal(theirs[:, 0, : at + cells], positions[:, : at + cells])
    inputs = {
        "pixel_values_videos": made["pixel_values_videos"].float(),
        "video_grid_thw": grids,
        "position_ids": positions[:, None],
        "mm_token_type_ids": kinds,
    }
    logits, trace = tool.forward(model, ids, trace=True, **inputs)
    tool.processor_order(trace, grids, model.config.vision_config)
    out = tool.tensors_of(ids, logits, trace=trace)
    out |= {"position_ids": positions, "video.0": frames}
    tool.write(
        folder / "reference-video.safetensors",
        out,
        "Qwen2_5_VLForConditionalGeneration",
        "float32",
        seed,
        prompt=VIDEO_TEXT,
        **tool.noise(folder, ids, logits, **inputs),
        seconds_per_grid=str(2 / FPS),
        video_grid_thw=json.dumps(grids.tolist()),
    )
    print(
        f"video: {len(ids)} tokens, grids {grids.tolist()}, positions {positions[:, at:].tolist()}"
    )


def main():
    seed, folder = 400, FIXTURES / "qwen2.5-vl"
    write_checkpoint(
        folder,
        CONFIG,
        weights(seed),
        torch.bfloat16,
        extra={"preprocessor_config.json": PREPROCESSOR},
    )
    write_json(folder / "tokenizer.json", byte_tokenizer([], SPECIAL))
    images = [Image.fromarray(picture(seed + i, w, h)) for i, (w, h) in enumerate(SIZES)]
    model = tool.load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, inputs, extra = tool.image_inputs(model, folder, tokenizer.encode(TEXT).ids, images)
    rule, _ = model.model.get_rope_index(
        torch.tensor([ids]), inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    assert torch.equal(rule[:, 0], extra["position_ids"]), "positions differ from the rule"
    small = resized(images)
    _, again, _ = tool.image_inputs(model, folder, tokenizer.encode(TEXT).ids, small)
    assert torch.equal(again["pixel_values"], inputs["pixel_values"]), "not PIL's bicubic"
    logits, trace = tool.forward(model, ids, trace=True, **inputs)
    grids = inputs["image_grid_thw"]
    out = tool.tensors_of(ids, logits, trace=trace) | extra
    for i, image in enumerate(small):
        out[f"resized.{i}"] = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
            image.height, image.width, 3
        )
    tool.write(
        folder / "reference.safetensors",
        out,
        "Qwen2_5_VLForConditionalGeneration",
        "float32",
        seed,
        prompt=TEXT,
        **tool.noise(folder, ids, logits, **inputs),
        image_grid_thw=json.dumps(grids.tolist()),
    )
    print(f"{len(ids)} tokens, grids {grids.tolist()}")
    make_video(folder, model, seed + 10)
    say(folder, logits)


if __name__ == "__main__":
    tool.exact_arithmetic()
    torch.set_num_threads(1)
    main()
