// SPDX-License-Identifier: Apache-2.0
// Weights in blocks, in the form that they have on the device: arrange.cu makes it of the
// checkpoint's when a matrix is ready, in place and of the same size. 16 rows are a band, behind
// each other; a band is a row of tiles, one for each block of columns:
//
//     heads       of 16 rows: scales and what else a block has once
//     sub-blocks  of 32 columns each: low bits, 64 chunks of 8 columns, then high bits, 64 chunks
//
// Chunks lie as tensor cores take them: lane 4 g + t of a warp needs chunk t of rows g and g + 8,
// which are neighbours; heads of rows g and g + 8 are neighbours too. In a chunk the columns 2 i
// and 2 i + 1 are 16 bits apart in a word, so that a mask makes pairs of 16-bit numbers, and those
// of 0, 2, 1, 3 and of 4, 6, 5, 7 four bytes.
#ifndef EK_CUDA_BLOCKS_CUH
#define EK_CUDA_BLOCKS_CUH

#include "kernels/cuda/common.cuh"

// Where a row of weights is: plain types, its first byte; blocks, its band and its row there.
struct WeightRow {
    const uint8_t *at;
    uint32_t r;

    __device__ __forceinline__ WeightRow(const uint8_t *p = NULL, uint32_t row = 0) : at(p), r(row)
    {
    }
};
// Row `row` of a matrix at data, from the column whose bytes in a row begin at `skip` (of a block).
template <int W>
__device__ __forceinline__ WeightRow row_of(const uint8_t *data, size_t row, size_t row_bytes,
                                            size_t skip = 0)
{
    if (W < EK_Q4_0)
        return WeightRow(data + row * row_bytes + skip);
    return WeightRow(data + row / 16 * 16 * row_bytes + 16 * skip, (uint32_t)row % 16);
}

__device__ __forceinline__ float half_value(uint32_t bits)
{
    return __half2float(__ushort_as_half((unsigned short)bits));
}
// (v & mask) | more, as one instruction.
template <uint32_t MASK> __device__ __forceinline__ uint32_t mask_or(uint32_t v, uint32_t more)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "n"(MASK), "r"(more));
    return r;
}
// by times the lower bits of u, as a float: by the exponent of 2^23, as conversions are slow. Exact
// but for one rounding.
template <uint32_t MASK> __device__ __forceinline__ float times_bits(uint32_t u, float by)
{
    return fmaf(__uint_as_float(mask_or<MASK>(u, 0x4b000000u)), by, -8388608.0f * by);
}
__device__ __forceinline__ float small_float(uint32_t u)
{
    return __uint_as_float(0x4b000000u | u) - 8388608.0f;
}

// What is read below lies in memory, or in shared memory: an address there.
template <typename V> __device__ __forceinline__ V read_as(const uint8_t *p)
{
    return *reinterpret_cast<const V *>(p);
}
struct SharedAt {
    uint32_t at;

    __device__ __forceinline__ SharedAt operator+(uint32_t by) const
    {
        return {at + by};
    }
};
template <typename V> __device__ __forceinline__ V read_as(SharedAt p);
template <> __device__ __forceinline__ uint16_t read_as<uint16_t>(SharedAt p)
{
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(p.at));
    return v;
}
template <> __device__ __forceinline__ uint32_t read_as<uint32_t>(SharedAt p)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(p.at));
    return v;
}
template <> __device__ __forceinline__ uint2 read_as<uint2>(SharedAt p)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(p.at));
    return v;
}
template <> __device__ __forceinline__ uint4 read_as<uint4>(SharedAt p)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(p.at));
    return v;
}

// ---- heads. Words: one row's, of sub-block j; place: 2 g + 1 for row g + 8. load2: of rows g and
// g + 8, in shared memory. Scale: of a sub-block, weight = s (u - zero) + o with u its integer; t
// takes the place of s in the upper half of the sub-block.
struct Scale {
    float s, t, o;
};
template <int BYTES> struct Head;
template <> struct Head<2> {
    using Words = uint32_t;
    static __device__ __forceinline__ Words load(const uint8_t *heads, uint32_t place, uint32_t)
    {
        return read_as<uint16_t>(heads + 2 * place);
    }
    static __device__ __forceinline__ void load2(SharedAt heads, uint32_t g, uint32_t, Words w[2])
    {
        uint32_t both = read_as<uint32_t>(heads + 4 * g);
        w[0] = both & 0xffff, w[1] = both >> 16;
    }
};
template <> struct Head<4> {
    using Words = uint32_t;
    static __device__ __forceinline__ Words load(const uint8_t *heads, uint32_t place, uint32_t)
    {
        return read_as<uint32_t>(heads + 4 * place);
    }
    static __device__ __forceinline__ void load2(SharedAt heads, uint32_t g, uint32_t, Words w[2])
    {
        uint2 both = read_as<uint2>(heads + 8 * g);
        w[0] = both.x, w[1] = both.y;
    }
};
// d and dmin; then for each two sub-blocks 24 bits, scales and minima of 6: 16 of them, and in the
// end the other 8.
template <> struct Head<16> {
    using Words = uint2;
    static __device__ __forceinline__ Words load(const uint8_t *heads, uint32_t place, uint32_t j)
    {
        uint32_t low = read_as<uint16_t>(heads + 64 + j / 2 * 32 + 2 * place);
        return make_uint2(read_as<uint32_t>(heads + 4 * place),
                          low | (uint32_t)heads[192 + j / 2 * 16 + place] << 16);
    }
    static __device__ __forceinline__ void load2(SharedAt heads, uint32_t g, uint32_t j, Words w[2])
    {
        uint2 dm = read_as<uint2>(heads + 8 * g);
        uint32_t low = read_as<uint32_t>(heads + (64 + j / 2 * 32 + 4 * g));
        uint32_t high = read_as<uint16_t>(heads + (192 + j / 2 * 16 + 2 * g));
        w[0] = make_uint2(dm.x, __byte_perm(low, high, 0x6410));
        w[1] = make_uint2(dm.y, __byte_perm(low, high, 0x6532));
    }
};
// d, then a byte of scale (plus 128) for each half of a sub-block.
template <> struct Head<18> {
    using Words = uint2;
    static __device__ __forceinline__ Words load(const uint8_t *heads, uint32_t place, uint32_t j)
    {
        return make_uint2(read_as<uint16_t>(heads + 2 * place),
                          read_as<uint16_t>(heads + 32 + 32 * j + 2 * place));
    }
    static __device__ __forceinline__ void load2(SharedAt heads, uint32_t g, uint32_t j, Words w[2])
    {
        uint32_t d = read_as<uint32_t>(heads + 4 * g);
        uint32_t s = read_as<uint32_t>(heads + (32 + 32 * j + 4 * g));
        w[0] = make_uint2(d & 0xffff, s), w[1] = make_uint2(d >> 16, s >> 16);
    }
};

// ---- types. cols: of a block; low, high: bytes of a chunk; head: of a row and block. zero: what
// all integers are above their value. affine: weights have an offset; split: t is not s.
template <int COLS, int LOW, int HIGH, int HEAD, int ZERO, bool AFFINE, bool SPLIT>
struct BlockShape : Head<HEAD> {
    static const int cols = COLS, low = LOW, high = HIGH, zero = ZERO;
    static const bool affine = AFFINE, split = SPLIT;
    static const uint32_t heads = 16 * HEAD, sub = 64 * (LOW + HIGH);
    static const uint32_t bytes = heads + COLS / 32 * sub; // of a tile
};
struct ScaleD {
    static __device__ __forceinline__ Scale scale(uint32_t d, uint32_t)
    {
        float s = half_value(d);
        return {s, s, 0};
    }
};
struct ScaleDM {
    static __device__ __forceinline__ Scale scale(uint32_t dm, uint32_t)
    {
        float s = half_value(dm & 0xffff);
        return {s, s, half_value(dm >> 16)};
    }
};
struct ScaleK {
    static __device__ __forceinline__ Scale scale(const uint2 &w, uint32_t j)
    {
        float s = times_bits<63>(w.y >> 6 * (j % 2), half_value(w.x & 0xffff));

        return {s, s, times_bits<63>(w.y >> (12 + 6 * (j % 2)), -half_value(w.x >> 16))};
    }
};
struct ScaleQ6 {
    static __device__ __forceinline__ float of(uint32_t u)
    {
        return __uint_as_float(u) - (8388608.0f + 128);
    }
    static __device__ __forceinline__ Scale scale(const uint2 &w, uint32_t)
    {
        float d = half_value(w.x);
        return {d * of(__byte_perm(w.y, 0x4b000000u, 0x7440)),
                d * of(__byte_perm(w.y, 0x4b000000u, 0x7441)), 0};
    }
};
// Groups of integers: the scale's upper bits as a float, all that an F16 or a BF16 has; a bit that
// says which of them it was (1: BF16); the zero.
struct ScaleGroup {
    static __device__ __forceinline__ float of(uint32_t head)
    {
        return __uint_as_float(head & 0xfffffe00u);
    }
    static __device__ __forceinline__ Scale scale(uint32_t head, uint32_t)
    {
        float s = of(head);
        return {s, s, times_bits<255>(head, -s)};
    }
};
struct ScaleFloat {
    static __device__ __forceinline__ Scale scale(uint32_t head, uint32_t)
    {
        float s = __uint_as_float(head);
        return {s, s, 0};
    }
};

template <int W> struct Blocks;
template <> struct Blocks<EK_Q4_0> : BlockShape<32, 4, 0, 2, 8, false, false>, ScaleD {
};
template <> struct Blocks<EK_Q4_1> : BlockShape<32, 4, 0, 4, 0, true, false>, ScaleDM {
};
template <> struct Blocks<EK_Q5_0> : BlockShape<32, 4, 1, 2, 16, false, false>, ScaleD {
};
template <> struct Blocks<EK_Q5_1> : BlockShape<32, 4, 1, 4, 0, true, false>, ScaleDM {
};
template <> struct Blocks<EK_Q8_0> : BlockShape<32, 8, 0, 2, 128, false, false>, ScaleD {
};
template <> struct Blocks<EK_Q4_K> : BlockShape<256, 4, 0, 16, 0, true, false>, ScaleK {
};
template <> struct Blocks<EK_Q5_K> : BlockShape<256, 4, 1, 16, 0, true, false>, ScaleK {
};
template <> struct Blocks<EK_Q6_K> : BlockShape<256, 4, 2, 18, 32, false, true>, ScaleQ6 {
};
template <int N> struct BlocksG4 : BlockShape<N, 4, 0, 4, 0, true, false>, ScaleGroup {
};
template <int N> struct BlocksG8 : BlockShape<N, 8, 0, 4, 0, true, false>, ScaleGroup {
};
template <int N> struct BlocksB8 : BlockShape<N, 8, 0, 4, 0, false, false>, ScaleFloat {
};
template <> struct Blocks<EK_G4_32> : BlocksG4<32> {
};
template <> struct Blocks<EK_G4_64> : BlocksG4<64> {
};
template <> struct Blocks<EK_G4_128> : BlocksG4<128> {
};
template <> struct Blocks<EK_G8_32> : BlocksG8<32> {
};
template <> struct Blocks<EK_G8_64> : BlocksG8<64> {
};
template <> struct Blocks<EK_G8_128> : BlocksG8<128> {
};
template <> struct Blocks<EK_B8_32> : BlocksB8<32> {
};
template <> struct Blocks<EK_B8_64> : BlocksB8<64> {
};
template <> struct Blocks<EK_B8_128> : BlocksB8<128> {
};

// ---- chunks
// Bits of a chunk: 8 columns of a row. q: a word of nibbles, or two of bytes (b: columns 4..7); h:
// the fifth bits of columns 0, 2, 4, 6, then 1, 3, 5, 7; or two more bits in the same order.
struct Chunk {
    uint32_t q, b, h;
};
// Its columns in the sub-block: low + 0..3 and high + 0..3. Halves of a sub-block that have their
// own scales are products of their own, so a chunk has 4 columns of each.
template <bool SPLIT> __host__ __device__ __forceinline__ uint32_t chunk_low(uint32_t t)
{
    return SPLIT ? 4 * t : 8 * t;
}
template <bool SPLIT> __host__ __device__ __forceinline__ uint32_t chunk_high(uint32_t t)
{
    return SPLIT ? 4 * t + 16 : 8 * t + 4;
}
// Chunk t of row r of the sub-block at `sub`.
template <int W>
__device__ __forceinline__ Chunk chunk_at(const uint8_t *sub, uint32_t r, uint32_t t)
{
    using B = Blocks<W>;
    uint32_t place = 2 * (4 * (r % 8) + t) + r / 8;
    Chunk c = {};

    if (B::low == 8) {
        uint2 v = read_as<uint2>(sub + 8 * place);
        c.q = v.x, c.b = v.y;
    } else {
        c.q = read_as<uint32_t>(sub + 4 * place);
    }
    if (B::high == 1)
        c.h = sub[256 + place];
    if (B::high == 2)
        c.h = read_as<uint16_t>(sub + 256 + 2 * place);
    return c;
}
// Of both rows g and g + 8.
template <int W, typename P>
__device__ __forceinline__ void chunks_at(P sub, uint32_t lane, Chunk c[2])
{
    using B = Blocks<W>;

    c[0] = c[1] = Chunk{};
    if (B::low == 8) {
        uint4 v = read_as<uint4>(sub + 16 * lane);
        c[0].q = v.x, c[0].b = v.y, c[1].q = v.z, c[1].b = v.w;
    } else {
        uint2 v = read_as<uint2>(sub + 8 * lane);
        c[0].q = v.x, c[1].q = v.y;
    }
    if (B::high == 1) {
        uint32_t h = read_as<uint16_t>(sub + 256 + 2 * lane);
        c[0].h = h & 255, c[1].h = h >> 8;
    }
    if (B::high == 2) {
        uint32_t h = read_as<uint32_t>(sub + 256 + 4 * lane);
        c[0].h = h & 0xffff, c[1].h = h >> 16;
    }
}
// Which of a word's nibbles column 2 i is.
__host__ __device__ __forceinline__ constexpr int pair_place(int i)
{
    return i % 2 * 2 + i / 2;
}
// Integers of columns 2 i (low half) and 2 i + 1 (high half).
template <int W> __device__ __forceinline__ uint32_t pair_bits(const Chunk &c, int i)
{
    using B = Blocks<W>;
    uint32_t v;

    if (B::low == 8)
        return (i < 2 ? c.q : c.b) >> 8 * (i % 2) & 0x00ff00ffu;
    v = c.q >> 4 * pair_place(i) & 0x000f000fu;
    if (B::high == 1) {
        uint32_t h = (c.h | c.h << 12) & 0x000f000fu;
        v |= h << 4 >> i & 0x00100010u;
    }
    if (B::high == 2) {
        uint32_t h = __byte_perm(c.h, 0, 0x4140);
        v |= h << 4 >> 2 * i & 0x00300030u;
    }
    return v;
}

// An E4M3 number: 2^120 times the float that has its exponent and mantissa; NaN for the all-ones.
__device__ __forceinline__ float e4m3(uint32_t b)
{
    float v = __uint_as_float((b & 127) << 20 | (b & 128) << 24) * 0x1p120f;

    return (b & 127) == 127 ? NAN : v;
}

// ---- as weights.cuh wants them
template <int W> struct WeightBlocks {
    using B = Blocks<W>;
    struct Raw {
        Chunk c;
        typename B::Words head;
    };
    static __device__ __forceinline__ uint32_t lo(uint32_t c)
    {
        return c / 4 * 32 + chunk_low<B::split>(c % 4);
    }
    static __device__ __forceinline__ uint32_t hi(uint32_t c)
    {
        return c / 4 * 32 + chunk_high<B::split>(c % 4);
    }
    static __device__ __forceinline__ Raw load(const WeightRow &row, uint32_t c)
    {
        const uint8_t *tile = row.at + c / (B::cols / 8) * (size_t)B::bytes;
        uint32_t j = c % (B::cols / 8) / 4, place = 2 * (row.r % 8) + row.r / 8;

        return {chunk_at<W>(tile + B::heads + j * B::sub, row.r, c % 4), B::load(tile, place, j)};
    }
    // A number of a group is rounded to the scale's type, as those who made it do.
    static __device__ __forceinline__ float value(const Raw &r, const Scale &s, uint32_t u, int i)
    {
        if (W >= EK_B8_32)
            return s.s * e4m3(u);
        if (W >= EK_G4_32) {
            float v = s.s * (small_float(u) - small_float(group_head(r) & 255));
            return group_head(r) >> 8 & 1 ? round_to<bf16>(v) : round_to<f16>(v);
        }
        return (i < 4 ? s.s : s.t) * (small_float(u) - B::zero) + s.o;
    }
    static __device__ __forceinline__ void decode(const Raw &r, uint32_t c, float v[8])
    {
        Scale s = B::scale(r.head, c % (B::cols / 8) / 4);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t pair = pair_bits<W>(r.c, i);
            v[2 * i] = value(r, s, pair & 0xffff, 2 * i);
            v[2 * i + 1] = value(r, s, pair >> 16, 2 * i + 1);
        }
    }

  private:
    static __device__ __forceinline__ uint32_t group_head(const Raw &r)
    {
        return *reinterpret_cast<const uint32_t *>(&r.head);
    }
};

#endif
