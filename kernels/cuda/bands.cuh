// SPDX-License-Identifier: Apache-2.0
// How products of weights in blocks are dealt to blocks of threads and their warps: by bands of 16
// rows (blocks.cuh).
#ifndef EK_CUDA_BANDS_CUH
#define EK_CUDA_BANDS_CUH

#include "kernels/cuda/units.cuh"

// ---- which bands and rows are a tile. Unit l of a tile: its sums are rows place(l, 0), place(l,
// 1) of the two bands.
template <int MODE> struct Tile;
template <> struct Tile<EK_CU_LINEAR> {
    static const int rows = 1, units = 32;
    static __host__ __device__ uint32_t bands(uint32_t rows)
    {
        return (rows + 15) / 16;
    }
    static uint32_t count(const ek_cu_product &p)
    {
        uint32_t n = 0;

        for (uint32_t i = 0; i < p.n_mats; i++)
            n += bands(p.mat[i].rows);
        return (n + 1) / 2;
    }
    // Band `band` of all matrices is *band of matrix *m, whose first output is *at; false: past the
    // end, the last one again.
    static __device__ __forceinline__ bool find_band(const ek_cu_product &p, uint32_t *band,
                                                     uint32_t *m, uint32_t *at)
    {
        *m = *at = 0;
        while (*m + 1 < p.n_mats && *band >= bands(p.mat[*m].rows)) {
            *band -= bands(p.mat[*m].rows);
            *at += p.mat[(*m)++].rows;
        }
        if (*band < bands(p.mat[*m].rows))
            return true;
        *band = bands(p.mat[*m].rows) - 1;
        return false;
    }
    static __device__ __forceinline__ const uint8_t *band(const ek_cu_product &p, uint32_t tile,
                                                          uint32_t b)
    {
        uint32_t band = 2 * tile + b, m, at;

        find_band(p, &band, &m, &at);
        return p.mat[m].data + band * 16 * p.row_bytes;
    }
    static __device__ __forceinline__ bool find(const ek_cu_product &p, uint32_t tile, uint32_t l,
                                                uint32_t *u, uint32_t *m, uint32_t row[1])
    {
        uint32_t band = 2 * tile + l / 16;
        bool there = find_band(p, &band, m, u);

        row[0] = band * 16 + l % 16;
        *u += row[0];
        return there && row[0] < p.mat[*m].rows;
    }
    static __device__ __forceinline__ uint32_t place(const ek_cu_product &, uint32_t l, uint32_t)
    {
        return l;
    }
};
template <> struct Tile<EK_CU_GATE_UP> {
    static const int rows = 2, units = 16;
    static uint32_t count(const ek_cu_product &p)
    {
        return (p.mat[0].rows + 15) / 16;
    }
    static __device__ __forceinline__ const uint8_t *band(const ek_cu_product &p, uint32_t tile,
                                                          uint32_t b)
    {
        return p.mat[b].data + (size_t)tile * 16 * p.row_bytes;
    }
    static __device__ __forceinline__ bool find(const ek_cu_product &p, uint32_t tile, uint32_t l,
                                                uint32_t *u, uint32_t *m, uint32_t row[2])
    {
        *u = row[0] = row[1] = tile * 16 + l;
        *m = 0;
        return *u < p.mat[0].rows;
    }
    static __device__ __forceinline__ uint32_t place(const ek_cu_product &, uint32_t l, uint32_t r)
    {
        return l + 16 * r;
    }
};
// Heads of 32 rows or a multiple; pairs that rotate are half a head apart, or neighbours.
template <> struct Tile<EK_CU_QKV> {
    static const int rows = 2, units = 16;
    static uint32_t count(const ek_cu_product &p)
    {
        return (p.mat[0].rows + p.mat[1].rows + p.mat[2].rows) / 32;
    }
    // The tile's first row in its matrix *m, and the distance to its second band.
    static __device__ __forceinline__ uint32_t first(const ek_cu_product &p, uint32_t tile,
                                                     uint32_t *m, uint32_t *apart)
    {
        uint32_t dim = p.kv.head_dim;

        *m = 0;
        while (*m + 1 < p.n_mats && tile >= p.mat[*m].rows / 32)
            tile -= p.mat[(*m)++].rows / 32;
        *apart = p.rope.interleaved ? 16 : dim / 2;
        return p.rope.interleaved ? 32 * tile : tile / (dim / 32) * dim + tile % (dim / 32) * 16;
    }
    static __device__ __forceinline__ const uint8_t *band(const ek_cu_product &p, uint32_t tile,
                                                          uint32_t b)
    {
        uint32_t m, apart, row = first(p, tile, &m, &apart);

        return p.mat[m].data + (size_t)(row + b * apart) * p.row_bytes;
    }
    static __device__ __forceinline__ bool find(const ek_cu_product &p, uint32_t tile, uint32_t l,
                                                uint32_t *u, uint32_t *m, uint32_t row[2])
    {
        uint32_t apart, at = first(p, tile, m, &apart);

        *u = 0;
        row[0] = at + (p.rope.interleaved ? 2 * l : l);
        row[1] = row[0] + (p.rope.interleaved ? 1 : apart);
        return true;
    }
    static __device__ __forceinline__ uint32_t place(const ek_cu_product &p, uint32_t l, uint32_t r)
    {
        return p.rope.interleaved ? 2 * l + r : l + 16 * r;
    }
};

// Runs the statement with MODE as what becomes of the sums.
#define BAND_DISPATCH(mode, ...)                                                                   \
    switch (mode) {                                                                                \
    case EK_CU_LINEAR: {                                                                           \
        constexpr int MODE = EK_CU_LINEAR;                                                         \
        __VA_ARGS__;                                                                               \
        break;                                                                                     \
    }                                                                                              \
    case EK_CU_GATE_UP: {                                                                          \
        constexpr int MODE = EK_CU_GATE_UP;                                                        \
        __VA_ARGS__;                                                                               \
        break;                                                                                     \
    }                                                                                              \
    case EK_CU_QKV: {                                                                              \
        constexpr int MODE = EK_CU_QKV;                                                            \
        __VA_ARGS__;                                                                               \
        break;                                                                                     \
    }                                                                                              \
    }

// ---- tiles: a band, or two that belong together
template <int MODE> struct BandTile {
    using U = Tile<MODE>;
    static const int members = U::rows;

    static uint32_t count(const ek_cu_product &p)
    {
        uint32_t n = 0;

        for (uint32_t i = 0; i < p.n_mats; i++)
            n += (p.mat[i].rows + 15) / 16;
        return n / members;
    }
    static __device__ __forceinline__ const uint8_t *band(const ek_cu_product &p, uint32_t tile,
                                                          uint32_t b)
    {
        return members == 2 ? U::band(p, tile, b) : U::band(p, tile / 2, tile % 2);
    }
    static __device__ __forceinline__ bool find(const ek_cu_product &p, uint32_t tile, uint32_t l,
                                                uint32_t *u, uint32_t *m, uint32_t row[members])
    {
        return members == 2 ? U::find(p, tile, l, u, m, row)
                            : U::find(p, tile / 2, tile % 2 * 16 + l, u, m, row);
    }
};

// What a block does, or a group of them: tiles [first, end). Its warps share the items in order,
// `per` of which are a band.
template <int WARPS> struct BandShare {
    uint32_t first, end, per, items, warps; // warps: that have any

    __device__ __forceinline__ BandShare(uint32_t tiles, uint32_t members, uint32_t per_band,
                                         uint32_t group = blockIdx.x, uint32_t groups = gridDim.x)
    {
        first = (uint32_t)((uint64_t)tiles * group / groups);
        end = (uint32_t)((uint64_t)tiles * (group + 1) / groups);
        per = per_band;
        items = (end - first) * members * per;
        warps = min(items, (uint32_t)WARPS);
    }
    __device__ __forceinline__ uint32_t begin_of(uint32_t warp) const
    {
        return items * min(warp, warps) / warps;
    }
    __device__ __forceinline__ uint32_t warp_of(uint32_t item) const
    {
        return (warps * (item + 1) - 1) / items;
    }
};

#endif
