// SPDX-License-Identifier: Apache-2.0
// How kernels of one token and weights in blocks go over the bands that fall to them: the warps of
// a block read their items straight to registers, the next ahead of the one that is multiplied, and
// wait for each other only once, at the end.
#ifndef EK_CUDA_ONE_BANDS_CUH
#define EK_CUDA_ONE_BANDS_CUH

#include "kernels/cuda/bands.cuh"
#include "kernels/cuda/digits.cuh"
#include "kernels/cuda/split.cuh"

#define ONE_BLOCKS_WARPS   20 // as many as have registers for so many loads each, twice
#define ONE_BLOCKS_THREADS (32 * ONE_BLOCKS_WARPS)
#define ONE_BLOCKS_LOADS   4
#define ONE_BLOCKS_SHARED  (96 * 1024) // of a block, so that the usual split has room for it

using OneShare = BandShare<ONE_BLOCKS_WARPS>;
template <int W> using OneAhead = Weights<W, ONE_BLOCKS_LOADS>;

// An item: sub-blocks of a row of `end`, from `sub` on; of the token those from `token` on, times
// `by` where the source is weighted.
struct OnePiece {
    const uint8_t *row;
    uint32_t sub, end, token;
    float by;
};

// What a warp reads: a band of the block's and an item of it. SOURCE: open(band) goes to a band,
// piece(in) is what its item `in` is.
template <int W, typename SOURCE> struct OneCursor {
    SOURCE source;
    OnePiece piece;
    uint32_t band, in;

    __device__ __forceinline__ OneCursor(const SOURCE &s, const OneShare &share, uint32_t item)
        : source(s), band(item / share.per), in(item % share.per)
    {
    }
    __device__ __forceinline__ void ask(OneAhead<W> &to, bool open, bool there)
    {
        if (open && there)
            source.open(band);
        piece = source.piece(in);
        to.ask(piece.row, piece.sub, there ? piece.end : 0);
    }
    // To the next item; true: of another band.
    __device__ __forceinline__ bool next(const OneShare &share)
    {
        if (++in < share.per)
            return false;
        in = 0, band++;
        return true;
    }
};

// Sums of a band by a warp: [8 and 8 rows] in the slot of the warp's and the band's number, which
// no other two add up to, as both grow along the items.
template <int W>
__device__ __forceinline__ void put_sums(float (&sum)[2], float *sums, uint32_t slot)
{
    sum[0] = Lane<W>::join(sum[0]), sum[1] = Lane<W>::join(sum[1]);
    if (Lane<W>::chunk() == 0 && Lane<W>::sub() == 0) {
        sums[16 * slot + Lane<W>::row()] = sum[0];
        sums[16 * slot + Lane<W>::row() + 8] = sum[1];
    }
    sum[0] = sum[1] = 0;
}
// Of a row of a band, over all warps.
__device__ __forceinline__ float sum_of(const OneShare &s, const float *sums, uint32_t band,
                                        uint32_t row)
{
    uint32_t last = s.warp_of((band + 1) * s.per - 1);
    float v = 0;

    for (uint32_t w = s.warp_of(band * s.per); w <= last; w++)
        v += sums[16 * (w + band) + row];
    return v;
}
static __host__ __device__ __forceinline__ uint32_t sum_bytes(uint32_t bands)
{
    return 64 * (bands + ONE_BLOCKS_WARPS);
}

// Items [item, end) of the warp, the first of which c has asked for; n_subs: of the token.
template <int W, typename T, typename SOURCE>
__device__ __forceinline__ void sum_bands(OneCursor<W, SOURCE> &c, OneAhead<W> &next,
                                          const OneShare &s, const OneToken<W> &x, uint32_t n_subs,
                                          uint32_t item, uint32_t end, float *sums)
{
    float sum[2] = {};

    for (; item < end; item++) {
        const OneAhead<W> now = next;
        const OnePiece piece = c.piece;
        uint32_t slot = threadIdx.x / 32 + c.band;
        bool more = item + 1 < end, last = c.next(s);

        c.ask(next, last, more);
        if (SOURCE::weighted) {
            float v[2] = {};

            now.template multiply<T>(x, piece.token, n_subs, v);
            sum[0] = fmaf(piece.by, v[0], sum[0]), sum[1] = fmaf(piece.by, v[1], sum[1]);
        } else {
            now.template multiply<T>(x, piece.token, n_subs, sum);
        }
        if (last || !more)
            put_sums<W>(sum, sums, slot);
    }
}

#endif
