/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A device_map or an earlier plan against a fixed small problem, and descriptions of cards.
 */
#include "planner/device_map.h"
#include "planner/hardware.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char costs[] =
    "{\"format\":\"evenkeel-costs\",\"version\":1,"
    "\"classes\":[{\"name\":\"cuda\",\"count\":2,\"memory\":1000}],"
    "\"modules\":[{\"name\":\"model.embed_tokens\",\"kind\":\"embed\"},"
    "{\"name\":\"model.layers.0\"},{\"name\":\"model.layers.1\"},"
    "{\"name\":\"lm_head\",\"kind\":\"head\"}],"
    "\"times\":[{\"class\":\"cuda\",\"signature\":\"model.embed_tokens\",\"prefill\":1,"
    "\"decode\":1},{\"class\":\"cuda\",\"signature\":\"model.layers.0\",\"prefill\":1,"
    "\"decode\":1},{\"class\":\"cuda\",\"signature\":\"model.layers.1\",\"prefill\":1,"
    "\"decode\":1},{\"class\":\"cuda\",\"signature\":\"lm_head\",\"prefill\":1,\"decode\":1}]}";

static struct ek_problem *problem(void)
{
    static struct ek_costs *c;
    static struct ek_problem *p;
    struct ek_request r = EK_REQUEST_INIT;
    json_t *root;

    if (p)
        return p;
    if (ek_json_parse(costs, strlen(costs), "fixed", &root) != EK_OK ||
        ek_costs_from_json(root, "fixed", &c) != EK_OK || ek_problem_new(c, &r, 1, &p) != EK_OK)
        abort();
    json_decref(root);
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ek_assignment a;
    struct ek_assessment v;
    struct ek_card *cards = NULL;
    size_t n_cards;
    json_t *root;

    if (ek_json_parse((const char *)data, n, "fuzz", &root) != EK_OK)
        return 0;
    if (ek_assignment_from_json(problem(), root, "fuzz", false, &a) == EK_OK)
        ek_assess(problem(), &a, &v);
    if (ek_cards_from_json(root, "fuzz", &cards, &n_cards) == EK_OK)
        free(cards);
    json_decref(root);
    return 0;
}
