/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t ek_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t ek_random_u64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double ek_random_unit(uint64_t *state)
{
    return (double)(ek_random_u64(state) >> 11) * 0x1p-53;
}

float ek_random_normal(uint64_t *state)
{
    double u = 1.0 - ek_random_unit(state), v = ek_random_unit(state);

    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static void to_hex(XXH128_hash_t h, char out[33])
{
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

void ek_hash_hex(const void *data, size_t n, char out[33])
{
    to_hex(XXH3_128bits(data, n), out);
}

uint64_t ek_hash_u64(const void *data, size_t n)
{
    return XXH3_64bits(data, n);
}

struct ek_hash {
    XXH3_state_t *state;
};

struct ek_hash *ek_hash_new(void)
{
    struct ek_hash *h = ek_calloc(1, sizeof(*h));

    if (h == NULL)
        return NULL;
    if ((h->state = XXH3_createState()) == NULL) {
        free(h);
        return NULL;
    }
    XXH3_128bits_reset(h->state);
    return h;
}

void ek_hash_add(struct ek_hash *h, const void *data, size_t n)
{
    XXH3_128bits_update(h->state, data, n);
}

void ek_hash_end(struct ek_hash *h, char out[33])
{
    to_hex(XXH3_128bits_digest(h->state), out);
    XXH3_freeState(h->state);
    free(h);
}
