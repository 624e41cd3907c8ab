/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Descriptions of devices that are not at hand: common cards, and the files that describe others.
 */
#include "planner/hardware.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_FILE  ((size_t)1 << 20)
#define MAX_CARDS 256

#define GIB EK_GIB
#define NVLINK(gb_s)                                                                               \
    .link_alpha = 11e-6, /* measured between H200s */ .link_beta = (gb_s)*1e9, .link = "NVLink"
#define PCIE(gb_s) .link_alpha = 15e-6, .link_beta = (gb_s)*1e9, .link = "PCIe"

/* Memory: what the driver reports, a little under the box's figure. Peaks: dense, without sparsity.
 * Links: one direction between two cards of a host, as such hosts are usually built. */
static const struct ek_card cards[] = {
    {.name = "t4",
     .memory = 15843721216,
     .overhead = 300 * EK_MIB,
     .bandwidth = 320e9,
     .peak_f32 = 8.1e12,
     .peak_f16 = 65e12,
     PCIE(12),
     .source = "NVIDIA T4 datasheet, 2019: 16 GB GDDR6, 320 GB/s, 65 TFLOPS FP16"},
    {.name = "rtx4090",
     .memory = 25393692672,
     .overhead = 450 * EK_MIB,
     .bandwidth = 1008e9,
     .peak_f32 = 82.6e12,
     .peak_f16 = 165.2e12,
     .peak_bf16 = 165.2e12,
     PCIE(20),
     .source = "NVIDIA Ada GPU architecture whitepaper: 24 GB, 1008 GB/s, 165.2 TFLOPS with FP32 "
               "accumulation"},
    {.name = "a10",
     .memory = 23609475072,
     .overhead = 450 * EK_MIB,
     .bandwidth = 600e9,
     .peak_f32 = 31.2e12,
     .peak_f16 = 125e12,
     .peak_bf16 = 125e12,
     PCIE(20),
     .source = "NVIDIA A10 datasheet: 24 GB, 600 GB/s, 125 TFLOPS"},
    {.name = "a40",
     .memory = 47692906496,
     .overhead = 450 * EK_MIB,
     .bandwidth = 696e9,
     .peak_f32 = 37.4e12,
     .peak_f16 = 149.7e12,
     .peak_bf16 = 149.7e12,
     PCIE(20),
     .source = "NVIDIA A40 datasheet: 48 GB, 696 GB/s, 149.7 TFLOPS"},
    {.name = "l4",
     .memory = 24152899584,
     .overhead = 450 * EK_MIB,
     .bandwidth = 300e9,
     .peak_f32 = 30.3e12,
     .peak_f16 = 121e12,
     .peak_bf16 = 121e12,
     PCIE(20),
     .source = "NVIDIA L4 datasheet: 24 GB, 300 GB/s, 121 TFLOPS dense"},
    {.name = "l40s",
     .memory = 47810936832,
     .overhead = 450 * EK_MIB,
     .bandwidth = 864e9,
     .peak_f32 = 91.6e12,
     .peak_f16 = 362e12,
     .peak_bf16 = 362e12,
     PCIE(22),
     .source = "NVIDIA L40S datasheet: 48 GB, 864 GB/s, 362 TFLOPS dense"},
    {.name = "a100-40",
     .memory = 42505207808,
     .overhead = 500 * EK_MIB,
     .bandwidth = 1555e9,
     .peak_f32 = 19.5e12,
     .peak_f16 = 312e12,
     .peak_bf16 = 312e12,
     NVLINK(240),
     .source = "NVIDIA A100 datasheet: 40 GB, 1555 GB/s, 312 TFLOPS, NVLink 600 GB/s both ways"},
    {.name = "a100-80",
     .memory = 85094825984,
     .overhead = 500 * EK_MIB,
     .bandwidth = 2039e9,
     .peak_f32 = 19.5e12,
     .peak_f16 = 312e12,
     .peak_bf16 = 312e12,
     NVLINK(240),
     .source =
         "NVIDIA A100 datasheet: 80 GB SXM, 2039 GB/s, 312 TFLOPS, NVLink 600 GB/s both ways"},
    {.name = "h100",
     .memory = 85017624576,
     .overhead = 550 * EK_MIB,
     .bandwidth = 3350e9,
     .peak_f32 = 66.9e12,
     .peak_f16 = 989e12,
     .peak_bf16 = 989e12,
     NVLINK(360),
     .source = "NVIDIA H100 datasheet: 80 GB SXM, 3.35 TB/s, 989 TFLOPS dense, NVLink 900 GB/s"},
    {.name = "h200",
     .memory = 150754820096,
     .overhead = 550 * EK_MIB,
     .bandwidth = 4800e9,
     .peak_f32 = 66.9e12,
     .peak_f16 = 989e12,
     .peak_bf16 = 989e12,
     NVLINK(360),
     .source = "NVIDIA H200 datasheet: 141 GB, 4.8 TB/s, 989 TFLOPS dense, NVLink 900 GB/s"},
    {.name = "b200",
     .memory = 191000000000,
     .overhead = 600 * EK_MIB,
     .bandwidth = 7700e9,
     .peak_f32 = 75e12,
     .peak_f16 = 2250e12,
     .peak_bf16 = 2250e12,
     NVLINK(720),
     .source =
         "NVIDIA HGX B200 datasheet: 180-192 GB, 7.7 TB/s, 2.25 PFLOPS dense, NVLink 1.8 TB/s"},
    {.name = "orin",
     .memory = 61 * GIB,
     .overhead = 300 * EK_MIB,
     .bandwidth = 204.8e9,
     .peak_f32 = 5.3e12,
     .peak_f16 = 42e12,
     .peak_bf16 = 42e12,
     PCIE(6),
     .shared = true,
     .source = "NVIDIA Jetson AGX Orin 64 GB datasheet: LPDDR5 204.8 GB/s, GPU 5.3 TFLOPS FP32, "
               "85 TOPS INT8 dense (half of that FP16), memory shared with the CPU"},
};

size_t ek_cards(const struct ek_card **out)
{
    *out = cards;
    return EK_ARRAY_LEN(cards);
}

/* ---- Files --------------------------------------------------------------------------------------
 */
static enum ek_status read_name(const json_t *o, struct ek_json_at at, const char *key, char *out,
                                size_t cap)
{
    const char *s;

    EK_TRY(ek_json_string(o, at, key, &s));
    if (*s == '\0' || strlen(s) >= cap || strpbrk(s, " ,;:=\"/") != NULL)
        return ek_error(EK_EFORMAT, "%s: %s%s must have 1 to %zu characters and no separator",
                        at.file, at.prefix, key, cap - 1);
    strcpy(out, s);
    return EK_OK;
}

static enum ek_status read_peaks(const json_t *o, struct ek_json_at at, struct ek_card *c)
{
    EK_TRY(ek_json_real(o, at, "peak_f32", 1e6, 1e18, &c->peak_f32));
    EK_TRY(ek_json_opt_real(o, at, "peak_f16", 1e6, 1e18, &c->peak_f16));
    EK_TRY(ek_json_opt_real(o, at, "peak_bf16", 1e6, 1e18, &c->peak_bf16));
    EK_TRY(ek_json_real(o, at, "bandwidth", 1e3, 1e18, &c->bandwidth));
    c->link_alpha = 15e-6;
    c->link_beta = 12e9;
    EK_TRY(ek_json_opt_real(o, at, "link_alpha_s", 0, 10, &c->link_alpha));
    return ek_json_opt_real(o, at, "link_beta_bytes_s", 1e3, 1e18, &c->link_beta);
}

static enum ek_status read_card(const json_t *o, const char *where, size_t i, struct ek_card *c)
{
    char prefix[32];
    struct ek_json_at at = {where, prefix};
    uint64_t bytes = 0;

    snprintf(prefix, sizeof(prefix), "cards[%zu].", i);
    if (!json_is_object(o))
        return ek_error(EK_EFORMAT, "%s: cards[%zu] must be an object", where, i);
    EK_TRY(read_name(o, at, "name", c->name, sizeof(c->name)));
    EK_TRY(ek_json_u64(o, at, "memory", 1, EK_PLAN_MAX_MEMORY, &c->memory));
    EK_TRY(ek_json_opt_u64(o, at, "overhead", 0, EK_PLAN_MAX_MEMORY, &bytes));
    c->overhead = bytes;
    EK_TRY(ek_json_opt_bool(o, at, "shared_memory", &c->shared));
    return read_peaks(o, at, c);
}

enum ek_status ek_cards_from_json(const json_t *root, const char *where, struct ek_card **out,
                                  size_t *n)
{
    struct ek_json_at at = {where, ""};
    const json_t *list;
    const char *format;
    uint64_t version;
    struct ek_card *c;
    size_t count;

    if (!json_is_object(root))
        return ek_error(EK_EFORMAT, "%s: not a JSON object", where);
    EK_TRY(ek_json_string(root, at, "format", &format));
    if (strcmp(format, "evenkeel-hardware") != 0)
        return ek_error(EK_EFORMAT, "%s: format must be \"evenkeel-hardware\", got \"%.40s\"",
                        where, format);
    EK_TRY(ek_json_u64(root, at, "version", 1, 1, &version));
    EK_TRY(ek_json_array(root, at, "cards", &list));
    count = json_array_size(list);
    if (count == 0 || count > MAX_CARDS)
        return ek_error(EK_EFORMAT, "%s: cards must have 1 to %d entries, got %zu", where,
                        MAX_CARDS, count);
    c = ek_calloc(count, sizeof(*c));
    if (c == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        enum ek_status st = read_card(json_array_get(list, i), where, i, &c[i]);
        for (size_t j = 0; st == EK_OK && j < i; j++)
            if (strcasecmp(c[i].name, c[j].name) == 0)
                st = ek_error(EK_EFORMAT, "%s: cards: \"%s\" is there twice", where, c[i].name);
        if (st != EK_OK) {
            free(c);
            return st;
        }
    }
    *out = c;
    *n = count;
    return EK_OK;
}

enum ek_status ek_cards_read(const char *path, struct ek_card **out, size_t *n)
{
    json_t *root;
    enum ek_status st;

    EK_TRY(ek_json_read(path, MAX_FILE, &root));
    st = ek_cards_from_json(root, path, out, n);
    json_decref(root);
    return st;
}

/* ---- "8x rtx4090, a100-40" ----------------------------------------------------------------------
 */
static const struct ek_card *find_card(const char *name, size_t len, const struct ek_card *more,
                                       size_t n_more)
{
    for (size_t i = 0; i < n_more; i++)
        if (strlen(more[i].name) == len && strncasecmp(more[i].name, name, len) == 0)
            return &more[i];
    for (size_t i = 0; i < EK_ARRAY_LEN(cards); i++)
        if (strlen(cards[i].name) == len && strncasecmp(cards[i].name, name, len) == 0)
            return &cards[i];
    return NULL;
}

enum ek_status ek_hardware_parse(const char *text, const struct ek_card *more, size_t n_more,
                                 struct ek_fleet *out)
{
    const char *p = text;
    uint32_t total = 0;

    memset(out, 0, sizeof(*out));
    for (;;) {
        unsigned long count = 1;
        size_t len;
        char *end;
        p += strspn(p, " ,;");
        if (*p == '\0')
            break;
        if (*p >= '0' && *p <= '9') {
            count = strtoul(p, &end, 10);
            if (*end == 'x' || *end == 'X' || *end == '*')
                p = end + 1 + strspn(end + 1, " ");
            else
                count = 1;
        }
        len = strcspn(p, " ,;");
        if (out->n == EK_FLEET_MAX || count == 0 || count > EK_PLAN_MAX_DEVICES ||
            (total += (uint32_t)count) > EK_PLAN_MAX_DEVICES)
            return ek_error(EK_EUSAGE, "hardware \"%s\": at most %d kinds and %d devices", text,
                            EK_FLEET_MAX, EK_PLAN_MAX_DEVICES);
        out->cards[out->n] = find_card(p, len, more, n_more);
        if (out->cards[out->n] == NULL)
            return ek_error(EK_EUSAGE,
                            "hardware \"%s\": no card \"%.*s\" is known; `evenkeel "
                            "hardware` lists them",
                            text, (int)len, p);
        out->counts[out->n++] = (uint32_t)count;
        p += len;
    }
    return out->n ? EK_OK : ek_error(EK_EUSAGE, "hardware \"%s\" names no card", text);
}
