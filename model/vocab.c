/* SPDX-License-Identifier: Apache-2.0
 *
 * The vocabulary (id to bytes and back) and the merge table, both as open-addressing hashes.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* Slots for n items at a load of at most a half; a power of two. */
static size_t slot_count(size_t n)
{
    size_t slots = 16;

    while (slots < 2 * n)
        slots *= 2;
    return slots;
}

enum ek_status ek_vocab_init(struct ek_vocab *v, size_t n)
{
    size_t slots = slot_count(n);

    *v = (struct ek_vocab){.n = (uint32_t)n, .mask = (uint32_t)(slots - 1)};
    v->tokens = ek_calloc(n, sizeof(*v->tokens));
    v->slots = ek_calloc(slots, sizeof(*v->slots));
    if (v->tokens == NULL || v->slots == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < n; i++)
        v->tokens[i].added = -1;
    return EK_OK;
}

void ek_vocab_free(struct ek_vocab *v)
{
    free(v->tokens);
    free(v->text);
    free(v->slots);
    *v = (struct ek_vocab){0};
}

/* The slot of this text: its id's, or the free one where it belongs. */
static uint32_t *vocab_slot(const struct ek_vocab *v, const char *s, size_t n, bool mapped)
{
    uint32_t i = (uint32_t)XXH3_64bits(s, n) & v->mask;

    for (;; i = (i + 1) & v->mask) {
        const struct ek_vocab_token *t;
        if (v->slots[i] == 0)
            return &v->slots[i];
        t = &v->tokens[v->slots[i] - 1];
        if (t->n == n && t->mapped == mapped && memcmp(v->text + t->offset, s, n) == 0)
            return &v->slots[i];
    }
}

int32_t ek_vocab_find(const struct ek_vocab *v, const char *bytes, size_t n, bool mapped)
{
    return v->slots ? (int32_t)*vocab_slot(v, bytes, n, mapped) - 1 : -1;
}

enum ek_status ek_vocab_set(struct ek_vocab *v, uint32_t id, const char *s, size_t n,
                            const char *where)
{
    char bytes[EK_TOKEN_BYTES_MAX], quoted[EK_QUOTE_LEN];
    void *text = v->text;
    bool mapped;
    uint32_t *slot;
    enum ek_status st;

    if (n == 0 || n > EK_TOKEN_BYTES_MAX)
        return ek_error(EK_EFORMAT, "%s: token %u has %zu bytes, must have 1 to %zu", where, id, n,
                        EK_TOKEN_BYTES_MAX);
    if (id >= v->n)
        return ek_error(EK_EFORMAT, "%s: token '%s' has id %u, but there are %u tokens", where,
                        ek_quote(quoted, s, n), id, v->n);
    if (v->tokens[id].present)
        return ek_error(EK_EFORMAT, "%s: token '%s' has id %u, which another token has too", where,
                        ek_quote(quoted, s, n), id);
    if (!(mapped = ek_byte_level_bytes(s, n, bytes, &n)))
        memcpy(bytes, s, n);
    if (*(slot = vocab_slot(v, bytes, n, mapped)) != 0)
        return ek_error(EK_EFORMAT, "%s: tokens %u and %u have the same text '%s'", where,
                        *slot - 1, id, ek_quote(quoted, s, n));
    st = ek_grow(&text, &v->text_cap, v->text_n + n, 1, EK_TOKENIZER_FILE_MAX);
    v->text = text;
    if (st != EK_OK)
        return st;
    memcpy(v->text + v->text_n, bytes, n);
    v->tokens[id] = (struct ek_vocab_token){.offset = (uint32_t)v->text_n,
                                            .n = (uint32_t)n,
                                            .added = -1,
                                            .present = true,
                                            .mapped = mapped};
    v->text_n += n;
    *slot = id + 1;
    return EK_OK;
}

enum ek_status ek_merges_init(struct ek_merges *m, size_t n)
{
    size_t slots = slot_count(n);

    if ((m->slots = ek_calloc(slots, sizeof(*m->slots))) == NULL)
        return EK_ENOMEM;
    m->mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        m->slots[i].rank = UINT32_MAX;
    return EK_OK;
}

void ek_merges_free(struct ek_merges *m)
{
    free(m->slots);
    m->slots = NULL;
}

static struct ek_merge *merge_slot(const struct ek_merges *m, uint64_t pair)
{
    uint64_t h = pair * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h ^ h >> 32) & m->mask;

    while (m->slots[i].rank != UINT32_MAX && m->slots[i].pair != pair)
        i = (i + 1) & m->mask;
    return &m->slots[i];
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

const struct ek_merge *ek_merges_find(const struct ek_merges *m, int32_t left, int32_t right)
{
    const struct ek_merge *e = merge_slot(m, pair_of(left, right));

    return e->rank == UINT32_MAX ? NULL : e;
}

/* Id of a token in byte-level form, its bytes (or verbatim text) to out. */
static int32_t find_written(const struct ek_vocab *v, const char *s, size_t n, char *out,
                            size_t *n_out)
{
    bool mapped = ek_byte_level_bytes(s, n, out, n_out);

    if (!mapped) {
        memcpy(out, s, n);
        *n_out = n;
    }
    return ek_vocab_find(v, out, *n_out, mapped);
}

int32_t ek_vocab_find_written(const struct ek_vocab *v, const char *s, size_t n)
{
    char bytes[EK_TOKEN_BYTES_MAX];
    size_t len;

    return n <= sizeof(bytes) ? find_written(v, s, n, bytes, &len) : -1;
}

enum ek_status ek_merges_add(struct ek_merges *m, const struct ek_vocab *v, uint32_t rank,
                             const char *left, size_t n_left, const char *right, size_t n_right,
                             const char *where)
{
    char whole[2 * EK_TOKEN_BYTES_MAX], bytes[2 * EK_TOKEN_BYTES_MAX], quoted[EK_QUOTE_LEN];
    int32_t a, b, both;
    size_t n;

    if (n_left == 0 || n_right == 0 || n_left > EK_TOKEN_BYTES_MAX || n_right > EK_TOKEN_BYTES_MAX)
        return ek_error(EK_EFORMAT, "%s: merge %u has parts of %zu and %zu bytes, must be 1 to %zu",
                        where, rank, n_left, n_right, EK_TOKEN_BYTES_MAX);
    memcpy(whole, left, n_left);
    memcpy(whole + n_left, right, n_right);
    if ((a = find_written(v, left, n_left, bytes, &n)) < 0)
        return ek_error(EK_EFORMAT, "%s: merge %u names '%s', which is no token", where, rank,
                        ek_quote(quoted, left, n_left));
    if ((b = find_written(v, right, n_right, bytes, &n)) < 0)
        return ek_error(EK_EFORMAT, "%s: merge %u names '%s', which is no token", where, rank,
                        ek_quote(quoted, right, n_right));
    if ((both = find_written(v, whole, n_left + n_right, bytes, &n)) < 0)
        return ek_error(EK_EFORMAT, "%s: merge %u makes '%s', which is no token", where, rank,
                        ek_quote(quoted, whole, n_left + n_right));
    *merge_slot(m, pair_of(a, b)) =
        (struct ek_merge){.pair = pair_of(a, b), .rank = rank, .id = both};
    return EK_OK;
}
