# SPDX-License-Identifier: Apache-2.0
"""tests/fixtures/dequant.bin: random blocks of each GGUF type and what the gguf package makes of
them. Records: name (8 bytes), elements (u32), bytes (u32), blocks, F32 values."""

import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T, quants

TYPES = {  # bytes a block, elements a block, offsets of half floats
    "F16": (2, 1, []),
    "BF16": (2, 1, []),
    "Q4_0": (18, 32, [0]),
    "Q4_1": (20, 32, [0, 2]),
    "Q5_0": (22, 32, [0]),
    "Q5_1": (24, 32, [0, 2]),
    "Q8_0": (34, 32, [0]),
    "Q4_K": (144, 256, [0, 2]),
    "Q5_K": (176, 256, [0, 2]),
    "Q6_K": (210, 256, [208]),
}
rng = np.random.default_rng(1)
with open(sys.argv[1], "wb") as out:
    for name, (size, block, halves) in TYPES.items():
        count = 512 // block
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
        if name == "F16":
            raw = rng.normal(size=count).astype(np.float16).view(np.uint8)
            values = raw.view(np.float16).astype(np.float32)
        elif name == "BF16":
            raw = rng.normal(size=count).astype(np.float32).view(np.uint32) >> 16
            values = (raw << 16).view(np.float32)
            raw = raw.astype(np.uint16).view(np.uint8)
        else:
            for at in halves:
                scale = (rng.normal(size=count) * 0.05).astype(np.float16)
                raw[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
            values = quants.dequantize(raw, T[name])
        out.write(struct.pack("<8sII", name.encode(), 512, raw.nbytes))
        out.write(raw.tobytes() + np.ascontiguousarray(values, dtype=np.float32).tobytes())
