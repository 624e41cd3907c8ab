/* SPDX-License-Identifier: Apache-2.0
 *
 * Added tokens: found in the text before anything else looks at it, leftmost first, the longest of
 * those that begin at one place.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define NODES_MAX ((size_t)1 << 24)

static void trie_init(struct ek_trie *t)
{
    *t = (struct ek_trie){0};
    for (size_t i = 0; i < EK_ARRAY_LEN(t->first); i++)
        t->first[i] = -1;
}

/* A new node; its index, or -1 when there is no memory. */
static int32_t trie_node(struct ek_trie *t, uint8_t byte)
{
    void *nodes = t->nodes;
    enum ek_status st = ek_grow(&nodes, &t->cap, t->n + 1, sizeof(*t->nodes), NODES_MAX);

    t->nodes = nodes;
    if (st != EK_OK)
        return -1;
    t->nodes[t->n] = (struct ek_trie_node){.child = -1, .sibling = -1, .added = -1, .byte = byte};
    return (int32_t)t->n++;
}

static int32_t trie_child(const struct ek_trie *t, int32_t node, uint8_t byte)
{
    int32_t i = t->nodes[node].child;

    while (i >= 0 && t->nodes[i].byte != byte)
        i = t->nodes[i].sibling;
    return i;
}

static enum ek_status trie_put(struct ek_trie *t, const char *s, size_t n, int32_t added)
{
    int32_t at = t->first[(uint8_t)s[0]], next;

    if (at < 0 && (at = t->first[(uint8_t)s[0]] = trie_node(t, (uint8_t)s[0])) < 0)
        return EK_ENOMEM;
    for (size_t i = 1; i < n; i++) {
        if ((next = trie_child(t, at, (uint8_t)s[i])) < 0) {
            if ((next = trie_node(t, (uint8_t)s[i])) < 0)
                return EK_ENOMEM;
            t->nodes[next].sibling = t->nodes[at].child;
            t->nodes[at].child = next;
        }
        at = next;
    }
    if (t->nodes[at].added < 0)
        t->nodes[at].added = added;
    return EK_OK;
}

/* The longest token that s begins with, its length to *len; -1: none. */
static int32_t trie_longest(const struct ek_trie *t, const char *s, size_t n, size_t *len)
{
    int32_t found = -1, at = t->first[(uint8_t)s[0]];

    for (size_t i = 1; at >= 0; i++) {
        if (t->nodes[at].added >= 0) {
            found = t->nodes[at].added;
            *len = i;
        }
        if (i == n)
            break;
        at = trie_child(t, at, (uint8_t)s[i]);
    }
    return found;
}

void ek_added_init(struct ek_added *a)
{
    *a = (struct ek_added){0};
    trie_init(&a->raw);
    trie_init(&a->normalized);
}

void ek_added_free(struct ek_added *a)
{
    for (size_t i = 0; i < a->n; i++)
        free(a->tokens[i].text);
    free(a->tokens);
    free(a->raw.nodes);
    free(a->normalized.nodes);
    ek_added_init(a);
}

static enum ek_status enter(struct ek_added *a, const struct ek_normalizer *nz,
                            const struct ek_added_token *token, int32_t index)
{
    const char *text;
    char *owned;
    size_t n;
    enum ek_status st;

    if (!token->normalized)
        return trie_put(&a->raw, token->text, token->n, index);
    EK_TRY(ek_normalize(nz, token->text, token->n, &text, &n, &owned));
    st = n > 0 ? trie_put(&a->normalized, text, n, index) : EK_OK;
    free(owned);
    return st;
}

enum ek_status ek_added_put(struct ek_added *a, const struct ek_normalizer *nz,
                            const struct ek_added_token *token)
{
    void *tokens = a->tokens;
    struct ek_added_token *t;
    enum ek_status st = ek_grow(&tokens, &a->cap, a->n + 1, sizeof(*t), EK_ADDED_MAX);

    a->tokens = tokens;
    EK_TRY(st);
    t = &a->tokens[a->n];
    *t = *token;
    if ((t->text = ek_calloc(token->n + 1, 1)) == NULL)
        return EK_ENOMEM;
    memcpy(t->text, token->text, token->n);
    a->n++;
    t->marker = t->special || (t->n > 2 && t->text[0] == '<' && t->text[t->n - 1] == '>');
    return enter(a, nz, t, (int32_t)(a->n - 1));
}

const struct ek_added_token *ek_added_find(const struct ek_added *a, const char *text, size_t n)
{
    for (size_t i = 0; i < a->n; i++)
        if (a->tokens[i].n == n && memcmp(a->tokens[i].text, text, n) == 0)
            return &a->tokens[i];
    return NULL;
}

static bool word_before(const char *s, size_t at)
{
    size_t i = at;
    uint32_t code;

    if (at == 0)
        return false;
    do
        i--;
    while (i > 0 && ((uint8_t)s[i] & 0xc0) == 0x80);
    return ek_utf8_next(s + i, at - i, &code) > 0 && ek_is_word(code);
}

static bool word_after(const char *s, size_t at, size_t n)
{
    uint32_t code;

    return at < n && ek_utf8_next(s + at, n - at, &code) > 0 && ek_is_word(code);
}

/* Whether the token found at [start, stop) counts there; widens it over white space. */
static bool accept(const struct ek_cutter *c, const struct ek_added_token *t, size_t *start,
                   size_t *stop)
{
    if (t->marker && !c->markers)
        return false;
    if (t->single_word && (word_before(c->text, *start) || word_after(c->text, *stop, c->n)))
        return false;
    if (t->lstrip)
        *start -= ek_trailing_space(c->text + c->at, *start - c->at);
    if (t->rstrip)
        *stop += ek_leading_space(c->text + *stop, c->n - *stop);
    return true;
}

bool ek_cutter_next(struct ek_cutter *c, struct ek_cut *out)
{
    size_t len = 0;

    if (c->has_pending) {
        *out = c->pending;
        c->has_pending = false;
        return true;
    }
    if (c->at == c->n)
        return false;
    for (size_t i = c->at; i < c->n;) {
        int32_t found = trie_longest(c->trie, c->text + i, c->n - i, &len);
        size_t start = i, stop = i + len, from = c->at;
        if (found < 0 || !accept(c, &c->added->tokens[found], &start, &stop)) {
            i += found < 0 ? 1 : len;
            continue;
        }
        c->pending = (struct ek_cut){
            .s = c->text + start, .n = stop - start, .id = c->added->tokens[found].id};
        c->at = stop;
        if (start == from) {
            *out = c->pending;
            return true;
        }
        c->has_pending = true;
        *out = (struct ek_cut){.s = c->text + from, .n = start - from, .id = -1};
        return true;
    }
    *out = (struct ek_cut){.s = c->text + c->at, .n = c->n - c->at, .id = -1};
    c->at = c->n;
    return true;
}
