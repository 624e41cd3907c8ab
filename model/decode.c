/* SPDX-License-Identifier: Apache-2.0
 *
 * Token ids to text, whole or streaming. Tokens are bytes: a character may span several of them.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

struct ek_decoder {
    const struct ek_tokenizer *t;
    bool skip_special;
    char held[4]; /* an incomplete character */
    size_t n_held;
    struct ek_buffer bytes, text; /* scratch; what became complete */
};

/* Bytes of one token: none for special ones that are skipped and for ids that have no token (a
 * model's matrix may have more rows than the tokenizer has ids). */
static void token_bytes(const struct ek_tokenizer *t, int32_t id, bool skip_special, const char **s,
                        size_t *n)
{
    const struct ek_vocab_token *token;

    *s = "";
    *n = 0;
    if (id < 0 || (uint32_t)id >= t->bpe.vocab.n)
        return;
    token = &t->bpe.vocab.tokens[id];
    if (token->added >= 0) {
        const struct ek_added_token *added = &t->added.tokens[token->added];
        if (added->special && skip_special)
            return;
        *s = added->text;
        *n = added->n;
    } else if (token->n > 0) {
        *s = t->bpe.vocab.text + token->offset;
        *n = token->n;
    }
}

void ek_tokenizer_bytes(const struct ek_tokenizer *t, int32_t id, const char **bytes, size_t *n)
{
    token_bytes(t, id, false, bytes, n);
}

/* NUL characters become U+FFFD, so that the text is a C string. */
static enum ek_status without_nul(struct ek_buffer *b)
{
    struct ek_buffer out = {0};
    enum ek_status st = EK_OK;

    if (memchr(b->data, '\0', b->n) == NULL)
        return EK_OK;
    for (size_t i = 0; i < b->n && st == EK_OK; i++)
        st = b->data[i] ? ek_buffer_add(&out, b->data + i, 1)
                        : ek_buffer_add(&out, "\xef\xbf\xbd", 3);
    if (st != EK_OK) {
        ek_buffer_free(&out);
        return st;
    }
    ek_buffer_free(b);
    *b = out;
    return EK_OK;
}

enum ek_status ek_tokenizer_decode(const struct ek_tokenizer *t, const int32_t *ids, size_t n,
                                   bool skip_special, char **text)
{
    struct ek_buffer bytes = {0}, out = {0};
    const char *s;
    size_t len, taken;
    enum ek_status st = ek_buffer_add(&out, "", 0);

    for (size_t i = 0; i < n && st == EK_OK; i++) {
        token_bytes(t, ids[i], skip_special, &s, &len);
        st = ek_buffer_add(&bytes, s, len);
    }
    if (st == EK_OK)
        st = ek_utf8_repair(&out, bytes.data ? bytes.data : "", bytes.n, true, &taken);
    if (st == EK_OK)
        st = without_nul(&out);
    ek_buffer_free(&bytes);
    if (st == EK_OK)
        *text = out.data;
    else
        ek_buffer_free(&out);
    return st;
}

struct ek_decoder *ek_decoder_new(const struct ek_tokenizer *t, bool skip_special)
{
    struct ek_decoder *d = ek_calloc(1, sizeof(*d));

    if (d == NULL)
        return NULL;
    d->t = t;
    d->skip_special = skip_special;
    if (ek_buffer_add(&d->text, "", 0) != EK_OK) {
        ek_decoder_free(d);
        return NULL;
    }
    return d;
}

void ek_decoder_free(struct ek_decoder *d)
{
    if (d == NULL)
        return;
    ek_buffer_free(&d->bytes);
    ek_buffer_free(&d->text);
    free(d);
}

enum ek_status ek_decoder_push(struct ek_decoder *d, int32_t id, const char **text)
{
    const char *s;
    size_t n, taken;

    token_bytes(d->t, id, d->skip_special, &s, &n);
    d->text.n = d->bytes.n = 0;
    d->text.data[0] = '\0';
    EK_TRY(ek_buffer_add(&d->bytes, d->held, d->n_held));
    EK_TRY(ek_buffer_add(&d->bytes, s, n));
    EK_TRY(ek_utf8_repair(&d->text, d->bytes.data, d->bytes.n, false, &taken));
    EK_TRY(without_nul(&d->text));
    d->n_held = d->bytes.n - taken; /* an incomplete character: at most 3 bytes */
    memcpy(d->held, d->bytes.data + taken, d->n_held);
    *text = d->text.data;
    return EK_OK;
}

const char *ek_decoder_flush(struct ek_decoder *d)
{
    size_t taken;

    d->text.n = 0;
    d->text.data[0] = '\0';
    if (d->n_held > 0 && ek_utf8_repair(&d->text, d->held, d->n_held, true, &taken) != EK_OK)
        return "";
    d->n_held = 0;
    return d->text.data;
}
