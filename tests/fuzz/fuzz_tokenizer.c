/* SPDX-License-Identifier: Apache-2.0
 *
 * tokenizer.json (its key "config" stands for tokenizer_config.json) or a GGUF; then texts encoded
 * and decoded with whatever was accepted.
 */
#include "tests/fuzz/memfile.h"

#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define TAIL 96 /* bytes of the input that are a text too */

static void check_stream(const struct ek_tokenizer *t, const int32_t *ids, size_t n)
{
    struct ek_decoder *d = ek_decoder_new(t, false);
    const char *part, *at;
    char *whole;

    if (d == NULL || ek_tokenizer_decode(t, ids, n, false, &whole) != EK_OK)
        abort();
    at = whole;
    for (size_t i = 0; i <= n; i++) {
        if (i == n)
            part = ek_decoder_flush(d);
        else if (ek_decoder_push(d, ids[i], &part) != EK_OK)
            abort();
        if (strncmp(at, part, strlen(part)) != 0)
            abort(); /* streaming must give the same text */
        at += strlen(part);
    }
    if (*at != '\0' || !ek_utf8_valid(whole, strlen(whole)))
        abort();
    free(whole);
    ek_decoder_free(d);
}

static void check_text(const struct ek_tokenizer *t, const char *text, size_t n, int flags)
{
    int32_t *ids;
    size_t m;

    if (ek_tokenizer_encode(t, text, n, flags, &ids, &m) != EK_OK)
        return; /* a pattern that backtracks too much */
    for (size_t i = 0; i < m; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= ek_tokenizer_size(t))
            abort();
    check_stream(t, ids, m);
    free(ids);
}

static void use(const struct ek_tokenizer *t, const char *tail, size_t n)
{
    static const char text[] = "It's  12345 na\u00efve cafe\u0301\n\n\t\u6df1\u5ea6 \u3072"
                               "\U0001f469\u200d\U0001f467 <s><|im_start|>x = {1: \"a\"}; \r\n ";
    static const struct ek_message chat[] = {
        {"system", " s "}, {"user", "a"}, {"assistant", "b"}, {"user", "c\n"}};
    int32_t *ids, stops[4];
    size_t m;

    check_text(t, text, sizeof(text) - 1, EK_ENCODE_SPECIAL | EK_ENCODE_BOS);
    check_text(t, text, sizeof(text) - 1, 0);
    check_text(t, tail, n, EK_ENCODE_SPECIAL);
    (void)ek_chat_stops(t, stops, EK_ARRAY_LEN(stops));
    if (ek_chat_encode(t, chat, EK_ARRAY_LEN(chat), &ids, &m) == EK_OK)
        free(ids);
}

static enum ek_status open_json(const char *text, size_t n, struct ek_tokenizer **out)
{
    struct ek_tokenizer *t;
    json_t *root, *config;
    enum ek_status st;

    EK_TRY(ek_tokenizer_from_json(text, n, "fuzz", &t));
    if (ek_json_parse(text, n, "fuzz", &root) != EK_OK)
        abort();
    config = json_object_get(root, "config");
    st = config ? ek_tokenizer_apply_config(t, config, "fuzz") : EK_OK;
    json_decref(root);
    if (st == EK_OK)
        st = ek_chat_recognise(t);
    if (st != EK_OK)
        ek_tokenizer_free(t);
    else
        *out = t;
    return st;
}

static enum ek_status open_gguf(const uint8_t *data, size_t n, struct ek_tokenizer **out)
{
    struct memfile f;
    enum ek_status st;

    if (memfile_open(&f, data, n) != 0)
        return EK_EENV;
    st = ek_tokenizer_open(f.path, out);
    memfile_close(&f);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_tokenizer *t;
    size_t tail = n < TAIL ? n : TAIL;
    bool gguf = n > 4 && memcmp(data, "GGUF", 4) == 0;

    ek_set_quiet(true);
    if ((gguf ? open_gguf(data, n, &t) : open_json((const char *)data, n, &t)) != EK_OK)
        return 0;
    use(t, (const char *)data + n - tail, tail);
    ek_tokenizer_free(t);
    return 0;
}
