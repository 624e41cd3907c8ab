/* SPDX-License-Identifier: Apache-2.0
 *
 * Drives the tokenizer for comparisons with other implementations.
 *
 *   tokenize encode|plain|decode|chat PATH < records
 *
 * A record is its length in bytes, a newline, and the bytes. encode (special tokens count) and
 * plain (they do not) print a text's ids on one line; decode prints the text of a record of ids,
 * as a record; chat prints the ids of a JSON array of {"role", "content"}.
 */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define RECORD_MAX   ((size_t)64 << 20)
#define MESSAGES_MAX 256

typedef enum ek_status record_fn(const struct ek_tokenizer *t, const char *text, size_t n);

static void print_ids(int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        printf(i ? " %d" : "%d", ids[i]);
    putchar('\n');
    free(ids);
}

static enum ek_status encode_with(const struct ek_tokenizer *t, const char *text, size_t n,
                                  int flags)
{
    int32_t *ids;
    size_t m;

    EK_TRY(ek_tokenizer_encode(t, text, n, flags, &ids, &m));
    print_ids(ids, m);
    return EK_OK;
}

static enum ek_status run_encode(const struct ek_tokenizer *t, const char *text, size_t n)
{
    return encode_with(t, text, n, EK_ENCODE_SPECIAL);
}

static enum ek_status run_plain(const struct ek_tokenizer *t, const char *text, size_t n)
{
    return encode_with(t, text, n, 0);
}

static enum ek_status run_decode(const struct ek_tokenizer *t, const char *text, size_t n)
{
    int32_t *ids = ek_calloc(n / 2 + 1, sizeof(*ids));
    size_t m = 0;
    char *end, *out;
    enum ek_status st;

    if (ids == NULL)
        return EK_ENOMEM;
    for (const char *s = text; m <= n / 2; s = end) {
        long id = strtol(s, &end, 10);
        if (end == s)
            break;
        ids[m++] = (int32_t)id;
    }
    if ((st = ek_tokenizer_decode(t, ids, m, false, &out)) == EK_OK) {
        printf("%zu\n%s", strlen(out), out);
        free(out);
    }
    free(ids);
    return st;
}

static enum ek_status run_chat(const struct ek_tokenizer *t, const char *text, size_t n)
{
    struct ek_message messages[MESSAGES_MAX];
    json_t *list;
    int32_t *ids;
    size_t m, i;
    enum ek_status st = EK_OK;

    EK_TRY(ek_json_parse(text, n, "messages", &list));
    m = json_array_size(list);
    for (i = 0; i < m && i < MESSAGES_MAX && st == EK_OK; i++) {
        const struct ek_json_at at = {.file = "messages", .prefix = ""};
        const json_t *item = json_array_get(list, i);
        st = ek_json_string(item, at, "role", &messages[i].role);
        if (st == EK_OK)
            st = ek_json_string(item, at, "content", &messages[i].content);
    }
    if (st == EK_OK)
        st = ek_chat_encode(t, messages, i, &ids, &n);
    json_decref(list);
    if (st == EK_OK)
        print_ids(ids, n);
    return st;
}

/* 1: a record, 0: the end, -1: neither. */
static int next_record(char **text, size_t *cap, size_t *n)
{
    void *p = *text;

    if (scanf("%zu", n) != 1)
        return feof(stdin) ? 0 : -1;
    if (getchar() != '\n' || *n > RECORD_MAX || ek_grow(&p, cap, *n + 1, 1, RECORD_MAX + 1))
        return -1;
    *text = p;
    (*text)[*n] = '\0';
    return fread(*text, 1, *n, stdin) == *n ? 1 : -1;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        record_fn *run;
    } modes[] = {
        {"encode", run_encode}, {"plain", run_plain}, {"decode", run_decode}, {"chat", run_chat}};
    record_fn *run = NULL;
    struct ek_tokenizer *t;
    char *text = NULL;
    size_t cap = 0, n;
    int got = 1;
    enum ek_status st;

    for (size_t i = 0; i < EK_ARRAY_LEN(modes); i++)
        if (argc == 3 && strcmp(argv[1], modes[i].name) == 0)
            run = modes[i].run;
    if (run == NULL) {
        fprintf(stderr, "usage: tokenize encode|plain|decode|chat PATH < records\n");
        return 2;
    }
    st = ek_tokenizer_open(argv[2], &t);
    while (st == EK_OK && (got = next_record(&text, &cap, &n)) > 0)
        st = run(t, text, n);
    if (got < 0)
        st = ek_error(EK_EUSAGE, "standard input: a record is LENGTH, newline, bytes");
    if (st != EK_OK)
        fprintf(stderr, "tokenize: %s\n", ek_last_error());
    else
        ek_tokenizer_free(t);
    free(text);
    return ek_exit_code(st);
}
