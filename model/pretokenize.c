/* SPDX-License-Identifier: Apache-2.0
 *
 * Pre-tokenizers: a sequence of splits, each run on every piece that the previous one left. The
 * regular expressions are Oniguruma's, as in the Hugging Face library, so that a checkpoint's
 * patterns mean here what they mean there.
 */
#define _GNU_SOURCE
#include "model/tokenizer_internal.h"

#include <oniguruma.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A search may backtrack this often, and this often more a byte: linear, whatever the pattern. */
#define RETRIES          100000u
#define RETRIES_PER_BYTE 100u
#define STACK_ENTRIES    (1u << 22)
#define PARSE_DEPTH      200

#define LIKE_QWEN(digits)                                                                          \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
/* Cased letters (tokenizer.json of DeepSeek LLM lists them one by one, GGUF files leave them out)
 */
#define CASED                                                                                      \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}" \
    "\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}"         \
    "\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}"  \
    "\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}"                 \
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}"                 \
    "\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}"         \
    "\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}"        \
    "\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}"                 \
    "\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}"         \
    "\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}"                   \
    "\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}"         \
    "\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}"                  \
    "\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}"                 \
    "\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}"                 \
    "\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}"           \
    "\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

const char ek_gpt2_pattern[] = GPT2;

static const struct ek_pre_family families[] = {
    {.name = "smollm", .patterns = {"\\p{N}", GPT2}},
    {.name = "starcoder", .patterns = {"\\p{N}", GPT2}},
    {.name = "gpt-2", .patterns = {GPT2}},
    {.name = "qwen2", .patterns = {LIKE_QWEN("\\p{N}")}, .nfc = true},
    {.name = "deepseek-r1-qwen", .patterns = {LIKE_QWEN("\\p{N}")}, .nfc = true},
    {.name = "llama-bpe",
     .patterns = {LIKE_QWEN("\\p{N}{1,3}")},
     .ignore_merges = true,
     .adds_bos = true},
    {.name = "llama3",
     .patterns = {LIKE_QWEN("\\p{N}{1,3}")},
     .ignore_merges = true,
     .adds_bos = true},
    {.name = "deepseek-llm",
     .patterns = {"[\\r\\n]", "\\s?[" CASED "]+",
                  "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}"
                  "\\x{3000}-\\x{3002}]+",
                  "\\s+$", "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+",
                  "\\p{N}"}},
    {.name = "deepseek-v3",
     .patterns = {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
                  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                  "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
                  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
};

const struct ek_pre_family *ek_pre_family_find(const char *name)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(families); i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    return NULL;
}

/* ---- Making one ------------------------------------------------------------------------------ */

void ek_pretokenizer_init(struct ek_pretokenizer *p)
{
    *p = (struct ek_pretokenizer){.prefix_at = SIZE_MAX};
}

void ek_pretokenizer_free(struct ek_pretokenizer *p)
{
    for (size_t i = 0; i < p->n; i++) {
        if (p->splits[i].regex != NULL)
            onig_free(p->splits[i].regex);
        free(p->splits[i].literal);
    }
    ek_pretokenizer_init(p);
}

static void start_onig(void)
{
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};

    onig_initialize(encodings, 1);
    onig_set_parse_depth_limit(PARSE_DEPTH);
}

static enum ek_status room(const struct ek_pretokenizer *p, size_t n, const char *where)
{
    if (p->n == EK_SPLITS_MAX)
        return ek_error(EK_EUNSUPPORTED, "%s: pre_tokenizer has more than %d splits", where,
                        EK_SPLITS_MAX);
    if (n == 0 || n > EK_PATTERN_BYTES_MAX)
        return ek_error(EK_EFORMAT, "%s: pre_tokenizer pattern has %zu bytes, must have 1 to %zu",
                        where, n, EK_PATTERN_BYTES_MAX);
    return EK_OK;
}

enum ek_status ek_pretokenizer_regex(struct ek_pretokenizer *p, const char *pattern, size_t n,
                                     bool removed, bool invert, const char *where)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const OnigUChar *s = (const OnigUChar *)pattern;
    OnigUChar text[ONIG_MAX_ERROR_MESSAGE_LEN];
    char quoted[EK_QUOTE_LEN];
    OnigErrorInfo info;
    regex_t *regex;
    int rc;

    EK_TRY(room(p, n, where));
    pthread_once(&once, start_onig);
    rc = onig_new(&regex, s, s + n, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT,
                  &info);
    if (rc != ONIG_NORMAL) {
        int len = onig_error_code_to_str(text, rc, &info);
        return ek_error(EK_EFORMAT, "%s: pre_tokenizer pattern does not compile: %s", where,
                        ek_quote(quoted, (const char *)text, (size_t)len));
    }
    p->splits[p->n++] = (struct ek_split){.regex = regex, .removed = removed, .invert = invert};
    return EK_OK;
}

enum ek_status ek_pretokenizer_literal(struct ek_pretokenizer *p, const char *text, size_t n,
                                       bool removed, bool invert, const char *where)
{
    char *copy;

    EK_TRY(room(p, n, where));
    if ((copy = ek_calloc(n, 1)) == NULL)
        return EK_ENOMEM;
    memcpy(copy, text, n);
    p->splits[p->n++] =
        (struct ek_split){.literal = copy, .n_literal = n, .removed = removed, .invert = invert};
    return EK_OK;
}

/* ---- Running it ------------------------------------------------------------------------------ */

struct run {
    const struct ek_pretokenizer *p;
    OnigRegion *region;
    OnigMatchParam *param;
    ek_piece_fn *emit;
    void *arg;
};

/* The next match at or after `from`; *start == n when there is none. */
static enum ek_status search(const struct run *r, const struct ek_split *split, const char *s,
                             size_t n, size_t from, size_t *start, size_t *stop)
{
    const OnigUChar *u = (const OnigUChar *)s;
    int rc;

    *start = *stop = n;
    if (split->regex == NULL) {
        const char *hit = memmem(s + from, n - from, split->literal, split->n_literal);
        if (hit != NULL) {
            *start = (size_t)(hit - s);
            *stop = *start + split->n_literal;
        }
        return EK_OK;
    }
    rc = onig_search_with_param(split->regex, u, u + n, u + from, u + n, r->region,
                                ONIG_OPTION_NONE, r->param);
    if (rc == ONIG_MISMATCH)
        return EK_OK;
    if (rc < 0)
        return ek_error(rc == ONIGERR_MEMORY ? EK_ENOMEM : EK_EFORMAT,
                        "tokenizer: a pre_tokenizer pattern backtracks too much on this text "
                        "(split %zu, %zu bytes)",
                        (size_t)(split - r->p->splits), n);
    *start = (size_t)r->region->beg[0];
    *stop = (size_t)r->region->end[0];
    return EK_OK;
}

static enum ek_status enter(const struct run *r, size_t level, const char *s, size_t n);

/* A match, or a gap between matches: on to the next split unless it is dropped. */
static enum ek_status piece(const struct run *r, size_t level, const char *s, size_t n, bool match)
{
    const struct ek_split *split = &r->p->splits[level];

    if (n == 0 || (split->removed && match != split->invert))
        return EK_OK;
    return enter(r, level + 1, s, n);
}

static size_t character(const char *s, size_t n)
{
    uint32_t code;
    int k = ek_utf8_next(s, n, &code);

    return k > 0 ? (size_t)k : 1;
}

/* Runs one split. An empty match directly behind the last match is passed over. */
static enum ek_status divide(const struct run *r, size_t level, const char *s, size_t n)
{
    size_t from = 0, done = 0, start, stop;
    bool matched = false;

    while (from <= n) {
        EK_TRY(search(r, &r->p->splits[level], s, n, from, &start, &stop));
        if (start == n)
            break;
        if (start == stop && (matched && stop == done)) {
            from = stop + character(s + stop, n - stop);
            continue;
        }
        EK_TRY(piece(r, level, s + done, start - done, false));
        EK_TRY(piece(r, level, s + start, stop - start, true));
        done = stop;
        matched = true;
        from = stop > start ? stop : stop + character(s + stop, n - stop);
    }
    return piece(r, level, s + done, n - done, false);
}

static enum ek_status with_prefix(const struct run *r, size_t level, const char *s, size_t n)
{
    char *text = ek_calloc(n + 1, 1);
    enum ek_status st;

    if (text == NULL)
        return EK_ENOMEM;
    text[0] = ' ';
    memcpy(text + 1, s, n);
    st = level == r->p->n ? r->emit(r->arg, text, n + 1) : divide(r, level, text, n + 1);
    free(text);
    return st;
}

static enum ek_status enter(const struct run *r, size_t level, const char *s, size_t n)
{
    if (level == r->p->prefix_at && s[0] != ' ')
        return with_prefix(r, level, s, n);
    return level == r->p->n ? r->emit(r->arg, s, n) : divide(r, level, s, n);
}

enum ek_status ek_pretokenize(const struct ek_pretokenizer *p, const char *s, size_t n,
                              ek_piece_fn *emit, void *arg)
{
    struct run r = {.p = p, .emit = emit, .arg = arg};
    unsigned long retries = RETRIES + RETRIES_PER_BYTE * n;
    enum ek_status st = EK_ENOMEM;

    if (n == 0)
        return EK_OK;
    r.region = onig_region_new();
    r.param = onig_new_match_param();
    if (r.region != NULL && r.param != NULL) {
        onig_initialize_match_param(r.param);
        onig_set_match_stack_limit_size_of_match_param(r.param, STACK_ENTRIES);
        onig_set_retry_limit_in_match_of_match_param(r.param, retries);
        onig_set_retry_limit_in_search_of_match_param(r.param, retries);
        st = enter(&r, 0, s, n);
    } else {
        (void)ek_error(EK_ENOMEM, "out of host memory");
    }
    if (r.param != NULL)
        onig_free_match_param(r.param);
    if (r.region != NULL)
        onig_region_free(r.region, 1);
    return st;
}
