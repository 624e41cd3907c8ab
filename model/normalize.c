/* SPDX-License-Identifier: Apache-2.0
 *
 * Unicode normal forms, by utf8proc. ASCII is its own normal form and is passed through.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static const utf8proc_option_t options[] = {
    [EK_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
    [EK_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
    [EK_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
    [EK_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
};

static bool is_ascii(const char *s, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++)
        any |= (uint8_t)s[i];
    return any < 0x80;
}

enum ek_status ek_normalize(const struct ek_normalizer *nz, const char *s, size_t n,
                            const char **out, size_t *n_out, char **owned)
{
    char *text = NULL;
    utf8proc_uint8_t *next;
    utf8proc_ssize_t len = (utf8proc_ssize_t)n;

    if (!is_ascii(s, n)) {
        for (size_t i = 0; i < nz->n; i++) {
            len = utf8proc_map((const utf8proc_uint8_t *)(text ? text : s), len, &next,
                               options[nz->forms[i]]);
            free(text);
            if (len < 0)
                return ek_error(EK_EFORMAT, "text cannot be normalised: %s", utf8proc_errmsg(len));
            text = (char *)next;
        }
    }
    *owned = text;
    *out = text ? text : s;
    *n_out = (size_t)len;
    return EK_OK;
}
