# SPDX-License-Identifier: Apache-2.0
"""Vectors for image preprocessing: Pillow's decoding and bicubic resizing, the sizes, tiles and
token counts of Qwen2.5-VL and DeepSeek-VL2 by their official functions.

    python make_images.py                      resize.json, qwen2.5-vl.json, files/
    python make_images.py DeepSeek-VL2 LIBS    deepseek-vl2.json (libraries as for make_vl2.py)

Large images are not stored: `pixel` says what they are, and a CRC-32 what must become of them."""

import io
import json
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps

FOLDER = None  # set in main: common imports transformers, of whichever version comes first


def scrambled(index):
    """32 bits of hash of a 32-bit index (numpy array or int)."""
    h = np.asarray(index, dtype=np.uint64) * 2654435761 & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 2246822519 & 0xFFFFFFFF
    return h ^ h >> 13


def pixel(width, height, seed):
    """u8 RGB [height, width, 3]: byte i of row-major order is
    (3x + 5y + 40c + (hash(i + 1000003 seed) mod 64)) mod 256."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    i = np.arange(width * height * 3, dtype=np.uint64).reshape(height, width, 3)
    noise = scrambled(i + 1000003 * seed & 0xFFFFFFFF) % 64
    return ((3 * x + 5 * y + 40 * c + noise.astype(np.int64)) % 256).astype(np.uint8)


def random_sizes(n):
    """n pairs 1..4000 x 1..4000, the second of every fourth pair 1..64 for extreme ratios."""
    for i in range(n):
        limit = 64 if i % 4 == 3 else 4000
        yield int(scrambled(2 * i)) % 4000 + 1, int(scrambled(2 * i + 1)) % limit + 1


def crc(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def write_rows(name, head, rows):
    """JSON with one row a line, so that a change shows in a diff."""
    text = json.dumps(head)[:-1] + ', "cases": [\n'
    text += ",\n".join(json.dumps(r) for r in rows) + "\n]}\n"
    (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{name}: {len(rows)} cases, {len(text) / 1e3:.1f} kB")


SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (17, 31), (64, 48), (100, 60), (99, 101), (333, 7)]
TARGETS = [(1, 1), (3, 2), (17, 31), (64, 48), (70, 70), (28, 196), (128, 9)]


def make_resize():
    rows = []
    for i, (w, h) in enumerate(SIZES):
        for to in TARGETS:
            out = Image.fromarray(pixel(w, h, i)).resize(to, Image.BICUBIC)
            rows.append({"size": [w, h], "seed": i, "to": to, "crc32": crc(np.asarray(out))})
    for (w, h), to in [((640, 480), (384, 288)), ((1024, 768), (384, 384)), ((641, 13), (384, 8))]:
        out = Image.fromarray(pixel(w, h, 99)).resize(to, Image.BICUBIC)
        rows.append({"size": [w, h], "seed": 99, "to": to, "crc32": crc(np.asarray(out))})
    write_rows("resize.json", {"what": "Pillow bicubic, RGB", "pillow": Image.__version__}, rows)


def make_qwen():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    limits = {"min_pixels": 3136, "max_pixels": 12845056}

    def size_of(w, h):
        """(width, height) after resizing, or None where the official function refuses."""
        try:
            return smart_resize(h, w, factor=28, **limits)[::-1]
        except ValueError:
            return None

    rows = []
    for i, (w, h) in enumerate(
        [
            (640, 480),
            (1920, 1080),
            (224, 224),
            (70, 42),
            (200, 30),
            (14, 14),
            (6000, 4000),
            (1, 1),
            (1, 200),
            (1, 201),
            (5, 1000),
            (4000, 3999),
            (3584, 3585),
            (42, 42),
            (98, 14),
        ]
    ):
        to = size_of(w, h)
        row = {"size": [w, h], "seed": i, "to": to}
        if to:
            row["tokens"] = to[0] * to[1] // 784
            if w * h <= 500000:
                small = Image.fromarray(pixel(w, h, i)).resize(to, Image.BICUBIC)
                row["crc32"] = crc(np.asarray(small))
        rows.append(row)
    text = ""
    for w, h in random_sizes(10000):
        to = size_of(w, h)
        text += f"{w} {h} {to[0]} {to[1]} {to[0] * to[1] // 784}\n" if to else f"{w} {h} refused\n"
    write_rows("qwen2.5-vl.json", {**limits, "lines_10000_crc32": zlib.crc32(text.encode())}, rows)


def make_vl2():
    import make_vl2 as vl2
    from deepseek_vl2.models.processing_deepseek_vl_v2 import select_best_resolution

    candidates = [[384 * w, 384 * h] for w, h in
                  [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1),
                   (1, 6), (6, 1), (2, 3), (3, 2), (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2),
                   (1, 9), (9, 1), (3, 3)]]  # fmt: skip
    vl2.CANDIDATES[:] = candidates
    p = vl2.processor(vl2.FIXTURES / "deepseek-vl2")
    p.image_size = 384

    def tokens(best):
        w, h = best[0] // 384, best[1] // 384
        return 211 + 14 * h * (14 * w + 1)

    rows = []
    for i, (w, h) in enumerate(
        [
            (640, 480),
            (1024, 768),
            (1920, 1080),
            (1080, 1920),
            (800, 200),
            (3000, 1000),
            (4000, 300),
            (300, 300),
            (100, 100),
            (1000, 999),
            (384, 384),
            (385, 384),
            (384, 769),
            (1, 1),
            (1, 500),
            (500, 1),
            (37, 1000),
            (768, 767),
            (576, 3456),
            (211, 333),
        ]
    ):
        image = Image.fromarray(pixel(w, h, i))
        for cropping in (True, False):
            ids, tiles, _, crop, n = p.tokenize_with_images(
                "<image>", [image], False, False, cropping
            )
            u8 = [((t * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy() for t in tiles]
            assert len(ids) == n[0]
            rows.append(
                {
                    "size": [w, h],
                    "seed": i,
                    "alone": cropping,
                    "tiles": crop[0],
                    "tokens": n[0],
                    "crc32": crc(np.stack(u8)),
                }
            )
            assert not cropping or n[0] == tokens([384 * c for c in crop[0]])
    text = ""
    for w, h in random_sizes(10000):
        best = select_best_resolution((w, h), candidates)
        text += f"{w} {h} {best[0]} {best[1]} {tokens(best)}\n"
    write_rows(
        "deepseek-vl2.json",
        {"candidate_resolutions": candidates, "lines_10000_crc32": zlib.crc32(text.encode())},
        rows,
    )


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def sample_files():
    """{file name: bytes}: one small file for each way in which pixels are stored."""
    rgb = Image.fromarray(pixel(33, 21, 7)).resize((35, 22), Image.BICUBIC)
    smooth = Image.fromarray(pixel(9, 6, 3)).resize((37, 23), Image.BICUBIC)
    grey = smooth.convert("L")
    alpha = grey.resize(rgb.size)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    palette = rgb.quantize(16)
    deep = np.asarray(grey).astype(np.uint16) * 257 - np.arange(37, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: shown after a quarter turn clockwise
    cmyk = smooth.convert("CMYK")
    png, jpeg = {"format": "PNG"}, {"format": "JPEG", "quality": 85}
    return {
        "rgb.png": encoded(rgb, **png),
        "grey.png": encoded(grey, **png),
        "grey-alpha.png": encoded(rgba.convert("LA"), **png),
        "rgba.png": encoded(rgba, **png),
        "palette.png": encoded(palette, **png),
        "palette-transparent.png": encoded(palette, transparency=3, **png),
        "one-bit.png": encoded(grey.convert("1"), **png),
        "grey-16.png": encoded(Image.fromarray(deep), **png),
        "one-column.png": encoded(rgb.crop((0, 0, 1, 22)), **png),
        "420.jpg": encoded(smooth, subsampling=2, **jpeg),
        "422.jpg": encoded(smooth, subsampling=1, **jpeg),
        "444.jpg": encoded(smooth, subsampling=0, **jpeg),
        "progressive.jpg": encoded(rgb, progressive=True, **jpeg),
        "grey.jpg": encoded(grey, **jpeg),
        "cmyk.jpg": encoded(cmyk, **jpeg),
        "rotated.jpg": encoded(smooth, exif=exif.tobytes(), **jpeg),
        "one-row.jpg": encoded(rgb.crop((0, 0, 35, 1)), **jpeg),
    }  # fmt: skip


def make_files():
    """files/ and files.safetensors: what Pillow makes of them, alpha dropped; where the picture has
    alpha also on white (qwen-vl-utils), where it is turned also upright (transformers)."""
    import torch
    from common import tool

    (FOLDER / "files").mkdir(exist_ok=True)
    out = {}
    for name, data in sample_files().items():
        (FOLDER / "files" / name).write_bytes(data)
        image = Image.open(io.BytesIO(data))
        mode = image.mode
        plain = np.array(image.convert("RGB"))
        out[name + ".rgb"] = torch.from_numpy(plain)
        if mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGB", rgba.size, (255, 255, 255))
            white.paste(rgba, mask=rgba.split()[3])
            out[name + ".white"] = torch.from_numpy(np.array(white))
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        if upright.shape != plain.shape:
            out[name + ".upright"] = torch.from_numpy(upright)
        print(f"{name:24} {mode:6} {len(data):5} bytes {plain.shape}")
    tool.save(FOLDER / "files.safetensors", out, {"pillow": Image.__version__})


def main():
    global FOLDER
    if len(sys.argv) == 3:
        sys.path[:0] = sys.argv[2:0:-1]
    from common import FIXTURES, assert_pillow

    assert_pillow()
    FOLDER = FIXTURES.parent / "images"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) == 3:
        make_vl2()
    else:
        make_resize()
        make_qwen()
        make_files()


if __name__ == "__main__":
    main()
