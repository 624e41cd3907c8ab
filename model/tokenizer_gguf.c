/* SPDX-License-Identifier: Apache-2.0
 *
 * A GGUF's tokenizer.ggml.* metadata read into a tokenizer. A GGUF names its pre-tokenizer and
 * leaves the patterns out: they are rows of a table in pretokenize.c.
 */
#include "model/gguf.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define TOKENS      "tokenizer.ggml.tokens"
#define TOKEN_TYPES "tokenizer.ggml.token_type"
#define MERGES      "tokenizer.ggml.merges"

enum { TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };

struct reader {
    struct ek_tokenizer *t;
    const struct ek_gguf *g;
    const char *where;
};

static enum ek_status array_of(const struct reader *r, const char *key, bool strings, size_t max,
                               size_t *n)
{
    enum ek_gguf_type type;

    EK_TRY(ek_gguf_array(r->g, key, &type, n));
    if ((type == EK_GGUF_STRING) != strings)
        return ek_error(EK_EFORMAT, "%s: %s must be an array of %s", r->where, key,
                        strings ? "strings" : "numbers");
    if (*n > max)
        return ek_error(EK_EFORMAT, "%s: %s has %zu items, at most %zu", r->where, key, *n, max);
    return EK_OK;
}

static enum ek_status read_tokens(const struct reader *r)
{
    const char *s;
    size_t n, len;

    EK_TRY(array_of(r, TOKENS, true, EK_TOKENS_MAX, &n));
    EK_TRY(ek_vocab_init(&r->t->bpe.vocab, n));
    for (size_t i = 0; i < n; i++) {
        EK_TRY(ek_gguf_array_string(r->g, TOKENS, i, &s, &len));
        EK_TRY(ek_vocab_set(&r->t->bpe.vocab, (uint32_t)i, s, len, r->where));
    }
    EK_TRY(ek_tokenizer_check_ids(r->t, r->where));
    return ek_bpe_index_bytes(&r->t->bpe, r->where);
}

static enum ek_status read_merges(const struct reader *r)
{
    const char *s, *space;
    size_t n, len;

    EK_TRY(array_of(r, MERGES, true, EK_MERGES_MAX, &n));
    EK_TRY(ek_merges_init(&r->t->bpe.merges, n));
    for (size_t i = 0; i < n; i++) {
        EK_TRY(ek_gguf_array_string(r->g, MERGES, i, &s, &len));
        if ((space = memchr(s, ' ', len)) == NULL)
            return ek_error(EK_EFORMAT, "%s: %s[%zu] must be \"a b\"", r->where, MERGES, i);
        EK_TRY(ek_merges_add(&r->t->bpe.merges, &r->t->bpe.vocab, (uint32_t)i, s,
                             (size_t)(space - s), space + 1, len - (size_t)(space - s) - 1,
                             r->where));
    }
    return EK_OK;
}

/* Control and user-defined tokens are added tokens. */
static enum ek_status read_types(const struct reader *r)
{
    struct ek_added_token token = {0};
    const char *s;
    size_t n, len;
    int64_t type;

    if (!ek_gguf_has(r->g, TOKEN_TYPES))
        return EK_OK;
    EK_TRY(array_of(r, TOKEN_TYPES, false, EK_TOKENS_MAX, &n));
    if (n != r->t->bpe.vocab.n)
        return ek_error(EK_EFORMAT, "%s: %s has %zu items, but %s has %u", r->where, TOKEN_TYPES, n,
                        TOKENS, r->t->bpe.vocab.n);
    for (size_t i = 0; i < n; i++) {
        EK_TRY(ek_gguf_array_i64(r->g, TOKEN_TYPES, i, &type));
        if (type != TYPE_CONTROL && type != TYPE_USER_DEFINED)
            continue;
        EK_TRY(ek_gguf_array_string(r->g, TOKENS, i, &s, &len));
        token.text = (char *)s; /* copied by ek_added_put */
        token.n = (uint32_t)len;
        token.id = (int32_t)i;
        token.special = type == TYPE_CONTROL;
        EK_TRY(ek_tokenizer_add(r->t, &token, r->where));
    }
    return EK_OK;
}

static enum ek_status read_pre(const struct reader *r)
{
    const struct ek_pre_family *family;
    const char *name = "gpt-2", *given = "default";
    char quoted[EK_QUOTE_LEN];
    size_t n;

    if (ek_gguf_has(r->g, "tokenizer.ggml.pre"))
        EK_TRY(ek_gguf_string(r->g, "tokenizer.ggml.pre", &given, &n));
    if (strcmp(given, "default") == 0)
        ek_note("%s: tokenizer.ggml.pre is missing or 'default': taken as gpt-2", r->where);
    else
        name = given;
    if ((family = ek_pre_family_find(name)) == NULL)
        return ek_error(EK_EUNSUPPORTED, "%s: tokenizer.ggml.pre '%s' is not supported", r->where,
                        ek_quote(quoted, name, strlen(name)));
    for (size_t i = 0; i < EK_ARRAY_LEN(family->patterns) && family->patterns[i] != NULL; i++)
        EK_TRY(ek_pretokenizer_regex(&r->t->pre, family->patterns[i], strlen(family->patterns[i]),
                                     false, false, r->where));
    if (family->nfc)
        r->t->normalizer.forms[r->t->normalizer.n++] = EK_NFC;
    r->t->bpe.ignore_merges = family->ignore_merges;
    r->t->adds_bos = family->adds_bos;
    return EK_OK;
}

static enum ek_status read_id(const struct reader *r, const char *key, int32_t *out)
{
    uint64_t id;

    if (!ek_gguf_has(r->g, key))
        return EK_OK;
    EK_TRY(ek_gguf_u64(r->g, key, 0, r->t->bpe.vocab.n - 1, &id));
    *out = (int32_t)id;
    return EK_OK;
}

static enum ek_status read_chat(const struct reader *r)
{
    const char *s;
    size_t n;

    if (!ek_gguf_has(r->g, "tokenizer.chat_template"))
        return EK_OK;
    EK_TRY(ek_gguf_string(r->g, "tokenizer.chat_template", &s, &n));
    return (r->t->chat_template = ek_strdup(s)) ? EK_OK : EK_ENOMEM;
}

static enum ek_status read_all(const struct reader *r)
{
    const char *model;
    char quoted[EK_QUOTE_LEN];
    size_t n;

    EK_TRY(ek_gguf_string(r->g, "tokenizer.ggml.model", &model, &n));
    if (strcmp(model, "gpt2") != 0)
        return ek_error(
            EK_EUNSUPPORTED,
            "%s: tokenizer.ggml.model '%s' is not supported (only gpt2: byte-level BPE)", r->where,
            ek_quote(quoted, model, n));
    EK_TRY(read_pre(r)); /* first: added tokens may pass through the normaliser */
    EK_TRY(read_tokens(r));
    EK_TRY(read_merges(r));
    EK_TRY(read_types(r));
    EK_TRY(read_id(r, "tokenizer.ggml.bos_token_id", &r->t->bos));
    EK_TRY(read_id(r, "tokenizer.ggml.eos_token_id", &r->t->eos));
    if (ek_gguf_has(r->g, "tokenizer.ggml.add_bos_token"))
        EK_TRY(ek_gguf_bool(r->g, "tokenizer.ggml.add_bos_token", &r->t->adds_bos));
    return read_chat(r);
}

enum ek_status ek_tokenizer_from_gguf(const char *path, struct ek_tokenizer **out)
{
    struct reader r = {.where = path};
    struct ek_gguf *g;
    enum ek_status st = EK_ENOMEM;

    EK_TRY(ek_gguf_open(path, &g));
    r.g = g;
    if ((r.t = ek_tokenizer_new()) != NULL)
        st = read_all(&r);
    ek_gguf_close(g);
    if (st != EK_OK) {
        ek_tokenizer_free(r.t);
        return st;
    }
    *out = r.t;
    return EK_OK;
}
