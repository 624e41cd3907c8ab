/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that lives as long as a model, freed at once.
 */
#include "model/internal.h"

#include <stdarg.h>
#include <stdlib.h>

#define BLOCK_BYTES ((size_t)64 << 10)

struct ek_arena_block {
    struct ek_arena_block *next;
    size_t used, size;
    max_align_t data[];
};

void *ek_arena_alloc(struct ek_arena *a, size_t n, size_t size)
{
    struct ek_arena_block *b = a->blocks;
    size_t bytes, want;
    char *p;

    if (!ek_mul_size(n, size, &bytes) || bytes > SIZE_MAX / 2) {
        (void)ek_error(EK_ENOMEM, "out of host memory: %zu x %zu bytes", n, size);
        return NULL;
    }
    bytes = ek_round_up(bytes, sizeof(max_align_t));
    if (b == NULL || bytes > b->size - b->used) {
        want = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        if ((b = ek_calloc(1, sizeof(*b) + want)) == NULL)
            return NULL;
        b->size = want;
        b->next = a->blocks;
        a->blocks = b;
    }
    p = (char *)b->data + b->used;
    b->used += bytes;
    return p;
}

char *ek_arena_printf(struct ek_arena *a, const char *fmt, ...)
{
    va_list ap;
    int n;
    char *p;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || (p = ek_arena_alloc(a, (size_t)n + 1, 1)) == NULL)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

void ek_arena_free(struct ek_arena *a)
{
    while (a->blocks) {
        struct ek_arena_block *next = a->blocks->next;
        free(a->blocks);
        a->blocks = next;
    }
}
