/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading for its own sake: the ceiling that other kernels are measured against, so it must be at
 * least as fast as any of them, from every level of the caches.
 */

/* Folds n bytes into 64 bits; four vectors under way hide the latency of the loads. Not slowed by
 * sanitizers, which hardly slow products: a ceiling would no longer be one. */
__attribute__((no_sanitize("address", "undefined"))) static uint64_t read_all(const char *p,
                                                                              size_t n)
{
    typedef uint64_t v8 __attribute__((vector_size(64), aligned(1), may_alias));
    v8 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    uint64_t all = 0;
    size_t i = 0;

    for (; i + 256 <= n; i += 256) {
        const v8 *q = (const v8 *)(p + i);
        s0 ^= q[0];
        s1 ^= q[1];
        s2 ^= q[2];
        s3 ^= q[3];
    }
    s0 ^= s1 ^ s2 ^ s3;
    for (; i < n; i++)
        all += (unsigned char)p[i];
    for (int k = 0; k < 8; k++)
        all ^= s0[k];
    return all;
}
