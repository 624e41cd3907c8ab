// SPDX-License-Identifier: Apache-2.0
// Weights in blocks from the checkpoint's form to the device's (blocks.cuh), once, when a matrix is
// ready. Block formats: ggml's and base/dequant.c's.
#include "kernels/cuda/weights.cuh"

__device__ __forceinline__ uint32_t word_at(const uint8_t *p) // of any alignment
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

// Integer e of the block at b.
template <int W> __device__ uint32_t integer(const uint8_t *b, uint32_t e)
{
    uint32_t j = e / 32, l = e % 32;

    switch (W) {
    case EK_Q4_0:
        return b[2 + e % 16] >> 4 * (e / 16) & 15;
    case EK_Q4_1:
        return b[4 + e % 16] >> 4 * (e / 16) & 15;
    case EK_Q5_0:
        return (b[6 + e % 16] >> 4 * (e / 16) & 15) | (word_at(b + 2) >> e & 1) << 4;
    case EK_Q5_1:
        return (b[8 + e % 16] >> 4 * (e / 16) & 15) | (word_at(b + 4) >> e & 1) << 4;
    case EK_Q8_0:
        return b[2 + e] ^ 128;
    case EK_Q4_K:
        return b[16 + j / 2 * 32 + l] >> j % 2 * 4 & 15;
    case EK_Q5_K:
        return (b[48 + j / 2 * 32 + l] >> j % 2 * 4 & 15) | (b[16 + l] >> j & 1) << 4;
    case EK_Q6_K: {
        uint32_t half = e / 128, quarter = j % 4;
        return (b[half * 64 + quarter % 2 * 32 + l] >> quarter / 2 * 4 & 15) |
               (b[128 + half * 32 + l] >> 2 * quarter & 3) << 4;
    }
    default:
        return Blocks<W>::low == 4 ? b[4 + e / 2] >> 4 * (e % 2) & 15 : b[4 + e];
    }
}

// Six-bit scale and minimum of sub-block j of a Q4_K or Q5_K block, from their 12 bytes.
__device__ uint2 k_scale(const uint8_t *s, uint32_t j)
{
    if (j < 4)
        return make_uint2(s[j] & 63, s[j + 4] & 63);
    return make_uint2((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4);
}
__device__ void k_head(const uint8_t *b, uint8_t *heads, uint32_t place)
{
    *reinterpret_cast<uint32_t *>(heads + 4 * place) = word_at(b);
    for (uint32_t j = 0; j < 8; j += 2) {
        uint2 s = k_scale(b + 4, j), t = k_scale(b + 4, j + 1);
        uint32_t bits = s.x | t.x << 6 | s.y << 12 | t.y << 18;

        *reinterpret_cast<uint16_t *>(heads + 64 + 16 * j + 2 * place) = (uint16_t)bits;
        heads[192 + 8 * j + place] = (uint8_t)(bits >> 16);
    }
}
__device__ uint32_t group_head(const uint8_t *b)
{
    uint32_t head = word_at(b);
    float s = head >> 24 ? __uint_as_float(head << 16) : half_value(head & 0xffff);

    return __float_as_uint(s) | (head >> 24 ? 256 : 0) | (head >> 16 & 255);
}

// The head of the block at b, of the row at `place` of the heads.
template <int W> __device__ void arrange_head(const uint8_t *b, uint8_t *heads, uint32_t place)
{
    if (W == EK_Q4_K || W == EK_Q5_K) {
        k_head(b, heads, place);
    } else if (W == EK_Q6_K) {
        heads[2 * place] = b[208], heads[2 * place + 1] = b[209];
        for (uint32_t i = 0; i < 16; i++)
            heads[32 + i / 2 * 32 + 2 * place + i % 2] = b[192 + i] ^ 128;
    } else if (W >= EK_G4_32 && W < EK_B8_32) {
        *reinterpret_cast<uint32_t *>(heads + 4 * place) = group_head(b);
    } else {
        const uint32_t n = Blocks<W>::heads / 16;
        for (uint32_t i = 0; i < n; i++)
            heads[n * place + i] = b[i];
    }
}

// Chunk t of sub-block j of the block at b: columns 2 i + 1 are 16 bits above columns 2 i.
template <int W>
__device__ void arrange_chunk(const uint8_t *b, uint32_t j, uint32_t t, uint8_t *sub,
                              uint32_t place)
{
    using B = Blocks<W>;
    uint32_t q[2] = {}, h = 0;

    for (uint32_t e = 0; e < 8; e++) {
        uint32_t col = e < 4 ? chunk_low<B::split>(t) + e : chunk_high<B::split>(t) + e - 4;
        uint32_t u = integer<W>(b, 32 * j + col), i = e / 2, odd = e % 2;

        if (B::low == 8)
            q[e / 4] |= u << (8 * (i % 2) + 16 * odd);
        else
            q[0] |= (u & 15) << (4 * pair_place(i) + 16 * odd);
        if (B::high == 1)
            h |= u >> 4 << (i + 4 * odd);
        if (B::high == 2)
            h |= u >> 4 << (2 * i + 8 * odd);
    }
    if (B::low == 8)
        *reinterpret_cast<uint2 *>(sub + 8 * place) = make_uint2(q[0], q[1]);
    else
        *reinterpret_cast<uint32_t *>(sub + 4 * place) = q[0];
    if (B::high == 1)
        sub[256 + place] = (uint8_t)h;
    if (B::high == 2)
        *reinterpret_cast<uint16_t *>(sub + 256 + 2 * place) = (uint16_t)h;
}

__device__ const uint8_t nothing[256] = {};

// A thread takes a chunk of a row; the first one of a block its head too. Blocks along y: rows.
template <int W>
__global__ void arrange_k(const uint8_t *src, size_t row_bytes, uint32_t rows, uint32_t cols,
                          uint8_t *out)
{
    using B = Blocks<W>;
    uint32_t c = blockIdx.x * blockDim.x + threadIdx.x, bands = (rows + 15) / 16;

    pdl_wait(); // and no pdl_next: kernels behind read weights before their own wait
    if (c >= cols / 8)
        return;
    for (uint32_t row = blockIdx.y; row < 16 * bands; row += gridDim.y) {
        uint32_t block = c / (B::cols / 8), in = c % (B::cols / 8), r = row % 16;
        uint8_t *tile = out + (size_t)(row - r) * row_bytes + block * (size_t)B::bytes;
        uint8_t *sub = tile + B::heads + in / 4 * B::sub;
        const uint8_t *b = src + row * row_bytes + block * (row_bytes / (cols / B::cols));
        uint32_t place = 2 * (4 * (r % 8) + in % 4) + r / 8;

        if (row >= rows)
            b = nothing;
        arrange_chunk<W>(b, in / 4, in % 4, sub, place);
        if (in == 0)
            arrange_head<W>(b, tile, 2 * (r % 8) + r / 8);
    }
}

template <int W>
static cudaError_t arrange(const struct ek_cu_queue *q, const void *src, size_t row_bytes,
                           uint32_t rows, uint32_t cols, void *out)
{
    uint32_t all = (rows + 15) / 16 * 16;

    return launch(q, arrange_k<W>, dim3(div_up(cols / 8, 128), all < 65535 ? all : 65535), 128, 0,
                  (const uint8_t *)src, row_bytes, rows, cols, (uint8_t *)out);
}

extern "C" cudaError_t ek_cu_arrange(const struct ek_cu_queue *q, enum ek_dtype w, const void *src,
                                     size_t row_bytes, uint32_t rows, uint32_t cols, void *out)
{
    EK_DISPATCH_BLOCKS(w, return arrange<W>(q, src, row_bytes, rows, cols, out));
}
