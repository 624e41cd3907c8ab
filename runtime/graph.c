/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode steps as graphs: the first run of a set of arguments is eager (it lets the backend grow
 * its scratch), the second is captured, every later one is replayed. What changes from step to step
 * lies in device memory at addresses that the key holds.
 */
#include "runtime/stage.h"

#include <stdlib.h>
#include <string.h>

#define MAX_GRAPHS 64

struct graph_key {
    uint32_t n_seqs, max_kv, n_rows;
    const int32_t *tokens, *rows;
    const void *in;
    void *out;
};

struct graph_entry {
    struct graph_key key;
    struct ek_graph *graph; /* NULL: seen once */
    uint64_t used;
};

struct stage_graphs {
    struct graph_entry entries[MAX_GRAPHS];
    size_t n;
    uint64_t clock;
    uint64_t workspace; /* scratch at the last look: graphs hold its addresses */
    bool off;           /* the backend could not capture this stage */
};

static bool same(const struct graph_key *a, const struct graph_key *b)
{
    return a->n_seqs == b->n_seqs && a->max_kv == b->max_kv && a->n_rows == b->n_rows &&
           a->tokens == b->tokens && a->rows == b->rows && a->in == b->in && a->out == b->out;
}

static void drop_all(struct ek_stage *s)
{
    for (size_t i = 0; i < s->graphs->n; i++)
        if (s->graphs->entries[i].graph != NULL)
            s->dev->ops->graph_free(s->graphs->entries[i].graph);
    s->graphs->n = 0;
}

void stage_graphs_free(struct ek_stage *s)
{
    if (s->graphs == NULL)
        return;
    drop_all(s);
    free(s->graphs);
    s->graphs = NULL;
}

/* The entry of a key, or a fresh one in place of the one that was used longest ago. */
static struct graph_entry *find(struct ek_stage *s, const struct graph_key *key, bool *fresh)
{
    struct stage_graphs *g = s->graphs;
    struct graph_entry *oldest = &g->entries[0];

    *fresh = false;
    for (size_t i = 0; i < g->n; i++) {
        if (same(&g->entries[i].key, key))
            return &g->entries[i];
        if (g->entries[i].used < oldest->used)
            oldest = &g->entries[i];
    }
    if (g->n < MAX_GRAPHS)
        oldest = &g->entries[g->n++];
    else if (oldest->graph != NULL)
        s->dev->ops->graph_free(oldest->graph);
    *oldest = (struct graph_entry){.key = *key};
    *fresh = true;
    return oldest;
}

/* Scratch that was allocated anew since a capture leaves graphs with stale addresses. */
static void refresh(struct ek_stage *s)
{
    struct ek_usage use[EK_N_TAGS];

    s->dev->ops->usage(s->dev, use);
    if (use[EK_TAG_WORKSPACE].now != s->graphs->workspace)
        drop_all(s);
    s->graphs->workspace = use[EK_TAG_WORKSPACE].now;
}

static enum ek_status capture(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                              void *out, const int32_t *rows, uint32_t n_rows,
                              struct ek_graph **graph)
{
    const struct ek_ops *ops = s->dev->ops;
    enum ek_status st, end;

    EK_TRY(ops->graph_begin(s->dev));
    st = stage_run_eager(s, batch, in, out, rows, n_rows);
    end = ops->graph_end(s->dev, graph);
    if (st != EK_OK && end == EK_OK) {
        ops->graph_free(*graph);
        *graph = NULL;
    }
    return st != EK_OK ? st : end;
}

enum ek_status stage_graphs_run(struct ek_stage *s, const struct ek_batch *batch, const void *in,
                                void *out, const int32_t *rows, uint32_t n_rows)
{
    struct graph_key key = {.n_seqs = batch->n_seqs,
                            .max_kv = batch->max_kv,
                            .n_rows = n_rows,
                            .tokens = batch->tokens,
                            .rows = rows,
                            .in = in,
                            .out = out};
    struct graph_entry *e;
    bool fresh;
    enum ek_status st;

    if (s->graphs == NULL && (s->graphs = ek_calloc(1, sizeof(*s->graphs))) == NULL)
        return EK_ENOMEM;
    if (s->graphs->off)
        return stage_run_eager(s, batch, in, out, rows, n_rows);
    refresh(s);
    e = find(s, &key, &fresh);
    e->used = ++s->graphs->clock;
    if (fresh) {
        st = stage_run_eager(s, batch, in, out, rows, n_rows);
        if (st != EK_OK)
            e->key.tokens = NULL; /* its scratch has not grown: not seen */
        return st;
    }
    if (e->graph == NULL) {
        st = capture(s, batch, in, out, rows, n_rows, &e->graph);
        if (st == EK_EUNSUPPORTED) {
            s->graphs->off = true;
            return stage_run_eager(s, batch, in, out, rows, n_rows);
        }
        EK_TRY(st);
    }
    return s->dev->ops->graph_launch(s->dev, e->graph);
}
