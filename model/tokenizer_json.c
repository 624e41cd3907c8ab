/* SPDX-License-Identifier: Apache-2.0
 *
 * tokenizer.json (Hugging Face tokenizers) read into a tokenizer. Whatever it asks for that
 * byte-level BPE here does not do is refused by name: a wrong split is worse than none.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define NESTING 4

struct reader {
    struct ek_tokenizer *t;
    const char *where;
};

#define AT(r, p) ((struct ek_json_at){.file = (r)->where, .prefix = (p)})

static enum ek_status unsupported(const struct reader *r, const char *field, const char *got)
{
    char quoted[EK_QUOTE_LEN];

    return ek_error(EK_EUNSUPPORTED, "%s: %s '%s' is not supported", r->where, field,
                    ek_quote(quoted, got, strlen(got)));
}

/* ---- Model: vocabulary and merges ------------------------------------------------------------ */

static enum ek_status read_vocab(const struct reader *r, const json_t *vocab)
{
    const char *token;
    json_t *value;
    char quoted[EK_QUOTE_LEN];

    json_object_foreach((json_t *)vocab, token, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= (json_int_t)r->t->bpe.vocab.n)
            return ek_error(EK_EFORMAT,
                            "%s: model.vocab['%s'] must be a whole number from 0 to %u, got %lld",
                            r->where, ek_quote(quoted, token, strlen(token)), r->t->bpe.vocab.n - 1,
                            (long long)id);
        EK_TRY(ek_vocab_set(&r->t->bpe.vocab, (uint32_t)id, token, strlen(token), r->where));
    }
    return EK_OK;
}

/* "left right" or ["left", "right"]. */
static enum ek_status read_merge(const struct reader *r, const json_t *m, uint32_t rank)
{
    const char *left = json_string_value(m), *right = NULL;
    size_t n = 0;

    if (left != NULL) {
        right = strchr(left, ' ');
        n = right ? (size_t)(right - left) : 0;
        right = right && strchr(right + 1, ' ') == NULL ? right + 1 : NULL;
    } else if (json_array_size(m) == 2) {
        left = json_string_value(json_array_get(m, 0));
        right = json_string_value(json_array_get(m, 1));
        n = left ? strlen(left) : 0;
    }
    if (left == NULL || right == NULL)
        return ek_error(EK_EFORMAT, "%s: model.merges[%u] must be \"a b\" or [\"a\", \"b\"]",
                        r->where, rank);
    return ek_merges_add(&r->t->bpe.merges, &r->t->bpe.vocab, rank, left, n, right, strlen(right),
                         r->where);
}

static enum ek_status read_merges(const struct reader *r, const json_t *merges)
{
    size_t n = json_array_size(merges);

    if (n > EK_MERGES_MAX)
        return ek_error(EK_EFORMAT, "%s: %zu merges, at most %zu", r->where, n, EK_MERGES_MAX);
    EK_TRY(ek_merges_init(&r->t->bpe.merges, n));
    for (size_t i = 0; i < n; i++)
        EK_TRY(read_merge(r, json_array_get(merges, i), (uint32_t)i));
    return EK_OK;
}

/* Options that change what BPE does and that no byte-level vocabulary uses. */
static enum ek_status check_model_options(const struct reader *r, const json_t *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const struct ek_json_at at = AT(r, "model.");
    double dropout = 0;
    bool fallback = false;
    const char *s;

    for (size_t i = 0; i < EK_ARRAY_LEN(affixes); i++) {
        s = "";
        EK_TRY(ek_json_opt_string(model, at, affixes[i], &s));
        if (s[0] != '\0')
            return unsupported(r, affixes[i], s);
    }
    EK_TRY(ek_json_opt_real(model, at, "dropout", 0, 1, &dropout));
    if (dropout > 0)
        return unsupported(r, "model.dropout", "> 0");
    EK_TRY(ek_json_opt_bool(model, at, "byte_fallback", &fallback));
    if (fallback)
        return unsupported(r, "model.byte_fallback", "true");
    EK_TRY(ek_json_opt_bool(model, at, "fuse_unk", &r->t->bpe.fuse_unk));
    return ek_json_opt_bool(model, at, "ignore_merges", &r->t->bpe.ignore_merges);
}

static enum ek_status read_model(const struct reader *r, const json_t *root, size_t n_ids)
{
    const struct ek_json_at at = AT(r, "model.");
    const json_t *model, *vocab, *merges;
    const char *type = "BPE", *unk = NULL; /* files of old have no type */

    EK_TRY(ek_json_object(root, AT(r, ""), "model", &model));
    EK_TRY(ek_json_opt_string(model, at, "type", &type));
    if (strcmp(type, "BPE") != 0)
        return unsupported(r, "model.type", type);
    EK_TRY(check_model_options(r, model));
    EK_TRY(ek_json_object(model, at, "vocab", &vocab));
    EK_TRY(ek_json_array(model, at, "merges", &merges));
    EK_TRY(ek_vocab_init(&r->t->bpe.vocab, n_ids));
    EK_TRY(read_vocab(r, vocab));
    EK_TRY(read_merges(r, merges));
    EK_TRY(ek_json_opt_string(model, at, "unk_token", &unk));
    if (unk != NULL)
        r->t->bpe.unk = ek_vocab_find_written(&r->t->bpe.vocab, unk, strlen(unk));
    return ek_bpe_index_bytes(&r->t->bpe, r->where);
}

/* ---- Added tokens ---------------------------------------------------------------------------- */

/* An added token may be in the vocabulary too, under the same id; nothing else may be there. */
static enum ek_status check_added_id(const struct reader *r, const char *text, size_t n, int32_t id)
{
    const struct ek_vocab *v = &r->t->bpe.vocab;
    const struct ek_added_token *before = ek_added_find(&r->t->added, text, n);
    int32_t known = before ? before->id : ek_vocab_find_written(v, text, n);
    bool taken = (uint32_t)id < v->n && v->tokens[id].present;
    char quoted[EK_QUOTE_LEN];

    if (known == id || (known < 0 && !taken))
        return EK_OK;
    ek_quote(quoted, text, n);
    if (known >= 0)
        return ek_error(EK_EFORMAT, "%s: added token '%s' has id %d, but it is token %d already",
                        r->where, quoted, id, known);
    return ek_error(EK_EFORMAT, "%s: added token '%s' has id %d, which another token has too",
                    r->where, quoted, id);
}

static enum ek_status read_added_token(const struct reader *r, const json_t *a)
{
    const struct ek_json_at at = AT(r, "added_tokens[].");
    struct ek_added_token token = {0};
    const char *text;
    uint64_t id;

    EK_TRY(ek_json_string(a, at, "content", &text));
    EK_TRY(ek_json_u64(a, at, "id", 0, EK_TOKENS_MAX - 1, &id));
    EK_TRY(ek_json_opt_bool(a, at, "special", &token.special));
    token.normalized = !token.special;
    EK_TRY(ek_json_opt_bool(a, at, "normalized", &token.normalized));
    EK_TRY(ek_json_opt_bool(a, at, "lstrip", &token.lstrip));
    EK_TRY(ek_json_opt_bool(a, at, "rstrip", &token.rstrip));
    EK_TRY(ek_json_opt_bool(a, at, "single_word", &token.single_word));
    token.text = (char *)text; /* copied by ek_added_put */
    token.n = (uint32_t)strlen(text);
    token.id = (int32_t)id;
    EK_TRY(check_added_id(r, text, token.n, token.id));
    return ek_tokenizer_add(r->t, &token, r->where);
}

static enum ek_status read_added(const struct reader *r, const json_t *added)
{
    for (size_t i = 0; i < json_array_size(added); i++)
        EK_TRY(read_added_token(r, json_array_get(added, i)));
    return ek_tokenizer_check_ids(r->t, r->where);
}

/* Number of ids: one above the highest, in the vocabulary or added. */
static enum ek_status count_ids(const struct reader *r, const json_t *root, const json_t *added,
                                size_t *out)
{
    json_int_t highest = -1, id;
    const char *token;
    json_t *value;
    size_t i;

    json_object_foreach(json_object_get(json_object_get(root, "model"), "vocab"), token,
                        value) if ((id = json_integer_value(value)) > highest) highest = id;
    json_array_foreach((json_t *)added, i, value)
    {
        id = json_integer_value(json_object_get(value, "id"));
        highest = id > highest ? id : highest;
    }
    if (highest >= (json_int_t)EK_TOKENS_MAX)
        return ek_error(EK_EFORMAT, "%s: a token has id %lld, the highest supported is %zu",
                        r->where, (long long)highest, EK_TOKENS_MAX - 1);
    *out = (size_t)(highest + 1);
    return EK_OK;
}

/* ---- Normaliser, pre-tokenizer, decoder ------------------------------------------------------ */

/* Items of a Sequence, or NULL when v is none. */
static const json_t *sequence(const json_t *v, const char *type, const char *items)
{
    return strcmp(type, "Sequence") == 0 ? json_object_get(v, items) : NULL;
}

static enum ek_status read_normalizer(const struct reader *r, const json_t *v, int depth)
{
    static const char *const names[] = {
        [EK_NFC] = "NFC", [EK_NFD] = "NFD", [EK_NFKC] = "NFKC", [EK_NFKD] = "NFKD"};
    struct ek_normalizer *nz = &r->t->normalizer;
    const json_t *items;
    const char *type;

    if (v == NULL || json_is_null(v))
        return EK_OK;
    EK_TRY(ek_json_string(v, AT(r, "normalizer."), "type", &type));
    if ((items = sequence(v, type, "normalizers")) != NULL && depth < NESTING) {
        for (size_t i = 0; i < json_array_size(items); i++)
            EK_TRY(read_normalizer(r, json_array_get(items, i), depth + 1));
        return EK_OK;
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(names) && nz->n < EK_NORMALIZERS_MAX; i++) {
        if (strcmp(type, names[i]) == 0) {
            nz->forms[nz->n++] = (enum ek_normal_form)i;
            return EK_OK;
        }
    }
    return unsupported(r, "normalizer", type);
}

static enum ek_status read_split(const struct reader *r, const json_t *v)
{
    const struct ek_json_at at = AT(r, "pre_tokenizer.");
    const json_t *pattern, *literal;
    const char *behavior, *text;
    bool invert = false, removed;

    EK_TRY(ek_json_object(v, at, "pattern", &pattern));
    EK_TRY(ek_json_string(v, at, "behavior", &behavior));
    EK_TRY(ek_json_opt_bool(v, at, "invert", &invert));
    removed = strcmp(behavior, "Removed") == 0;
    if (!removed && strcmp(behavior, "Isolated") != 0)
        return unsupported(r, "pre_tokenizer.behavior", behavior);
    if ((literal = json_object_get(pattern, "String")) != NULL) {
        EK_TRY(ek_json_string(pattern, at, "String", &text));
        return ek_pretokenizer_literal(&r->t->pre, text, json_string_length(literal), removed,
                                       invert, r->where);
    }
    EK_TRY(ek_json_string(pattern, at, "Regex", &text));
    return ek_pretokenizer_regex(&r->t->pre, text, strlen(text), removed, invert, r->where);
}

static enum ek_status read_digits(const struct reader *r, const json_t *v)
{
    bool individual = false;
    const char *pattern;

    EK_TRY(ek_json_opt_bool(v, AT(r, "pre_tokenizer."), "individual_digits", &individual));
    pattern = individual ? "\\p{N}" : "\\p{N}+";
    return ek_pretokenizer_regex(&r->t->pre, pattern, strlen(pattern), false, false, r->where);
}

static enum ek_status read_byte_level(const struct reader *r, const json_t *v)
{
    const struct ek_json_at at = AT(r, "pre_tokenizer.");
    bool prefix = true, regex = true; /* the library's defaults */

    EK_TRY(ek_json_opt_bool(v, at, "add_prefix_space", &prefix));
    EK_TRY(ek_json_opt_bool(v, at, "use_regex", &regex));
    if (prefix)
        r->t->pre.prefix_at = r->t->pre.n;
    if (!regex)
        return EK_OK;
    return ek_pretokenizer_regex(&r->t->pre, ek_gpt2_pattern, strlen(ek_gpt2_pattern), false, false,
                                 r->where);
}

/* *byte_level: ByteLevel has come; it must come once, and last. */
static enum ek_status read_pre_tokenizer(const struct reader *r, const json_t *v, int depth,
                                         bool *byte_level)
{
    static const struct {
        const char *type;
        enum ek_status (*read)(const struct reader *r, const json_t *v);
    } kinds[] = {{"Split", read_split}, {"Digits", read_digits}, {"ByteLevel", read_byte_level}};
    const json_t *items;
    const char *type;

    EK_TRY(ek_json_string(v, AT(r, "pre_tokenizer."), "type", &type));
    if ((items = sequence(v, type, "pretokenizers")) != NULL && depth < NESTING) {
        for (size_t i = 0; i < json_array_size(items); i++)
            EK_TRY(read_pre_tokenizer(r, json_array_get(items, i), depth + 1, byte_level));
        return EK_OK;
    }
    if (*byte_level)
        return unsupported(r, "pre_tokenizer behind ByteLevel", type);
    for (size_t i = 0; i < EK_ARRAY_LEN(kinds); i++) {
        if (strcmp(type, kinds[i].type) == 0) {
            *byte_level = kinds[i].read == read_byte_level;
            return kinds[i].read(r, v);
        }
    }
    return unsupported(r, "pre_tokenizer", type);
}

static enum ek_status read_splits(const struct reader *r, const json_t *root)
{
    const json_t *v;
    bool byte_level = false;

    EK_TRY(ek_json_object(root, AT(r, ""), "pre_tokenizer", &v));
    EK_TRY(read_pre_tokenizer(r, v, 0, &byte_level));
    return byte_level ? EK_OK : unsupported(r, "pre_tokenizer", "(anything but byte-level)");
}

static enum ek_status check_decoder(const struct reader *r, const json_t *v, int depth)
{
    const json_t *items;
    const char *type;

    EK_TRY(ek_json_string(v, AT(r, "decoder."), "type", &type));
    if ((items = sequence(v, type, "decoders")) != NULL && json_array_size(items) == 1 &&
        depth < NESTING)
        return check_decoder(r, json_array_get(items, 0), depth + 1);
    return strcmp(type, "ByteLevel") == 0 ? EK_OK : unsupported(r, "decoder", type);
}

/* ---- Post-processor: does it put bos first? -------------------------------------------------- */

static void read_template(const struct reader *r, const json_t *v)
{
    const json_t *first = json_array_get(json_object_get(v, "single"), 0);
    const char *id =
        json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
    int32_t token = id ? ek_tokenizer_id(r->t, id) : -1;

    if (token < 0)
        return;
    r->t->bos = token;
    r->t->adds_bos = true;
}

static enum ek_status read_post_processor(const struct reader *r, const json_t *v, int depth)
{
    const json_t *items;
    const char *type;

    if (v == NULL || json_is_null(v))
        return EK_OK;
    EK_TRY(ek_json_string(v, AT(r, "post_processor."), "type", &type));
    if ((items = sequence(v, type, "processors")) != NULL && depth < NESTING) {
        for (size_t i = 0; i < json_array_size(items); i++)
            EK_TRY(read_post_processor(r, json_array_get(items, i), depth + 1));
        return EK_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0)
        read_template(r, v);
    else if (strcmp(type, "ByteLevel") != 0)
        return unsupported(r, "post_processor", type);
    return EK_OK;
}

static enum ek_status read_all(const struct reader *r, const json_t *root)
{
    const json_t *added = json_object_get(root, "added_tokens"), *decoder;
    size_t n_ids = 0;

    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: must be a JSON object", r->where);
    if (added != NULL && !json_is_null(added))
        EK_TRY(ek_json_array(root, AT(r, ""), "added_tokens", &added));
    EK_TRY(count_ids(r, root, added, &n_ids));
    EK_TRY(read_model(r, root, n_ids));
    EK_TRY(read_normalizer(r, json_object_get(root, "normalizer"), 0));
    EK_TRY(read_added(r, added)); /* behind the normaliser, which some of them pass through */
    EK_TRY(read_splits(r, root));
    EK_TRY(ek_json_object(root, AT(r, ""), "decoder", &decoder));
    EK_TRY(check_decoder(r, decoder, 0));
    return read_post_processor(r, json_object_get(root, "post_processor"), 0);
}

enum ek_status ek_tokenizer_from_json(const char *text, size_t n, const char *where,
                                      struct ek_tokenizer **out)
{
    struct reader r = {.where = where};
    json_t *root;
    enum ek_status st;

    if (n > EK_TOKENIZER_FILE_MAX)
        return ek_error(EK_EFORMAT, "%s: %zu bytes, at most %zu", where, n, EK_TOKENIZER_FILE_MAX);
    EK_TRY(ek_json_parse(text, n, where, &root));
    if ((r.t = ek_tokenizer_new()) == NULL) {
        json_decref(root);
        return EK_ENOMEM;
    }
    st = read_all(&r, root);
    json_decref(root);
    if (st != EK_OK) {
        ek_tokenizer_free(r.t);
        return st;
    }
    *out = r.t;
    return EK_OK;
}
