/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8 as the tokenizers see it, and the byte-level alphabet: 256 printable characters, one a
 * byte, in which vocabularies are written.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define REPLACEMENT "\xef\xbf\xbd"
#define OUTPUT_MAX  ((size_t)1 << 30)

enum ek_status ek_buffer_add(struct ek_buffer *b, const char *s, size_t n)
{
    void *data = b->data;
    enum ek_status st = ek_grow(&data, &b->cap, b->n + n + 1, 1, OUTPUT_MAX);

    b->data = data;
    if (st != EK_OK)
        return st;
    if (n > 0)
        memcpy(b->data + b->n, s, n);
    b->n += n;
    b->data[b->n] = '\0';
    return EK_OK;
}

void ek_buffer_free(struct ek_buffer *b)
{
    free(b->data);
    *b = (struct ek_buffer){0};
}

/* What may follow a first byte: how many bytes, and the range of the first of them. */
static bool lead(uint8_t b, int *more, uint8_t *low, uint8_t *high)
{
    *low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
    *high = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
    *more = b < 0xe0 ? 1 : b < 0xf0 ? 2 : 3;
    return b >= 0xc2 && b <= 0xf4;
}

int ek_utf8_next(const char *s, size_t n, uint32_t *code)
{
    const uint8_t *p = (const uint8_t *)s;
    uint8_t low, high;
    int more;

    *code = p[0];
    if (p[0] < 0x80)
        return 1;
    if (!lead(p[0], &more, &low, &high))
        return -1;
    *code = p[0] & (0x3fu >> more);
    for (int i = 1; i <= more; i++) {
        if ((size_t)i == n)
            return 0;
        if (p[i] < low || p[i] > high)
            return -i;
        *code = *code << 6 | (p[i] & 0x3f);
        low = 0x80;
        high = 0xbf;
    }
    return more + 1;
}

enum ek_status ek_utf8_repair(struct ek_buffer *out, const char *s, size_t n, bool final,
                              size_t *taken)
{
    size_t i = 0, good = 0; /* s[good..i) is well-formed and not yet copied */
    uint32_t code;

    while (i < n) {
        int k = ek_utf8_next(s + i, n - i, &code);
        if (k > 0) {
            i += (size_t)k;
            continue;
        }
        if (k == 0 && !final)
            break;
        EK_TRY(ek_buffer_add(out, s + good, i - good));
        EK_TRY(ek_buffer_add(out, REPLACEMENT, sizeof(REPLACEMENT) - 1));
        i += k == 0 ? n - i : (size_t)-k;
        good = i;
    }
    EK_TRY(ek_buffer_add(out, s + good, i - good));
    *taken = i;
    return EK_OK;
}

bool ek_utf8_valid(const char *s, size_t n)
{
    uint32_t code;
    int k;

    for (size_t i = 0; i < n; i += (size_t)k)
        if ((k = ek_utf8_next(s + i, n - i, &code)) <= 0)
            return false;
    return true;
}

bool ek_is_white_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

bool ek_is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
               (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
               (c >= 0x1f170 && c <= 0x1f189);
    }
}

size_t ek_leading_space(const char *s, size_t n)
{
    size_t i = 0;
    uint32_t code;
    int k;

    while (i < n && (k = ek_utf8_next(s + i, n - i, &code)) > 0 && ek_is_white_space(code))
        i += (size_t)k;
    return i;
}

size_t ek_trailing_space(const char *s, size_t n)
{
    size_t end = n, i;
    uint32_t code;

    while (end > 0) {
        for (i = end - 1; i > 0 && ((uint8_t)s[i] & 0xc0) == 0x80;)
            i--;
        if (ek_utf8_next(s + i, end - i, &code) != (int)(end - i) || !ek_is_white_space(code))
            break;
        end = i;
    }
    return n - end;
}

/* The byte that a character of the byte-level alphabet stands for, or -1: printable Latin-1
 * characters stand for themselves, U+0100 and up for the other 68 bytes in ascending order. */
static int byte_of(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    if (c < 0x100 || c > 0x143)
        return -1;
    c -= 0x100;
    return (int)(c < 33 ? c : c < 67 ? c - 33 + 127 : 173);
}

bool ek_byte_level_bytes(const char *s, size_t n, char *out, size_t *n_out)
{
    size_t m = 0;
    uint32_t code;
    int k, b;

    for (size_t i = 0; i < n; i += (size_t)k) {
        if ((k = ek_utf8_next(s + i, n - i, &code)) <= 0 || (b = byte_of(code)) < 0)
            return false;
        out[m++] = (char)b;
    }
    *n_out = m;
    return true;
}

const char *ek_quote(char buf[EK_QUOTE_LEN], const char *s, size_t n)
{
    static const char tail[] = "...";
    size_t m = 0, i = 0;
    uint32_t code;

    while (i < n) {
        int k = ek_utf8_next(s + i, n - i, &code);
        size_t len = k > 0 ? (size_t)k : 1;
        if (m + len + sizeof(tail) > EK_QUOTE_LEN) {
            memcpy(buf + m, tail, sizeof(tail));
            return buf;
        }
        if (k <= 0 || code < 0x20 || code == 0x7f || (code >= 0x80 && code < 0xa0))
            buf[m++] = '?';
        else
            for (size_t j = 0; j < len; j++)
                buf[m++] = s[i + j];
        i += len;
    }
    buf[m] = '\0';
    return buf;
}
