/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "tests/planner/small.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* Four layers between embedding and head on two fast and one slow card. */
const char small[] =
    "{'format':'evenkeel-costs','version':1,'name':'small',"
    "'workload':{'batch':2,'prompt':64,'generate':16,'prefill_chunk':32},"
    "'classes':[{'name':'fast','count':2,'memory':1000,'overhead':10},"
    "           {'name':'slow','memory':'2000B','overhead':10}],"
    "'modules':[{'name':'model.embed_tokens','kind':'embed','weights':100,'boundary':8},"
    " {'name':'model.layers.0','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.layers.1','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.layers.2','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.layers.3','signature':'layer','weights':200,'kv':1,'boundary':8},"
    " {'name':'model.norm','kind':'norm','weights':1,'boundary':8},"
    " {'name':'lm_head','kind':'head','weights':100,'tied_to':'model.embed_tokens'}],"
    "'times':["
    " {'class':'fast','signature':'model.embed_tokens','prefill':0.001,'decode':0.0001},"
    " {'class':'fast','signature':'layer','prefill':[[1,1,0.001],[32,32,0.01],[32,64,0.012]],"
    "  'decode':[[1,1,0.001],[4,80,0.0015]]},"
    " {'class':'fast','signature':'model.norm','prefill':0.0001,'decode':0.0001},"
    " {'class':'fast','signature':'lm_head','prefill':0.001,'decode':0.0003},"
    " {'class':'slow','signature':'model.embed_tokens','prefill':0.002,'decode':0.0002},"
    " {'class':'slow','signature':'layer','prefill':0.5,'decode':0.004},"
    " {'class':'slow','signature':'model.norm','prefill':0.0002,'decode':0.0002},"
    " {'class':'slow','signature':'lm_head','prefill':0.002,'decode':0.0006}],"
    "'links':[{'from':'fast','to':'fast','alpha_s':1e-5,'beta_bytes_s':1e9},"
    " {'from':'fast','to':'slow','alpha_s':2e-5,'beta_bytes_s':5e8},"
    " {'from':'slow','to':'fast','alpha_s':2e-5,'beta_bytes_s':5e8}]}";

json_t *parse(const char *text)
{
    char *copy = ek_strdup(text);
    json_t *v = NULL;

    for (char *p = copy; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    ck_assert_msg(ek_json_parse(copy, strlen(copy), "test", &v) == EK_OK, "%s", ek_last_error());
    free(copy);
    return v;
}

struct ek_costs *small_costs(void)
{
    json_t *root = parse(small);
    struct ek_costs *c = NULL;

    ck_assert_msg(ek_costs_from_json(root, "small", &c) == EK_OK, "%s", ek_last_error());
    json_decref(root);
    return c;
}

struct ek_request request_for(const struct ek_costs *c)
{
    struct ek_request r = EK_REQUEST_INIT;

    r.workload = c->workload;
    return r;
}

struct ek_solution *solve(const struct ek_costs *c, const struct ek_request *r)
{
    struct ek_solution *s = NULL;

    ck_assert_msg(ek_solve(c, r, &s) == EK_OK, "%s", ek_last_error());
    ck_assert(s->proven);
    return s;
}

char *with(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);

    ck_assert_msg(at != NULL, "the test looks for %s in vain", from);
    return ek_asprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}
