/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The usual recipes, re-implemented from their projects' documentation, so that a plan can say what
 * they would have cost on the same devices.
 */
#include "planner/planner.h"
#include "planner/problem.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct chain { /* the chain as recipes see it: what is before the layers, layers, what is behind */
    uint32_t first_layer, n_layers;
};

static struct chain chain_of(const struct ek_problem *p)
{
    struct chain c = {p->first_item, 0};
    bool found = false;

    for (uint32_t m = p->first_item; m < p->costs->n_modules; m++)
        if (p->costs->modules[m].kind == EK_MODULE_LAYER) {
            if (!found)
                c.first_layer = m;
            found = true;
            c.n_layers++;
        }
    return c;
}

/* Layers by counts; everything before them on the first device, behind them on `tail`. */
static void by_counts(const struct ek_problem *p, const uint32_t *counts, uint32_t tail,
                      struct ek_assignment *a)
{
    struct chain c = chain_of(p);
    uint32_t d = 0, left = counts[0];

    for (uint32_t m = 0; m < p->costs->n_modules; m++) {
        if (m < c.first_layer || m >= c.first_layer + c.n_layers) {
            a->device[m] = m < c.first_layer ? 0 : tail;
            continue;
        }
        while (left == 0 && d + 1 < p->n_devices)
            left = counts[++d];
        a->device[m] = d;
        left -= left > 0;
    }
}

static uint32_t last_used(const struct ek_problem *p, const uint32_t *counts)
{
    uint32_t last = 0;

    for (uint32_t d = 0; d < p->n_devices; d++)
        last = counts[d] ? d : last;
    return last;
}

/* The remainder goes to the middle ranks (vLLM) or to the first ones. */
static void equal_split(const struct ek_problem *p, struct ek_assignment *a, bool middle)
{
    uint32_t counts[EK_PLAN_MAX_DEVICES], n = chain_of(p).n_layers, devices = p->n_devices;
    uint32_t each = n / devices, more = n % devices;

    for (uint32_t d = 0; d < devices; d++) {
        bool extra = middle ? d + 1 < devices && d + 1 >= devices - more && more > 0 : d < more;
        counts[d] = each + extra;
    }
    by_counts(p, counts, last_used(p, counts), a);
}

/* Largest remainders; every layer is placed. */
static void proportional(const struct ek_problem *p, struct ek_assignment *a)
{
    uint32_t counts[EK_PLAN_MAX_DEVICES], n = chain_of(p).n_layers, given = 0;
    double total = 0, rest[EK_PLAN_MAX_DEVICES];

    for (uint32_t d = 0; d < p->n_devices; d++)
        total += (double)p->devices[d].memory;
    for (uint32_t d = 0; d < p->n_devices; d++) {
        double want = n * (double)p->devices[d].memory / total;
        counts[d] = (uint32_t)want;
        rest[d] = want - counts[d];
        given += counts[d];
    }
    for (; given < n; given++) {
        uint32_t best = 0;
        for (uint32_t d = 1; d < p->n_devices; d++)
            best = rest[d] > rest[best] + 1e-12 ? d : best;
        counts[best]++;
        rest[best] = -1;
    }
    by_counts(p, counts, last_used(p, counts), a);
}

/* ---- accelerate ---------------------------------------------------------------------------------
 * Bytes of parameters alone, in order, filling one device after the other; on the first device room
 * is kept for the largest module behind (for what may be moved in later). What fits nowhere goes to
 * the last device here, where accelerate would go on to the CPU and the disk. */
static uint64_t largest_behind(const struct ek_problem *p, uint32_t module)
{
    const struct ek_cost_module *mods = p->costs->modules;
    uint64_t largest = 0;

    for (uint32_t m = module + 1; m < p->costs->n_modules; m++)
        if (mods[m].tied_to < 0 && mods[m].weights > largest)
            largest = mods[m].weights;
    return largest;
}

static void accelerate_fill(const struct ek_problem *p, const uint64_t *limits,
                            struct ek_assignment *a)
{
    const struct ek_cost_module *mods = p->costs->modules;
    uint64_t used = 0;
    uint32_t d = 0;

    for (uint32_t m = 0; m < p->costs->n_modules; m++) {
        int32_t t = mods[m].tied_to;
        if (t >= 0) { /* tied parameters are pulled to where they are already */
            a->device[m] = a->device[t];
            continue;
        }
        while (d + 1 < p->n_devices &&
               used + mods[m].weights + (d == 0 ? largest_behind(p, m) : 0) > limits[d]) {
            d++;
            used = 0;
        }
        a->device[m] = d;
        used += mods[m].weights;
    }
}

static void accelerate_auto(const struct ek_problem *p, struct ek_assignment *a)
{
    uint64_t limits[EK_PLAN_MAX_DEVICES];

    for (uint32_t d = 0; d < p->n_devices; d++)
        limits[d] = p->devices[d].memory;
    accelerate_fill(p, limits, a);
}

/* get_balanced_memory: total / devices and a quarter more than the first block (of the class that
 * must not be split it looks at one; the mean of all leaves is less than that); the last device
 * keeps all it has. */
static void accelerate_balanced(const struct ek_problem *p, struct ek_assignment *a)
{
    uint64_t limits[EK_PLAN_MAX_DEVICES], total = 0, block = 0, each;

    for (uint32_t m = 0; m < p->costs->n_modules; m++) {
        const struct ek_cost_module *mod = &p->costs->modules[m];
        total += mod->tied_to >= 0 ? 0 : mod->weights;
        if (mod->kind == EK_MODULE_LAYER && block == 0)
            block = mod->weights;
    }
    each = total / p->n_devices + block + block / 4;
    for (uint32_t d = 0; d < p->n_devices; d++) {
        limits[d] = p->devices[d].memory;
        if (d + 1 < p->n_devices && each < limits[d])
            limits[d] = each;
    }
    accelerate_fill(p, limits, a);
}

/* ---- llama.cpp ----------------------------------------------------------------------------------
 * --fit: whole layers from the back, the output layer first, each device until its margin of 1 GiB
 * (here at most a tenth of a small device); with cache and buffers counted. */
static void llama_fit(const struct ek_problem *p, struct ek_assignment *a)
{
    uint32_t d = p->n_devices - 1, m = (uint32_t)p->costs->n_modules;
    struct ek_memory_use u;
    uint32_t kind = 0;
    bool open = false;

    while (m-- > 0) {
        for (;;) {
            struct ek_memory_use more;
            uint64_t memory = p->devices[d].memory, margin = memory / 10;
            margin = margin < EK_GIB ? margin : EK_GIB;
            if (!open) {
                for (uint32_t k = 0; k < p->n_kinds; k++)
                    if (p->kinds[k].group == p->devices[d].group && p->kinds[k].tp == 1)
                        kind = k;
                ek_use_begin(p, kind, &u);
                open = true;
            }
            more = u;
            ek_use_add(p, kind, m, false, &more);
            u = more;
            ek_use_end(p, kind, &more);
            if (d == 0 || more.total + margin <= memory)
                break;
            d--;
            open = false;
        }
        a->device[m] = d;
    }
}

/* ---- The guides' hand-made splits ---------------------------------------------------------------
 */
static const struct {
    const char *name, *architecture;
    uint32_t layers, counts[8];
} guides[] = {
    {"guide [13,14], rest on 0", "DeepseekVLV2ForCausalLM", 27, {13, 14}},
    {"guide [10,10,10], rest on 0", "DeepseekVLV2ForCausalLM", 30, {10, 10, 10}},
    {"guide [3,4,4,4,4,4,4,4], rest on 0", "DeepseekVLV2ForCausalLM", 30, {3, 4, 4, 4, 4, 4, 4, 4}},
};

static bool guide(const struct ek_problem *p, size_t i, struct ek_recipe *out)
{
    uint32_t counts[EK_PLAN_MAX_DEVICES] = {0}, left = chain_of(p).n_layers, need = 0, said = 0;

    for (uint32_t d = 0; d < 8; d++) {
        need = guides[i].counts[d] ? d + 1 : need;
        said += guides[i].counts[d];
    }
    if (left != guides[i].layers || need > p->n_devices)
        return false;
    for (uint32_t d = 0; d < need; d++) {
        counts[d] = guides[i].counts[d] < left ? guides[i].counts[d] : left;
        left -= counts[d];
    }
    if (said > guides[i].layers)
        snprintf(out->note, sizeof(out->note), "its %u layers clipped to the model's %u", said,
                 guides[i].layers);
    by_counts(p, counts, 0, &out->assignment);
    return true;
}

size_t ek_recipes(const struct ek_problem *p, struct ek_recipe out[EK_MAX_RECIPES])
{
    size_t n = 0;

    memset(out, 0, EK_MAX_RECIPES * sizeof(*out));
    if (chain_of(p).n_layers == 0)
        return 0;
#define RECIPE(title, call)                                                                        \
    do {                                                                                           \
        struct ek_assignment *a = &out[n].assignment;                                              \
        out[n++].name = title;                                                                     \
        call;                                                                                      \
    } while (0)
    RECIPE("equal split", equal_split(p, a, false));
    RECIPE("vLLM's default", equal_split(p, a, true));
    RECIPE("proportional to memory", proportional(p, a));
    RECIPE("accelerate auto", accelerate_auto(p, a));
    RECIPE("accelerate balanced", accelerate_balanced(p, a));
    RECIPE("llama.cpp fit", llama_fit(p, a));
    for (size_t i = 0; i < EK_ARRAY_LEN(guides) && n < EK_MAX_RECIPES; i++)
        if (guide(p, i, &out[n]))
            out[n++].name = guides[i].name;
    return n;
}

/* ---- By name, or written out --------------------------------------------------------------------
 */
/* "[3,4,4]" or "3,4,4": layers of each device; what is before and behind them goes to the first, as
 * the guides have it. */
static enum ek_status read_split(const struct ek_problem *p, const char *text,
                                 struct ek_assignment *a)
{
    uint32_t counts[EK_PLAN_MAX_DEVICES] = {0}, n = 0, layers = chain_of(p).n_layers, left = layers;
    uint64_t said = 0;

    for (const char *s = text + strspn(text, "[ "); *s && *s != ']';) {
        char *end;
        unsigned long v = strtoul(s, &end, 10);
        if (end == s || v > EK_PLAN_MAX_MODULES || n == p->n_devices)
            return ek_error(EK_EUSAGE, "--from \"%s\": a split has up to %u numbers of layers",
                            text, p->n_devices);
        end += strspn(end, " ");
        end += *end == ',';
        end += strspn(end, " ");
        said += v;
        counts[n] = v < left ? (uint32_t)v : left;
        left -= counts[n++];
        s = end;
    }
    if (said < layers || layers == 0)
        return ek_error(EK_EUSAGE, "--from \"%s\": %llu layers are split, the model has %u", text,
                        (unsigned long long)said, layers);
    if (said > layers)
        ek_note("the split's %llu layers are clipped to the model's %u", (unsigned long long)said,
                layers);
    by_counts(p, counts, 0, a);
    return EK_OK;
}

enum ek_status ek_recipe_named(const struct ek_problem *p, const char *text,
                               struct ek_assignment *a)
{
    struct ek_recipe *all;
    size_t n, len = strlen(text);
    enum ek_status st;

    if (len > 0 && strspn(text, "0123456789, []") == len)
        return read_split(p, text, a);
    if ((all = ek_calloc(EK_MAX_RECIPES, sizeof(*all))) == NULL)
        return EK_ENOMEM;
    n = ek_recipes(p, all);
    st = ek_error(EK_EUSAGE,
                  "--from \"%s\": neither a file, nor a split as [13,14], nor a recipe that suits "
                  "here (equal split, vLLM's default, proportional to memory, accelerate auto, "
                  "accelerate balanced, llama.cpp fit, guide ...)",
                  text);
    for (size_t i = 0; i < n && st != EK_OK && len > 0; i++)
        if (strncasecmp(all[i].name, text, len) == 0) {
            *a = all[i].assignment;
            st = EK_OK;
            if (all[i].note[0])
                ek_note("%s: %s", all[i].name, all[i].note);
        }
    free(all);
    return st;
}
