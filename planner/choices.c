/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What is decided beside the stages, each choice with a problem of its own: groups in flight, the
 * prefill chunk, one degree of tensor parallelism for engines that have but one.
 */
#include "planner/planner.h"

static bool about(const struct ek_request *r, enum ek_objective o)
{
    for (size_t i = 0; i < r->n_objectives; i++)
        if (r->objectives[i] == o)
            return true;
    return false;
}

static size_t micro_batch_choices(const struct ek_costs *c, const struct ek_request *r,
                                  uint32_t out[32])
{
    static const uint32_t usual[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
    uint32_t devices = ek_costs_devices(c), batch = r->workload.batch, last = 0;
    size_t n = 0;

    if (r->workload.micro_batches) {
        out[0] = r->workload.micro_batches < batch ? r->workload.micro_batches : batch;
        return 1;
    }
    for (size_t i = 0; i < EK_ARRAY_LEN(usual); i++) {
        uint32_t m = usual[i], size = (batch + m - 1) / m;
        if (m > 1 && (!about(r, EK_OBJ_THROUGHPUT) || m > batch || m > 2 * devices || size == last))
            continue;
        out[n++] = m;
        last = size;
    }
    return n;
}

/* The longest prefill step that a layer was measured with on any class; 0: times are constant. */
static uint32_t longest_step(const struct ek_costs *c)
{
    uint32_t most = 0;

    for (size_t m = 0; m < c->n_modules; m++)
        for (size_t i = 0; c->modules[m].kind == EK_MODULE_LAYER && i < c->n_times; i++)
            for (size_t k = 0; c->times[i].sig == c->modules[m].sig &&
                               !c->times[i].prefill.constant && k < c->times[i].prefill.n;
                 k++)
                if (c->times[i].prefill.rows[k].key.tokens > most)
                    most = c->times[i].prefill.rows[k].key.tokens;
    return most;
}

#define LEAST_CHUNK 64 /* who measured less says nothing of chunks */

/* Chunks of the prefill are chosen where the first objective is one of time, up to one that holds
 * all prompts, as long as the longest step that was measured; and where it is how much fits, which
 * is most with the shortest. */
static size_t chunk_choices(const struct ek_costs *c, const struct ek_request *r,
                            struct ek_choice out[8])
{
    static const uint32_t usual[] = {256, 1024, 2048, 4096, 8192};
    uint32_t prompt = ek_workload_prompt(&r->workload), most = longest_step(c);
    uint64_t all = (uint64_t)prompt * r->workload.batch;
    enum ek_objective first = r->objectives[0];
    bool fits = first == EK_OBJ_CONTEXT || first == EK_OBJ_BATCH;
    size_t n = 0;

    out[n++] = (struct ek_choice){.chunk = r->workload.prefill_chunk};
    if (r->workload.prefill_chunk || first == EK_OBJ_BALANCE)
        return n;
    out[0].chunk = most >= LEAST_CHUNK && most < EK_DEFAULT_CHUNK ? most : EK_DEFAULT_CHUNK;
    for (size_t i = 0; i < EK_ARRAY_LEN(usual); i++)
        if (usual[i] <= most && (i == 0 || (usual[i - 1] < all && !fits)))
            out[n++] = (struct ek_choice){.chunk = usual[i], .measured = usual[i] > out[0].chunk};
    if (!fits && prompt > EK_DEFAULT_CHUNK && prompt <= most &&
        prompt <= usual[EK_ARRAY_LEN(usual) - 1])
        out[n++] = (struct ek_choice){.chunk = prompt, .measured = true};
    return n;
}

static size_t degree_choices(const struct ek_costs *c, const struct ek_request *r,
                             uint32_t out[EK_PLAN_MAX_TP])
{
    size_t n = 0;

    if (r->tp || !r->one_degree) {
        out[0] = r->tp;
        return 1;
    }
    for (uint32_t tp = 1; tp <= EK_PLAN_MAX_TP; tp *= 2) {
        bool there = tp == 1;
        for (size_t i = 0; i < c->n_times && !there; i++)
            there = c->times[i].tp == tp;
        if (there)
            out[n++] = tp;
    }
    return n;
}

/* Is choice k of the chunks longer than the prompts of a group, and so was one before it? */
static bool repeated(const struct ek_request *r, const struct ek_choice *chunks, size_t k,
                     uint32_t micro_batches)
{
    const struct ek_workload *w = &r->workload;
    uint32_t prompts = (w->batch + micro_batches - 1) / micro_batches;
    uint32_t chunk = ek_chunk_of_group(w, chunks[k].chunk, prompts);

    if (r->objectives[0] == EK_OBJ_BATCH) /* how many prompts is to be found */
        return false;
    for (size_t i = 0; i < k; i++)
        if (ek_chunk_of_group(w, chunks[i].chunk, prompts) == chunk)
            return true;
    return false;
}

size_t ek_choices(const struct ek_costs *c, const struct ek_request *r,
                  struct ek_choice out[EK_MAX_CHOICES])
{
    struct ek_choice chunks[8];
    uint32_t counts[32], degrees[EK_PLAN_MAX_TP];
    size_t n_counts = micro_batch_choices(c, r, counts), n_chunks = chunk_choices(c, r, chunks);
    size_t n_degrees = degree_choices(c, r, degrees), n = 0;

    for (size_t d = 0; d < n_degrees; d++)
        for (size_t k = 0; k < n_chunks; k++)
            for (size_t i = 0; i < n_counts; i++) {
                if (repeated(r, chunks, k, counts[i]))
                    continue;
                out[n] = chunks[k];
                out[n].tp = degrees[d];
                out[n++].micro_batches = counts[i];
            }
    return n;
}

struct ek_request ek_request_with(const struct ek_request *r, const struct ek_choice *choice)
{
    struct ek_request q = *r;

    q.workload.prefill_chunk = choice->chunk;
    q.measured_chunk = choice->measured;
    q.tp = choice->tp;
    return q;
}
