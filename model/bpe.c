/* SPDX-License-Identifier: Apache-2.0
 *
 * Byte-pair encoding of one piece: a linked list of symbols and a heap of the pairs that may merge,
 * ordered by rank, then position. n log n, so that a hostile run without spaces stays cheap.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

struct symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t previous, next;
};
struct candidate {
    uint32_t rank, at; /* position of the left symbol */
    int32_t id;        /* what the pair becomes */
};
struct ek_bpe_work {
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbols_cap, heap_cap, heap_n;
};

enum ek_status ek_ids_add(struct ek_ids *v, int32_t id)
{
    void *ids = v->ids;
    enum ek_status st = ek_grow(&ids, &v->cap, v->n + 1, sizeof(*v->ids), EK_TEXT_BYTES_MAX * 4);

    v->ids = ids;
    if (st == EK_OK)
        v->ids[v->n++] = id;
    return st;
}

struct ek_bpe_work *ek_bpe_work_new(void)
{
    return ek_calloc(1, sizeof(struct ek_bpe_work));
}

void ek_bpe_work_free(struct ek_bpe_work *w)
{
    if (w == NULL)
        return;
    free(w->symbols);
    free(w->heap);
    free(w);
}

enum ek_status ek_bpe_index_bytes(struct ek_bpe *b, const char *where)
{
    for (int i = 0; i < 256; i++) {
        char c = (char)i;
        b->byte_id[i] = ek_vocab_find(&b->vocab, &c, 1, true);
        if (b->byte_id[i] < 0 && i >= 0x20 && i < 0x7f)
            return ek_error(EK_EFORMAT, "%s: the vocabulary has no token for byte 0x%02x", where,
                            i);
    }
    return EK_OK;
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

static void heap_push(struct ek_bpe_work *w, struct candidate c)
{
    size_t i = w->heap_n++;

    while (i > 0 && before(&c, &w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
}

static struct candidate heap_pop(struct ek_bpe_work *w)
{
    struct candidate top = w->heap[0], last = w->heap[--w->heap_n];
    size_t i = 0, child;

    while ((child = 2 * i + 1) < w->heap_n) {
        if (child + 1 < w->heap_n && before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* Offers the pair that begins at symbol `at`, if it merges. */
static void offer(const struct ek_bpe *b, struct ek_bpe_work *w, int32_t at)
{
    const struct ek_merge *m;

    if (at < 0 || w->symbols[at].next < 0)
        return;
    m = ek_merges_find(&b->merges, w->symbols[at].id, w->symbols[w->symbols[at].next].id);
    if (m != NULL)
        heap_push(w, (struct candidate){.rank = m->rank, .at = (uint32_t)at, .id = m->id});
}

/* Symbols of a piece's bytes, linked; returns how many. */
static size_t begin(const struct ek_bpe *b, struct ek_bpe_work *w, const char *s, size_t n)
{
    size_t m = 0;
    bool after_unk = false;

    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_id[(uint8_t)s[i]];
        bool unknown = id < 0;
        if (unknown && (b->unk < 0 || (b->fuse_unk && after_unk)))
            continue;
        after_unk = unknown;
        w->symbols[m] = (struct symbol){
            .id = unknown ? b->unk : id, .previous = (int32_t)m - 1, .next = (int32_t)m + 1};
        m++;
    }
    if (m > 0)
        w->symbols[m - 1].next = -1;
    return m;
}

static void merge(const struct ek_bpe *b, struct ek_bpe_work *w, struct candidate c)
{
    struct symbol *left = &w->symbols[c.at], *right;
    const struct ek_merge *m;

    if (left->id < 0 || left->next < 0)
        return;
    right = &w->symbols[left->next];
    m = ek_merges_find(&b->merges, left->id, right->id);
    if (m == NULL || m->id != c.id) /* the pair has changed since it was offered */
        return;
    left->id = c.id;
    left->next = right->next;
    right->id = -1;
    if (left->next >= 0)
        w->symbols[left->next].previous = (int32_t)c.at;
    offer(b, w, left->previous);
    offer(b, w, (int32_t)c.at);
}

static enum ek_status reserve(struct ek_bpe_work *w, size_t n)
{
    void *symbols = w->symbols, *heap = w->heap;
    enum ek_status st;

    st = ek_grow(&symbols, &w->symbols_cap, n, sizeof(*w->symbols), EK_TEXT_BYTES_MAX * 4);
    w->symbols = symbols;
    EK_TRY(st);
    /* every merge takes one candidate and offers at most two: never more than 2 n at a time */
    st = ek_grow(&heap, &w->heap_cap, 2 * n, sizeof(*w->heap), EK_TEXT_BYTES_MAX * 8);
    w->heap = heap;
    return st;
}

enum ek_status ek_bpe_encode(const struct ek_bpe *b, struct ek_bpe_work *w, const char *s, size_t n,
                             struct ek_ids *out)
{
    int32_t whole = b->ignore_merges ? ek_vocab_find(&b->vocab, s, n, true) : -1;
    size_t m;

    if (whole >= 0)
        return ek_ids_add(out, whole);
    EK_TRY(reserve(w, n));
    m = begin(b, w, s, n);
    w->heap_n = 0;
    for (size_t i = 0; i + 1 < m; i++)
        offer(b, w, (int32_t)i);
    while (w->heap_n > 0)
        merge(b, w, heap_pop(w));
    for (int32_t i = m > 0 ? 0 : -1; i >= 0; i = w->symbols[i].next)
        EK_TRY(ek_ids_add(out, w->symbols[i].id));
    return EK_OK;
}
