/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan hardware: the cards that plans can be estimated for.
 */
#include "planner/commands.h"
#include "planner/hardware.h"

#include <string.h>

static const char *peak_text(char out[EK_UNIT_LEN], double flops)
{
    if (flops > 0)
        snprintf(out, EK_UNIT_LEN, "%.1f TF/s", flops / 1e12);
    return flops > 0 ? out : "-";
}

static void print_table(const struct ek_card *cards, size_t n)
{
    struct ek_table *t = ek_table_new("card|>memory|>bandwidth|>F32|>F16|>BF16|>link|datasheet");
    char m[EK_UNIT_LEN], b[EK_UNIT_LEN], l[EK_UNIT_LEN], p[3][EK_UNIT_LEN];

    for (size_t i = 0; i < n; i++)
        ek_table_row(t, "%s|%s|%s|%s|%s|%s|%s %s|%s", cards[i].name,
                     ek_format_bytes(m, cards[i].memory), ek_format_rate(b, cards[i].bandwidth),
                     peak_text(p[0], cards[i].peak_f32), peak_text(p[1], cards[i].peak_f16),
                     peak_text(p[2], cards[i].peak_bf16), cards[i].link,
                     ek_format_rate(l, cards[i].link_beta), cards[i].source);
    ek_table_print(t, stdout);
    ek_table_free(t);
}

static enum ek_status print_json(const struct ek_card *cards, size_t n)
{
    json_t *list = json_array(), *root;

    for (size_t i = 0; i < n; i++)
        json_array_append_new(
            list,
            json_pack("{s:s s:I s:I s:f s:f s:f s:f s:f s:f s:b s:s}", "name", cards[i].name,
                      "memory", (json_int_t)cards[i].memory, "overhead",
                      (json_int_t)cards[i].overhead, "bandwidth", cards[i].bandwidth, "peak_f32",
                      cards[i].peak_f32, "peak_f16",
                      cards[i].peak_f16 > 0 ? cards[i].peak_f16 : cards[i].peak_f32, "peak_bf16",
                      cards[i].peak_bf16 > 0 ? cards[i].peak_bf16 : cards[i].peak_f32,
                      "link_alpha_s", cards[i].link_alpha, "link_beta_bytes_s", cards[i].link_beta,
                      "shared_memory", cards[i].shared, "source", cards[i].source));
    root = json_pack("{s:s s:i s:o}", "format", "evenkeel-hardware", "version", 1, "cards", list);
    return ek_json_print(root);
}

static enum ek_status run(int argc, char **argv, int *code)
{
    const struct ek_card *cards;
    size_t n = ek_cards(&cards);

    (void)code;
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        puts("usage: evenkeel hardware [--json]\nLists the cards that --hardware knows.");
        return EK_OK;
    }
    if (argc > 1 && strcmp(argv[1], "--json") == 0)
        return print_json(cards, n);
    if (argc > 1)
        return ek_error(EK_EUSAGE, "hardware: unexpected argument \"%s\"", argv[1]);
    print_table(cards, n);
    return EK_OK;
}

const struct ek_command ek_command_hardware = {"hardware", "cards that plans can be estimated for",
                                               run};
