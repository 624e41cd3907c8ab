// SPDX-License-Identifier: Apache-2.0
// One token and weights in blocks, on their way to each other: weights straight to registers, some
// loads ahead; the token in shared memory as two digits of 8 bits an element, with a power of two
// for each 32 of them, so that its products with the weights' integers are sums of whole numbers,
// four at an instruction. Elements within 2^7 of the largest of their 32 are exact in BF16, 2^4 in
// F16, others to 2^-15 of it. E4M3 weights have no integers: their token stays as it is.
#ifndef EK_CUDA_DIGITS_CUH
#define EK_CUDA_DIGITS_CUH

#include "kernels/cuda/ask.cuh"
#include "kernels/cuda/blocks.cuh"

// ---- heads of rows g and g + 8: what a block has once, and what a load of its sub-blocks has
template <int BYTES> struct HeadAhead;
template <> struct HeadAhead<2> {
    uint32_t v;
    __device__ __forceinline__ void ask(const uint8_t *heads, uint32_t g, uint32_t, uint32_t on)
    {
        v = ask_u32(heads + 4 * g, on);
    }
    __device__ __forceinline__ void words(uint32_t w[2]) const
    {
        w[0] = v & 0xffff, w[1] = v >> 16;
    }
};
template <> struct HeadAhead<4> {
    uint2 v;
    __device__ __forceinline__ void ask(const uint8_t *heads, uint32_t g, uint32_t, uint32_t on)
    {
        v = ask_u64(heads + 8 * g, on);
    }
    __device__ __forceinline__ void words(uint32_t w[2]) const
    {
        w[0] = v.x, w[1] = v.y;
    }
};
template <> struct HeadAhead<16> {
    uint32_t low;
    uint16_t high;
    __device__ __forceinline__ void ask(const uint8_t *heads, uint32_t g, uint32_t j, uint32_t on)
    {
        low = ask_u32(heads + (64 + j / 2 * 32 + 4 * g), on);
        high = ask_u16(heads + (192 + j / 2 * 16 + 2 * g), on);
    }
    __device__ __forceinline__ void words(uint2 dm, uint2 w[2]) const
    {
        w[0] = make_uint2(dm.x, __byte_perm(low, high, 0x6410));
        w[1] = make_uint2(dm.y, __byte_perm(low, high, 0x6532));
    }
};
template <> struct HeadAhead<18> {
    uint32_t s;
    __device__ __forceinline__ void ask(const uint8_t *heads, uint32_t g, uint32_t j, uint32_t on)
    {
        s = ask_u32(heads + (32 + 32 * j + 4 * g), on);
    }
    __device__ __forceinline__ void words(uint2 d, uint2 w[2]) const
    {
        w[0] = make_uint2(d.x & 0xffff, s), w[1] = make_uint2(d.x >> 16, s >> 16);
    }
};

// ---- the token: for each chunk of 8 columns its digits, upper ones (signed) of both words, then
// lower ones; and what the digits are worth, with the products of what integers are above their
// value, or the sum of the elements
__device__ __forceinline__ int dot_upper(uint32_t w, uint32_t x, int c)
{
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(c) : "r"(w), "r"(x));
    return c;
}
__device__ __forceinline__ int dot_lower(uint32_t w, uint32_t x, int c)
{
    return (int)__dp4a(w, x, (uint32_t)c);
}
template <int W> struct OneToken {
    using B = Blocks<W>;
    static const bool floats = W >= EK_B8_32;
    static const uint32_t worth = floats ? 0 : B::split ? 16 : 8; // bytes of a chunk
    uint32_t digits, worths;                                      // in shared memory

    static __host__ __device__ uint32_t bytes(uint32_t subs)
    {
        return subs * 4 * (16 + worth);
    }
    __device__ __forceinline__ OneToken(uint32_t at, uint32_t subs)
        : digits(at), worths(at + subs * 64)
    {
    }
    // Of n sub-blocks.
    template <typename T> __device__ __forceinline__ void make(const T *x, uint32_t n) const
    {
        if (!floats)
            split(x, n);
        for (uint32_t c = threadIdx.x; floats && c < 4 * n; c += blockDim.x)
            put(c, *reinterpret_cast<const uint4 *>(x + 8 * c));
    }

  private:
    __device__ __forceinline__ void put(uint32_t c, uint4 v) const
    {
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(digits + 16 * c), "r"(v.x),
                     "r"(v.y), "r"(v.z), "r"(v.w));
    }
    // AHEAD chunks a thread at a time.
    template <typename T> __device__ __forceinline__ void split(const T *x, uint32_t n) const
    {
        const uint32_t AHEAD = 3;
        uint32_t chunks = 4 * n, lane = threadIdx.x % 32;

        for (uint32_t base = threadIdx.x - lane; base < chunks; base += AHEAD * blockDim.x) {
            float v[AHEAD][8];

#pragma unroll
            for (uint32_t k = 0; k < AHEAD; k++) {
                uint32_t c = min(base + k * blockDim.x + lane, chunks - 1), first = c / 4 * 32;

                load4(x + first + chunk_low<B::split>(c % 4), v[k]);
                load4(x + first + chunk_high<B::split>(c % 4), v[k] + 4);
            }
#pragma unroll
            for (uint32_t k = 0; k < AHEAD; k++) {
                uint32_t c = base + k * blockDim.x + lane, most = 0;

                if (c - lane >= chunks)
                    break;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    most = max(most, __float_as_uint(v[k][i]) & 0x7fffffffu);
                most = max(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = max(most, __shfl_xor_sync(0xffffffffu, most, 2));
                if (c < chunks)
                    put_digits(c, v[k], most >> 23);
            }
        }
    }
    __device__ __forceinline__ void put_digits(uint32_t c, const float v[8],
                                               uint32_t exponent) const
    {
        uint32_t e = max(exponent, 15u), q[8], low[2], up[2];
        float by = __uint_as_float((268 - e) << 23);
        float unit = __uint_as_float(e == 255 ? 0x7fc00000u : (e - 14) << 23);
        int sum[2];

#pragma unroll
        for (int i = 0; i < 8; i++)
            q[i] = __float_as_uint(fmaf(v[i], by, 12582912.0f)); // 1.5 2^23
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t even = __byte_perm(q[4 * k], q[4 * k + 2], 0x5140);
            uint32_t odd = __byte_perm(q[4 * k + 1], q[4 * k + 3], 0x5140);
            low[k] = __byte_perm(even, odd, 0x5410), up[k] = __byte_perm(even, odd, 0x7632);
            sum[k] = dot_lower(0x01010101u, low[k], 256 * dot_upper(0x01010101u, up[k], 0));
        }
        put(c, make_uint4(up[0], up[1], low[0], low[1]));
        int a = B::split ? sum[0] : sum[0] + sum[1], b = sum[1];
        uint32_t w[4] = {__float_as_uint(unit), (uint32_t)(-B::zero * a), (uint32_t)(-B::zero * b)};
        if (B::affine)
            w[1] = __float_as_uint(unit * (float)a);
        if (B::split)
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %3};" ::"r"(worths + 16 * c),
                         "r"(w[0]), "r"(w[1]), "r"(w[2]));
        else
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(worths + 8 * c), "r"(w[0]),
                         "r"(w[1]));
    }
};

// ---- weights under way: U loads of a warp, of rows g and g + 8 of a band
template <int W> struct Lane { // which of a load's a lane takes
    using B = Blocks<W>;
    static const int chunks = B::low == 8 ? 1 : 2;
    static const uint32_t subs = chunks; // sub-blocks of a load

    static __device__ __forceinline__ uint32_t sub()
    {
        return chunks == 2 ? threadIdx.x % 32 / 16 : 0;
    }
    static __device__ __forceinline__ uint32_t row()
    {
        return chunks == 2 ? threadIdx.x % 16 / 2 : threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ uint32_t chunk() // the first
    {
        return chunks == 2 ? threadIdx.x % 2 * 2 : threadIdx.x % 4;
    }
    // Sums of a row's lanes, in all of them.
    static __device__ __forceinline__ float join(float v)
    {
        v += __shfl_xor_sync(0xffffffffu, v, 1);
        return v + __shfl_xor_sync(0xffffffffu, v, chunks == 2 ? 16 : 2);
    }
};
// The integers of a chunk: bytes of its first four columns, and of its last.
template <int W> __device__ __forceinline__ void bytes_of(const Chunk &c, uint32_t v[2])
{
    using B = Blocks<W>;
    const uint32_t spread = 1u << 4 | 1u << 11 | 1u << 16 | 1u << 23;

    v[0] = B::low == 8 ? c.q : c.q & 0x0f0f0f0fu;
    v[1] = B::low == 8 ? c.b : c.q >> 4 & 0x0f0f0f0fu;
    if (B::high == 1) {
        v[0] |= (c.h & 0x33) * spread & 0x10101010u;
        v[1] |= (c.h & 0xcc) * (spread / 4) & 0x10101010u;
    }
    if (B::high == 2) {
        uint32_t h = __byte_perm(c.h, 0, 0x4140);
        v[0] |= (h << 4 & 0x00300030u) | (h << 10 & 0x30003000u);
        v[1] |= (h & 0x00300030u) | (h << 6 & 0x30003000u);
    }
}
// The E4M3 numbers of the two lower bytes.
__device__ __forceinline__ float2 e4m3_pair(uint32_t v)
{
#if __CUDA_ARCH__ >= 890
    uint32_t r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((uint16_t)v));
    return unpack2<f16>(r);
#else
    return make_float2(e4m3(v & 255), e4m3(v >> 8 & 255));
#endif
}
template <int W, int U> struct Weights {
    using B = Blocks<W>;
    using L = Lane<W>;
    static const uint32_t subs = U * L::subs; // of all loads
    static const uint32_t per = B::cols / 32; // of a block
    static const uint32_t head_bytes = B::heads / 16;
    static const bool once = head_bytes > 4; // blocks of 256
    static const uint32_t blocks = once && subs > per ? subs / per : 1;
    static_assert(per >= subs ? per % subs == 0 : subs % per == 0, "loads begin with a block");
    uint4 q[U];
    uint32_t h[U][B::high ? B::high : 1];
    HeadAhead<head_bytes> head[U];
    uint2 block[blocks];

    // From sub-block `first` of a band on, those before `end`.
    __device__ __forceinline__ void ask(const uint8_t *band, uint32_t first, uint32_t end)
    {
        uint32_t g = L::row(), at = 4 * g + L::chunk(), mine = first + L::sub();
        const uint8_t *b = band + first / per * B::bytes;

#pragma unroll
        for (uint32_t u = 0; u < U; u++) {
            const uint32_t i = u * L::subs; // all before the lane's
            const uint8_t *tile = per >= subs      ? b
                                  : per >= L::subs ? b + i / per * B::bytes
                                                   : b + (i / per + L::sub() / per) * B::bytes;
            uint32_t j = per >= subs      ? mine % per + i
                         : per >= L::subs ? i % per + L::sub()
                                          : L::sub() % per;
            const uint8_t *sub = tile + B::heads + j * B::sub;
            uint32_t there = mine + i < end;

            q[u] = ask_u128(sub + (B::low == 8 ? 16 : 8) * at, there);
            if (B::high == 1)
                h[u][0] = ask_u32(sub + 256 + 2 * at, there);
            if (B::high == 2) {
                uint2 v = ask_u64(sub + 256 + 4 * at, there);
                h[u][0] = v.x, h[u][B::high / 2] = v.y;
            }
            head[u].ask(tile, g, j, there);
            if (once && i % per == 0)
                block[i / per] = B::split ? make_uint2(ask_u32(tile + 4 * g, there), 0)
                                          : ask_u64(tile + 8 * g, there);
        }
    }
    __device__ __forceinline__ Chunk chunk(uint32_t u, int r, int k) const
    {
        Chunk c = {};

        if (B::low == 8) {
            c.q = r ? q[u].z : q[u].x, c.b = r ? q[u].w : q[u].y;
            return c;
        }
        c.q = k ? (r ? q[u].w : q[u].z) : (r ? q[u].y : q[u].x);
        if (B::high == 1)
            c.h = h[u][0] >> (16 * k + 8 * r) & 255;
        if (B::high == 2)
            c.h = h[u][k * (B::high / 2)] >> 16 * r & 0xffff;
        return c;
    }
    __device__ __forceinline__ void scales(uint32_t u, Scale s[2]) const
    {
        typename B::Words w[2];

        if constexpr (once)
            head[u].words(block[u * L::subs / per], w);
        else
            head[u].words(w);
        s[0] = B::scale(w[0], L::sub()), s[1] = B::scale(w[1], L::sub());
    }
    // The token's sub-blocks from `first` on, of n.
    template <typename T>
    __device__ __forceinline__ void multiply(const OneToken<W> &x, uint32_t first, uint32_t n,
                                             float sum[2]) const
    {
#pragma unroll
        for (uint32_t u = 0; u < U; u++) {
            uint32_t c = 4 * min(first + u * L::subs + L::sub(), n - 1) + L::chunk();
            uint4 d[L::chunks];
            Scale s[2];

#pragma unroll
            for (int k = 0; k < L::chunks; k++)
                d[k] = read_as<uint4>(SharedAt{x.digits + 16 * (c + k)});
            scales(u, s);
            if (OneToken<W>::floats)
                floats<T>(u, d[0], s, sum);
            else if (B::split)
                halves(x, u, c, d, s, sum);
            else
                whole(x, u, c, d, s, sum);
        }
    }

  private:
    template <typename T>
    __device__ __forceinline__ void floats(uint32_t u, uint4 d, const Scale s[2],
                                           float sum[2]) const
    {
        const float2 x[4] = {unpack2<T>(d.x), unpack2<T>(d.y), unpack2<T>(d.z), unpack2<T>(d.w)};

#pragma unroll
        for (int r = 0; r < 2; r++) {
            Chunk c = chunk(u, r, 0);
            float v = 0;

#pragma unroll
            for (int k = 0; k < 2; k++) { // of which columns 0, 2, then 1, 3 are neighbours
                float2 even = e4m3_pair(k ? c.b : c.q), odd = e4m3_pair((k ? c.b : c.q) >> 16);
                v = fmaf(even.x, x[2 * k].x, fmaf(even.y, x[2 * k + 1].x, v));
                v = fmaf(odd.x, x[2 * k].y, fmaf(odd.y, x[2 * k + 1].y, v));
            }
            sum[r] = fmaf(s[r].s, v, sum[r]);
        }
    }
    __device__ __forceinline__ void whole(const OneToken<W> &x, uint32_t u, uint32_t c,
                                          const uint4 (&d)[L::chunks], const Scale s[2],
                                          float sum[2]) const
    {
        uint2 w = read_as<uint2>(SharedAt{x.worths + 8 * c});
        uint2 more = L::chunks == 2 ? read_as<uint2>(SharedAt{x.worths + 8 * c + 8}) : w;
        float unit = __uint_as_float(w.x);

#pragma unroll
        for (int r = 0; r < 2; r++) {
            int up = 0, low = B::affine ? 0 : (int)w.y + (L::chunks == 2 ? (int)more.y : 0);

#pragma unroll
            for (int k = 0; k < L::chunks; k++) {
                uint32_t v[2];

                bytes_of<W>(chunk(u, r, k), v);
                up = dot_upper(v[0], d[k].x, up), up = dot_upper(v[1], d[k].y, up);
                low = dot_lower(v[0], d[k].z, low), low = dot_lower(v[1], d[k].w, low);
            }
            sum[r] = fmaf(s[r].s * unit, (float)(256 * up + low), sum[r]);
            if (B::affine)
                sum[r] =
                    fmaf(s[r].o,
                         __uint_as_float(w.y) + (L::chunks == 2 ? __uint_as_float(more.y) : 0.0f),
                         sum[r]);
        }
    }
    __device__ __forceinline__ void halves(const OneToken<W> &x, uint32_t u, uint32_t c,
                                           const uint4 (&d)[L::chunks], const Scale s[2],
                                           float sum[2]) const
    {
        uint4 w[2] = {read_as<uint4>(SharedAt{x.worths + 16 * c}),
                      read_as<uint4>(SharedAt{x.worths + 16 * c + 16})};
        float unit = __uint_as_float(w[0].x);

#pragma unroll
        for (int r = 0; r < 2; r++) {
            int up[2] = {}, low[2] = {(int)(w[0].y + w[1].y), (int)(w[0].z + w[1].z)};

#pragma unroll
            for (int k = 0; k < L::chunks; k++) {
                uint32_t v[2];

                bytes_of<W>(chunk(u, r, k), v);
                up[0] = dot_upper(v[0], d[k].x, up[0]), up[1] = dot_upper(v[1], d[k].y, up[1]);
                low[0] = dot_lower(v[0], d[k].z, low[0]), low[1] = dot_lower(v[1], d[k].w, low[1]);
            }
            sum[r] = fmaf(s[r].s * unit, (float)(256 * up[0] + low[0]), sum[r]);
            sum[r] = fmaf(s[r].t * unit, (float)(256 * up[1] + low[1]), sum[r]);
        }
    }
};

#endif
