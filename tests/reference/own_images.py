# SPDX-License-Identifier: Apache-2.0
"""Our own reading of Pillow's 8-bit bicubic resizing, in integers as a C program would do it, and
of both families' sizes; run as a script it holds the committed vectors against it."""

import json
import math
import sys
import zlib

import numpy as np

from common import FIXTURES
from make_images import crc, pixel, random_sizes
from own_qwen25vl import smart_resize
from own_vl2 import best_candidate, tiles_of

BITS = 22  # of the fixed-point weights


def cubic(x):
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1  # a = -0.5
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def weights(n_in, n_out):
    """[(first input, its fixed-point weights)] for every output."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    out = []
    for x in range(n_out):
        centre = (x + 0.5) * scale
        lo = max(int(centre - support + 0.5), 0)
        hi = min(int(centre + support + 0.5), n_in)
        w = [cubic((lo + k - centre + 0.5) * (1 / stretch)) for k in range(hi - lo)]
        total = sum(w)
        w = [v / total for v in w] if total else w
        out.append((lo, [int(v * (1 << BITS) + (0.5 if v >= 0 else -0.5)) for v in w]))
    return out


def resize_rows(image, n_out):
    """Along the first axis; u8 in, u8 out."""
    if image.shape[0] == n_out:
        return image
    wide = image.astype(np.int64)
    out = np.empty((n_out, *image.shape[1:]), np.uint8)
    for x, (lo, w) in enumerate(weights(image.shape[0], n_out)):
        total = np.tensordot(np.array(w, np.int64), wide[lo:lo + len(w)], axes=1)  # fmt: skip
        out[x] = np.clip(total + (1 << (BITS - 1)) >> BITS, 0, 255)
    return out


def resize(image, width, height):
    """Horizontal first; the picture between the passes is u8."""
    return resize_rows(resize_rows(image.transpose(1, 0, 2), width).transpose(1, 0, 2), height)


def check_resize(folder):
    cases = [(c, c["to"]) for c in json.loads((folder / "resize.json").read_text())["cases"]]
    qwen = json.loads((folder / "qwen2.5-vl.json").read_text())["cases"]
    cases += [(c, c["to"]) for c in qwen if "crc32" in c]
    wrong = [c for c, to in cases if crc(resize(pixel(*c["size"], c["seed"]), *to)) != c["crc32"]]
    print(f"{len(cases) - len(wrong)} of {len(cases)} resized images bit-equal", *wrong[:5])
    return not wrong


def check_tiles(folder):
    vl2 = json.loads((folder / "deepseek-vl2.json").read_text())
    config = {
        "vision_config": {"image_size": 384},
        "candidate_resolutions": vl2["candidate_resolutions"],
    }
    wrong = []
    for c in vl2["cases"]:
        image = pixel(*c["size"], c["seed"])
        tiles, grid = tiles_of([image] if c["alone"] else [image] * 3, config)
        own = tiles[: 1 + grid[0][0] * grid[0][1]].numpy()
        if crc(own) != c["crc32"] or list(grid[0]) != c["tiles"]:
            wrong.append(c)
    print(f"{len(vl2['cases']) - len(wrong)} of {len(vl2['cases'])} tilings bit-equal", *wrong[:5])
    return not wrong


def check_sizes(folder):
    qwen = json.loads((folder / "qwen2.5-vl.json").read_text())
    vl2 = json.loads((folder / "deepseek-vl2.json").read_text())
    a = b = ""
    for w, h in random_sizes(10000):
        if max(w, h) / min(w, h) > 200:
            a += f"{w} {h} refused\n"
        else:
            y, x = smart_resize(h, w, qwen["min_pixels"], qwen["max_pixels"])
            a += f"{w} {h} {x} {y} {x * y // 784}\n"
        x, y = best_candidate(w, h, vl2["candidate_resolutions"])
        b += f"{w} {h} {x} {y} {211 + 14 * (y // 384) * (14 * (x // 384) + 1)}\n"
    same = [zlib.crc32(t.encode()) == f["lines_10000_crc32"] for t, f in ((a, qwen), (b, vl2))]
    print(f"10000 sizes: Qwen2.5-VL {same[0]}, DeepSeek-VL2 {same[1]}; "
          f"{a.count('refused')} refused")  # fmt: skip
    return all(same)


if __name__ == "__main__":
    folder = FIXTURES.parent / "images"
    assert math.isclose(cubic(0.5), 0.5625)
    sys.exit(0 if all([check_resize(folder), check_tiles(folder), check_sizes(folder)]) else 1)
