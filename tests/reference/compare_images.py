#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds our decoding, resizing and padding against Pillow's over files of many kinds.

    compare_images.py --pixels build/tests/model/pixels [PICTURE...]

Makes pictures (smooth, noisy, drawn, photograph-like; every mode that PNG and JPEG store; sizes
from 1 to 3000, extreme ratios) and decodes each as stored, on white and upright; then Qwen2.5-VL's
resizing and DeepSeek-VL2's global and local view. More pictures may be given. Prints a Markdown
report; exits 1 on a difference that the bars do not allow. Needs Pillow 12.0 and numpy."""

import argparse
import math
import pathlib
import subprocess
import sys
import tempfile
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageOps, features

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
MODELS = [FIXTURES / "configs" / n for n in ("deepseek-vl2", "qwen2.5-vl-7b")]
CANDIDATES = [(384 * w, 384 * h) for w, h in
              [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1),
               (1, 6), (6, 1), (2, 3), (3, 2), (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2),
               (1, 9), (9, 1), (3, 3)]]  # fmt: skip
SIZES = [(1, 1), (1, 90), (90, 1), (2, 3), (16, 16), (17, 33), (640, 480), (333, 500), (1000, 40),
         (41, 900), (1600, 1200), (768, 767), (384, 384), (97, 101), (3000, 16),
         (224, 224)]  # fmt: skip


def photograph(rng, w, h):
    """Smooth light at several scales with some grain: what lenses give."""
    out = np.zeros((h, w, 3))
    for scale in (2, 5, 13, 40):
        coarse = rng.integers(0, 256, (min(scale, h), min(scale, w), 3), dtype=np.uint8)
        out += np.asarray(Image.fromarray(coarse).resize((w, h), Image.BICUBIC)) / scale
    out = out / out.max() * 255 + rng.normal(0, 3, out.shape)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def drawing(rng, w, h):
    image = Image.new("RGB", (w, h), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        a, b = (sorted(rng.integers(0, n, 2).tolist()) for n in (w, h))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        pen.rectangle(
            (a[0], b[0], a[1], b[1]), outline=colour, fill=None if rng.random() < 0.5 else colour
        )
        pen.line((a[0], b[1], a[1], b[0]), fill=colour, width=3)
        pen.text((a[0], b[0]), "Evenkeel", fill=colour)
    return image


def noise(rng, w, h):
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def with_alpha(rng, image):
    out = image.convert("RGBA")
    out.putalpha(photograph(rng, *image.size).convert("L"))
    return out


def deep(rng, image):
    return Image.fromarray(rng.integers(0, 600, (image.height, image.width), dtype=np.uint16))


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = sum(image.size) % 8 + 1
    return exif.tobytes()


PNG = {
    "RGB": lambda rng, i: (i, {}),
    "grey": lambda rng, i: (i.convert("L"), {}),
    "grey with alpha": lambda rng, i: (with_alpha(rng, i).convert("LA"), {}),
    "RGB with alpha": lambda rng, i: (with_alpha(rng, i), {}),
    "palette": lambda rng, i: (i.quantize(max(2, sum(i.size) % 256)), {}),
    "palette, transparent": lambda rng, i: (i.quantize(16), {"transparency": 3}),
    "one bit": lambda rng, i: (i.convert("1"), {}),
    "16 bits": lambda rng, i: (deep(rng, i), {}),
    "RGB, turned": lambda rng, i: (i, {"exif": turned(i)}),
}
JPEG = {
    "4:2:0": lambda rng, i: (i, {"quality": 75, "subsampling": 2}),
    "4:2:2": lambda rng, i: (i, {"quality": 90, "subsampling": 1}),
    "4:4:4": lambda rng, i: (i, {"quality": 97, "subsampling": 0}),
    "progressive": lambda rng, i: (i, {"quality": 60, "progressive": True}),
    "progressive, poor": lambda rng, i: (i, {"quality": 5, "progressive": True, "subsampling": 1}),
    "grey": lambda rng, i: (i.convert("L"), {"quality": 80}),
    "CMYK": lambda rng, i: (i.convert("CMYK"), {"quality": 85}),
    "restarts, turned": lambda rng, i: (i, {"exif": turned(i), "restart_marker_blocks": 3}),
}


def make_files(folder):
    """[(path, kind)]: every kind of file in every third size, of a photograph, a drawing, noise."""
    rng = np.random.default_rng(7)
    subjects, out = (photograph, drawing, noise), []
    kinds = [("PNG", k, f) for k, f in PNG.items()] + [("JPEG", k, f) for k, f in JPEG.items()]
    for i, (form, kind, store) in enumerate(kinds):
        for j, (w, h) in enumerate(SIZES):
            image, options = store(rng, subjects[(i + j) % 3](rng, w, h))
            path = folder / f"{i:02}-{j:02}.{form.lower()}"
            image.save(path, form, **options)
            out.append((path, f"{form} {kind}"))
    return out


def on_white(image):
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.split()[3])
    return white


def qwen_size(w, h, low=3136, high=12845056, f=28):
    if max(h, w) / min(h, w) > 200:
        return None
    hb, wb = round(h / f) * f, round(w / f) * f
    if hb * wb > high:
        beta = math.sqrt(h * w / high)
        hb, wb = (max(f, math.floor(n / beta / f) * f) for n in (h, w))
    elif hb * wb < low:
        beta = math.sqrt(low / (h * w))
        hb, wb = (math.ceil(n * beta / f) * f for n in (h, w))
    return wb, hb


def candidate(w, h):
    def key(c):
        s = min(c[0] / w, c[1] / h)
        kept = min(int(w * s) * int(h * s), w * h)
        return kept, kept - c[0] * c[1]

    return max(CANDIDATES, key=key)  # the first of equals


def views(path):
    """{what: picture} by Pillow, in the order of the program's output."""
    image = Image.open(path)
    rgb = image.convert("RGB")
    out = {"decoded": rgb, "on white": on_white(Image.open(path)),
           "upright": ImageOps.exif_transpose(Image.open(path)).convert("RGB")}  # fmt: skip
    size = qwen_size(*rgb.size)
    out["Qwen2.5-VL"] = rgb.resize(size, Image.BICUBIC) if size else None
    best = candidate(*rgb.size)
    for name, to in (("VL2 global", (384, 384)), ("VL2 local", best)):
        if name == "VL2 global" or best != (384, 384):
            out[name] = ImageOps.pad(rgb, to, Image.BICUBIC, color=(127, 127, 127))
    return out


def expected(picture):
    if picture is None:
        return ["0", "0", "0"]
    return [str(v) for v in (*picture.size, zlib.crc32(picture.tobytes()))]


def difference(program, path):
    """The largest of the decoded bytes."""
    raw = subprocess.run([program, "--raw", path], check=True, capture_output=True).stdout
    theirs = np.asarray(Image.open(path).convert("RGB")).astype(int).ravel()
    return int(np.abs(np.frombuffer(raw, np.uint8).astype(int) - theirs).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", required=True)
    parser.add_argument("pictures", nargs="*", type=pathlib.Path)
    args = parser.parse_args()
    assert tuple(map(int, Image.__version__.split("."))) < (12, 1), "Pillow 12.0 or older"
    counts, bad = {}, []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(pathlib.Path(folder))
        files += [(p, f"given, {Image.open(p).format}") for p in args.pictures]
        for path, kind in files:
            try:
                theirs = views(path)
            except ValueError as error:  # ImageOps.pad of a picture that vanishes
                print(f"{path.name}: Pillow refuses: {error}", file=sys.stderr)
                continue
            ours = subprocess.run([args.pixels, *MODELS, path], capture_output=True, text=True)
            words = ours.stdout.split()
            row = counts.setdefault(kind, [0, 0, 0, 0])
            row[0] += 1
            for i, (what, picture) in enumerate(theirs.items()):
                row[1] += 1
                if words[3 * i : 3 * i + 3] == expected(picture):
                    row[2] += 1
                else:
                    bad.append(f"{path.name} ({kind}), {what}: {picture.size} {ours.stderr}")
            if theirs and words[:3] != expected(theirs["decoded"]):
                row[3] = max(row[3], difference(args.pixels, path))
    turbo = features.version("libjpeg_turbo")
    print(
        f"Pillow {Image.__version__} with libjpeg-turbo {turbo}, zlib {features.version('zlib')}.\n"
    )
    print("| files | number | pictures compared | bit-equal | largest difference decoded |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, row in counts.items():
        print(f"| {kind} | {row[0]} | {row[1]} | {row[2]} | {row[3]} |")
    total = [sum(r[i] for r in counts.values()) for i in range(3)]
    print(f"| all | {total[0]} | {total[1]} | {total[2]} | {max(r[3] for r in counts.values())} |")
    for line in bad[:20]:
        print(line, file=sys.stderr)
    allowed = all("JPEG" in b for b in bad) and all(r[3] <= 1 for r in counts.values())
    return 0 if allowed else 1


if __name__ == "__main__":
    sys.exit(main())
