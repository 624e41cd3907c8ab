/* SPDX-License-Identifier: Apache-2.0
 *
 * The tokenizer put together: opening, and the way of a text through its parts. Added tokens on the
 * raw text, normal form, added tokens on the normalised text, pre-tokenizer, BPE.
 */
#include "model/internal.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- Opening --------------------------------------------------------------------------------- */

struct ek_tokenizer *ek_tokenizer_new(void)
{
    struct ek_tokenizer *t = ek_calloc(1, sizeof(*t));

    if (t == NULL)
        return NULL;
    ek_added_init(&t->added);
    ek_pretokenizer_init(&t->pre);
    t->bos = t->eos = t->bpe.unk = -1;
    return t;
}

void ek_tokenizer_free(struct ek_tokenizer *t)
{
    if (t == NULL)
        return;
    ek_vocab_free(&t->bpe.vocab);
    ek_merges_free(&t->bpe.merges);
    ek_added_free(&t->added);
    ek_pretokenizer_free(&t->pre);
    free(t->chat_template);
    free(t->chat_system);
    free(t);
}

enum ek_status ek_tokenizer_add(struct ek_tokenizer *t, const struct ek_added_token *token,
                                const char *where)
{
    struct ek_vocab_token *v;
    char quoted[EK_QUOTE_LEN];

    ek_quote(quoted, token->text, token->n);
    if (token->n == 0 || token->n > EK_TOKEN_BYTES_MAX)
        return ek_error(EK_EFORMAT, "%s: added token %d has %u bytes, must have 1 to %zu", where,
                        token->id, token->n, EK_TOKEN_BYTES_MAX);
    if (token->id < 0 || (uint32_t)token->id >= t->bpe.vocab.n)
        return ek_error(EK_EFORMAT, "%s: added token '%s' has id %d, but there are %u tokens",
                        where, quoted, token->id, t->bpe.vocab.n);
    v = &t->bpe.vocab.tokens[token->id];
    if (v->added >= 0)
        return ek_error(EK_EFORMAT, "%s: added token '%s' has id %d, which another has too", where,
                        quoted, token->id);
    v->added = (int32_t)t->added.n;
    return ek_added_put(&t->added, &t->normalizer, token);
}

enum ek_status ek_tokenizer_check_ids(const struct ek_tokenizer *t, const char *where)
{
    const struct ek_vocab *v = &t->bpe.vocab;

    if (v->n == 0)
        return ek_error(EK_EFORMAT, "%s: the vocabulary is empty", where);
    for (uint32_t i = 0; i < v->n; i++)
        if (!v->tokens[i].present && v->tokens[i].added < 0)
            return ek_error(EK_EFORMAT, "%s: no token has id %u, but ids go up to %u", where, i,
                            v->n - 1);
    return EK_OK;
}

static bool is_directory(const char *path)
{
    struct stat s;

    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* By its first bytes, whatever it is called. */
static bool is_gguf(const char *path)
{
    FILE *f = fopen(path, "rb");
    char magic[4] = "";
    bool yes = f != NULL && fread(magic, 1, 4, f) == 4 && memcmp(magic, "GGUF", 4) == 0;

    if (f != NULL)
        fclose(f);
    return yes;
}

static enum ek_status open_json(const char *file, const char *dir, struct ek_tokenizer **out)
{
    struct ek_tokenizer *t = NULL;
    char *text = NULL;
    size_t n;
    enum ek_status st;

    EK_TRY(ek_file_read(file, EK_TOKENIZER_FILE_MAX, &text, &n));
    st = ek_tokenizer_from_json(text, n, file, &t);
    free(text);
    if (st == EK_OK)
        st = ek_tokenizer_read_config(t, dir);
    if (st != EK_OK) {
        ek_tokenizer_free(t);
        return st;
    }
    *out = t;
    return EK_OK;
}

/* tokenizer.json, or else the directory's one GGUF. */
static enum ek_status open_in_directory(const char *dir, struct ek_tokenizer **out)
{
    char *file = ek_path_join(dir, "tokenizer.json"), *gguf = NULL;
    enum ek_status st = file ? EK_OK : EK_ENOMEM;

    if (st == EK_OK && !ek_file_exists(file)) {
        st = ek_directory_gguf(dir, &gguf);
        if (st == EK_OK && gguf == NULL)
            st = ek_error(EK_EENV,
                          "%s: No such file or directory; text needs a tokenizer, token ids do not",
                          file);
    }
    if (st == EK_OK)
        st = gguf ? ek_tokenizer_from_gguf(gguf, out) : open_json(file, dir, out);
    free(file);
    free(gguf);
    return st;
}

/* A tokenizer.json under any name; a config.json stands for its directory. */
static enum ek_status open_file(const char *path, struct ek_tokenizer **out)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *dir = slash ? ek_strdup(path) : ek_strdup(".");
    enum ek_status st;

    if (dir == NULL)
        return EK_ENOMEM;
    if (slash != NULL)
        dir[slash == path ? 1 : slash - path] = '\0';
    st = strcmp(name, "config.json") == 0 ? open_in_directory(dir, out) : open_json(path, dir, out);
    free(dir);
    return st;
}

enum ek_status ek_tokenizer_open(const char *path, struct ek_tokenizer **out)
{
    struct ek_tokenizer *t;
    enum ek_status st;

    if (is_directory(path))
        st = open_in_directory(path, &t);
    else
        st = is_gguf(path) ? ek_tokenizer_from_gguf(path, &t) : open_file(path, &t);
    EK_TRY(st);
    if ((st = ek_chat_recognise(t)) != EK_OK) {
        ek_tokenizer_free(t);
        return st;
    }
    *out = t;
    return EK_OK;
}

/* ---- What it knows --------------------------------------------------------------------------- */

uint32_t ek_tokenizer_size(const struct ek_tokenizer *t)
{
    return t->bpe.vocab.n;
}

enum ek_status ek_tokenizer_fits(const struct ek_tokenizer *t, uint64_t rows)
{
    if (t->bpe.vocab.n > rows)
        return ek_error(EK_EFORMAT,
                        "the tokenizer has %u tokens, but the embedding has %llu rows: they belong "
                        "to different models",
                        t->bpe.vocab.n, (unsigned long long)rows);
    return EK_OK;
}

int32_t ek_tokenizer_id(const struct ek_tokenizer *t, const char *text)
{
    size_t n = strlen(text);
    const struct ek_added_token *a = ek_added_find(&t->added, text, n);
    int32_t id = a ? a->id : ek_vocab_find(&t->bpe.vocab, text, n, true);

    return id >= 0 ? id : ek_vocab_find(&t->bpe.vocab, text, n, false);
}

int32_t ek_tokenizer_bos(const struct ek_tokenizer *t)
{
    return t->bos;
}

int32_t ek_tokenizer_eos(const struct ek_tokenizer *t)
{
    return t->eos;
}

bool ek_tokenizer_adds_bos(const struct ek_tokenizer *t)
{
    return t->adds_bos && t->bos >= 0;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

struct encoding {
    const struct ek_tokenizer *t;
    struct ek_bpe_work *work;
    struct ek_ids ids;
    bool markers; /* special tokens in the text count */
};

static enum ek_status encode_piece(void *arg, const char *s, size_t n)
{
    struct encoding *e = arg;

    return ek_bpe_encode(&e->t->bpe, e->work, s, n, &e->ids);
}

static enum ek_status encode_normalised(struct encoding *e, const char *s, size_t n)
{
    struct ek_cutter cutter = {.added = &e->t->added,
                               .trie = &e->t->added.normalized,
                               .markers = e->markers,
                               .text = s,
                               .n = n};
    struct ek_cut cut;

    while (ek_cutter_next(&cutter, &cut))
        EK_TRY(cut.id >= 0 ? ek_ids_add(&e->ids, cut.id)
                           : ek_pretokenize(&e->t->pre, cut.s, cut.n, encode_piece, e));
    return EK_OK;
}

static enum ek_status encode_between(struct encoding *e, const char *s, size_t n)
{
    const char *text;
    char *owned;
    enum ek_status st;

    EK_TRY(ek_normalize(&e->t->normalizer, s, n, &text, &n, &owned));
    st = encode_normalised(e, text, n);
    free(owned);
    return st;
}

static enum ek_status encode_raw(struct encoding *e, const char *s, size_t n)
{
    struct ek_cutter cutter = {
        .added = &e->t->added, .trie = &e->t->added.raw, .markers = e->markers, .text = s, .n = n};
    struct ek_cut cut;

    while (ek_cutter_next(&cutter, &cut))
        EK_TRY(cut.id >= 0 ? ek_ids_add(&e->ids, cut.id) : encode_between(e, cut.s, cut.n));
    return EK_OK;
}

static enum ek_status encode(struct encoding *e, const char *text, size_t n, int flags)
{
    struct ek_buffer repaired = {0};
    size_t taken;
    enum ek_status st = EK_OK;

    if ((e->work = ek_bpe_work_new()) == NULL)
        return EK_ENOMEM;
    if ((flags & EK_ENCODE_BOS) && ek_tokenizer_adds_bos(e->t))
        EK_TRY(ek_ids_add(&e->ids, e->t->bos));
    if (ek_utf8_valid(text, n))
        return encode_raw(e, text, n);
    st = ek_utf8_repair(&repaired, text, n, true, &taken);
    if (st == EK_OK)
        st = encode_raw(e, repaired.data, repaired.n);
    ek_buffer_free(&repaired);
    return st;
}

enum ek_status ek_tokenizer_encode(const struct ek_tokenizer *t, const char *text, size_t n,
                                   int flags, int32_t **ids, size_t *n_ids)
{
    struct encoding e = {.t = t, .markers = flags & EK_ENCODE_SPECIAL};
    enum ek_status st;

    if (n > EK_TEXT_BYTES_MAX)
        return ek_error(EK_EUSAGE, "a text of %zu bytes, at most %zu", n, EK_TEXT_BYTES_MAX);
    st = encode(&e, text, n, flags);
    ek_bpe_work_free(e.work);
    if (st == EK_OK && e.ids.ids == NULL && (e.ids.ids = ek_calloc(1, sizeof(int32_t))) == NULL)
        st = EK_ENOMEM;
    if (st != EK_OK) {
        free(e.ids.ids);
        return st;
    }
    *ids = e.ids.ids;
    *n_ids = e.ids.n;
    return EK_OK;
}
