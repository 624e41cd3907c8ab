/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "profiler/profiler.h"

#include <stdlib.h>
#include <string.h>

static const struct ek_option options[] = {
    {"devices", "LIST", "only these, as \"cpu:0/threads=0-3,mem=8GiB cuda:0\" (default: all)"},
    {"measure", NULL,
     "measure bandwidths, matrix peaks and the links between all pairs: alone, in both directions, "
     "and all at once"},
    {"db", "FILE", "store what was measured in this profile database"},
    {NULL, NULL, NULL},
};

/* A device that is open, with what was measured on it. */
struct entry {
    struct ek_device *dev;
    struct ek_ceilings ceilings;
};

struct report {
    struct entry *entries;
    struct ek_store_link *links;
    size_t n, n_links;
    bool measured;
    struct ek_progress *progress;
    uint64_t done;
};

static void say(struct report *r, const struct ek_device *from, const struct ek_device *to,
                const char *what)
{
    char detail[160];

    snprintf(detail, sizeof(detail), "%s%s%s%s%s", from ? from->spec.name : "", to ? " -> " : "",
             to ? to->spec.name : "", from ? " " : "", what);
    ek_progress_set(r->progress, ++r->done, detail);
}

static enum ek_status open_all(const struct ek_args *args, struct report *r)
{
    struct ek_device_spec *specs = NULL;
    struct ek_device_info *infos = NULL;
    enum ek_status st;

    if (ek_arg(args, "devices"))
        EK_TRY(ek_device_specs_parse(ek_arg(args, "devices"), &specs, &r->n));
    else
        EK_TRY(ek_devices_list(&specs, &infos, &r->n));
    free(infos);
    st = (r->entries = ek_calloc(r->n, sizeof(*r->entries))) ? EK_OK : EK_ENOMEM;
    for (size_t i = 0; st == EK_OK && i < r->n; i++)
        st = ek_device_open(&specs[i], EK_F32, &r->entries[i].dev);
    free(specs);
    return st;
}

/* Products of BF16 and F16 run at their own speed only where activations have that type too. */
static enum ek_status measure_device(struct entry *e)
{
    struct ek_ceilings half;
    struct ek_device *dev;
    enum ek_status st;

    EK_TRY(ek_measure_ceilings(e->dev, &e->ceilings));
    if (ek_device_open(&e->dev->spec, EK_BF16, &dev) != EK_OK)
        return EK_OK; /* this backend computes in F32 alone */
    st = ek_measure_ceilings(dev, &half);
    ek_device_close(dev);
    EK_TRY(st);
    e->ceilings.peak_bf16 = half.peak_bf16;
    return EK_OK;
}

/* By each mechanism: the first is the one that the runtime takes. */
static enum ek_status measure_alone(struct report *r, struct ek_device *from, struct ek_device *to)
{
    const char *names[EK_LINK_MECHANISMS];
    size_t n = ek_link_mechanisms(from, to, names);

    for (size_t i = 0; i < n; i++) {
        say(r, from, to, names[i]);
        EK_TRY(ek_measure_link_as(from, to, names[i], &r->links[r->n_links++]));
    }
    return EK_OK;
}

static bool offers(const struct ek_device *from, const struct ek_device *to, const char *mechanism)
{
    const char *names[EK_LINK_MECHANISMS];
    size_t n = ek_link_mechanisms(from, to, names);

    while (n-- > 0)
        if (strcmp(names[n], mechanism) == 0)
            return true;
    return false;
}

/* Every pair of n devices that offers a mechanism, in both directions. */
static enum ek_status measure_at_once(struct report *r, const size_t *devices, size_t n,
                                      const char *mechanism, const char *suffix)
{
    struct ek_traffic_pair *pairs = ek_calloc(n * n, sizeof(*pairs));
    size_t n_pairs = 0;
    enum ek_status st = EK_ENOMEM;

    for (size_t i = 0; pairs != NULL && i < n * n; i++) {
        const struct ek_device *from = r->entries[devices[i / n]].dev;
        const struct ek_device *to = r->entries[devices[i % n]].dev;
        if (from != to && offers(from, to, mechanism))
            pairs[n_pairs++] = (struct ek_traffic_pair){&from->spec, &to->spec};
    }
    say(r, n == 2 ? r->entries[devices[0]].dev : NULL, n == 2 ? r->entries[devices[1]].dev : NULL,
        mechanism);
    if (pairs != NULL)
        st = n_pairs ? ek_measure_traffic(pairs, n_pairs, mechanism, EK_F32, suffix,
                                          &r->links[r->n_links])
                     : EK_OK;
    if (st == EK_OK)
        r->n_links += n_pairs;
    free(pairs);
    return st;
}

/* A pair in both directions; then, where there are more, all pairs. */
static enum ek_status measure_busy(struct report *r, const char *mechanism)
{
    size_t all[EK_MAX_DEVICES];

    for (size_t i = 0; i < r->n; i++) {
        all[i] = i;
        for (size_t j = 0; j < i; j++)
            EK_TRY(measure_at_once(r, (size_t[]){j, i}, 2, mechanism, EK_STORE_BOTH));
    }
    return r->n > 2 ? measure_at_once(r, all, r->n, mechanism, EK_STORE_ALL) : EK_OK;
}

static const char *const mechanisms[] = {"peer-store", "copy", "host-staged", "nccl"};

static enum ek_status measure_links(struct report *r)
{
    r->links = ek_calloc(r->n * r->n, 3 * EK_LINK_MECHANISMS * sizeof(*r->links));
    if (r->links == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < r->n * r->n; i++)
        if (i / r->n != i % r->n)
            EK_TRY(measure_alone(r, r->entries[i / r->n].dev, r->entries[i % r->n].dev));
    for (size_t i = 0; i < EK_ARRAY_LEN(mechanisms); i++)
        EK_TRY(measure_busy(r, mechanisms[i]));
    return EK_OK;
}

static enum ek_status measure_all(struct report *r)
{
    size_t pairs = r->n * (r->n - 1);
    enum ek_status st = EK_OK;

    r->measured = true;
    r->progress =
        ek_progress_new("devices", r->n + (pairs + pairs / 2 + 1) * EK_ARRAY_LEN(mechanisms));
    for (size_t i = 0; i < r->n && st == EK_OK; i++) {
        say(r, r->entries[i].dev, NULL, "");
        st = measure_device(&r->entries[i]);
    }
    st = st == EK_OK ? measure_links(r) : st;
    ek_progress_free(r->progress);
    return st;
}

static enum ek_status put_all(struct ek_store *s, const struct report *r)
{
    for (size_t i = 0; i < r->n; i++) {
        const struct ek_ceilings *c = &r->entries[i].ceilings;
        struct ek_store_device d;
        ek_profile_device_row(r->entries[i].dev, &d);
        d.read_bandwidth = c->read_bandwidth;
        d.copy_bandwidth = c->copy_bandwidth;
        d.peak_f32 = c->peak_f32;
        d.peak_bf16 = c->peak_bf16;
        d.peak_f16 = c->peak_f16;
        d.overhead = c->overhead;
        EK_TRY(ek_store_put_device(s, &d));
    }
    for (size_t i = 0; i < r->n_links; i++)
        EK_TRY(ek_store_put_link(s, &r->links[i]));
    return EK_OK;
}

static enum ek_status store(const char *path, const struct report *r)
{
    struct ek_store *s;
    enum ek_status st;

    EK_TRY(ek_store_open(path, EK_STORE_WRITE, &s));
    st = put_all(s, r);
    ek_store_close(s);
    return st;
}

static bool state_of(const struct ek_device *d, struct ek_device_state *s)
{
    return d->ops->state && d->ops->state((struct ek_device *)d, s);
}

/* What lies between two devices of a backend that knows; NULL where none does. */
static const char *joined(const struct ek_device *d, const struct ek_device *to)
{
    return d->ops == to->ops && d->ops->joined ? d->ops->joined(d, to) : NULL;
}

static json_t *device_json(const struct entry *e, bool measured)
{
    const struct ek_device *d = e->dev;
    const struct ek_device_info *i = &d->info;
    struct ek_device_state s;
    char reasons[64];
    json_t *v =
        json_pack("{ss ss ss ss ss ss sI sI si si si sI ss}", "name", d->spec.name, "backend",
                  d->spec.backend, "model", i->model, "uuid", i->uuid, "pci", i->pci, "driver",
                  i->driver, "memory_total", (json_int_t)i->memory_total, "memory_free",
                  (json_int_t)d->ops->memory_free(e->dev), "compute_major", (int)i->compute_major,
                  "compute_minor", (int)i->compute_minor, "units", (int)i->n_units, "cache_bytes",
                  (json_int_t)i->cache_bytes, "simd", i->simd);

    if (v && state_of(d, &s))
        json_object_update_new(v, json_pack("{si si ss}", "clock_mhz", (int)s.clock_mhz,
                                            "memory_mhz", (int)s.memory_mhz, "slowed_by",
                                            ek_throttle_text(s.throttle, reasons)));
    if (v && measured)
        json_object_set_new(v, "measured",
                            json_pack("{sf sf sf sf sf sI}", "read_bytes_per_s",
                                      e->ceilings.read_bandwidth, "copy_bytes_per_s",
                                      e->ceilings.copy_bandwidth, "f32_flop_per_s",
                                      e->ceilings.peak_f32, "bf16_flop_per_s",
                                      e->ceilings.peak_bf16, "f16_flop_per_s", e->ceilings.peak_f16,
                                      "overhead_bytes", (json_int_t)e->ceilings.overhead));
    return v;
}

static json_t *pairs_json(const struct report *r)
{
    json_t *pairs = json_array();

    for (size_t i = 0; i < r->n * r->n; i++) {
        const struct ek_device *from = r->entries[i / r->n].dev, *to = r->entries[i % r->n].dev;
        const char *path = from != to ? joined(from, to) : NULL;
        if (path)
            json_array_append_new(pairs, json_pack("{ss ss sb ss}", "from", from->spec.name, "to",
                                                   to->spec.name, "peer_access",
                                                   from->ops->reaches(from, to), "path", path));
    }
    return pairs;
}

static json_t *report_json(const struct report *r)
{
    json_t *devices = json_array(), *links = json_array();

    for (size_t i = 0; i < r->n; i++)
        json_array_append_new(devices, device_json(&r->entries[i], r->measured));
    for (size_t i = 0; i < r->n_links; i++) {
        const struct ek_store_link *l = &r->links[i];
        json_array_append_new(links, json_pack("{ss ss ss sf sf sf}", "from", l->from, "to", l->to,
                                               "mechanism", l->mechanism, "alpha_s", l->alpha_s,
                                               "beta_bytes_per_s", l->beta_bytes_s, "residual",
                                               l->residual));
    }
    return json_pack("{so so so}", "devices", devices, "pairs", pairs_json(r), "links", links);
}

/* GPUs: which each is, and how it runs at the moment. */
static void print_gpus(const struct report *r)
{
    struct ek_table *t = ek_table_new("device|UUID|PCI|capability|>clock|>of memory|slowed by");
    char reasons[64];
    bool any = false;

    for (size_t i = 0; i < r->n; i++) {
        const struct ek_device *d = r->entries[i].dev;
        struct ek_device_state s = {0};
        if (d->info.compute_major == 0)
            continue;
        state_of(d, &s);
        ek_table_row(t, "%s|%s|%s|%u.%u|%u MHz|%u MHz|%s", d->spec.name, d->info.uuid, d->info.pci,
                     d->info.compute_major, d->info.compute_minor, s.clock_mhz, s.memory_mhz,
                     ek_throttle_text(s.throttle, reasons));
        any = true;
    }
    if (any) {
        puts("");
        ek_table_print(t, stdout);
    }
    ek_table_free(t);
}

/* Either direction of a pair is joined alike. */
static void print_pairs(const struct report *r)
{
    struct ek_table *t = ek_table_new("pair|between them|peer access");
    bool any = false;

    for (size_t i = 0; i < r->n; i++)
        for (size_t j = i + 1; j < r->n; j++) {
            const struct ek_device *from = r->entries[i].dev, *to = r->entries[j].dev;
            const char *path = joined(from, to);
            if (path == NULL)
                continue;
            ek_table_row(t, "%s, %s|%s|%s", from->spec.name, to->spec.name, path[0] ? path : "?",
                         from->ops->reaches(from, to) ? "yes" : "no");
            any = true;
        }
    if (any) {
        puts("");
        ek_table_print(t, stdout);
    }
    ek_table_free(t);
}

static const char *format_peak(char buf[EK_UNIT_LEN], double flops)
{
    bool tera = flops >= 1e12;

    snprintf(buf, EK_UNIT_LEN, "%.1f %s", flops / (tera ? 1e12 : 1e9),
             tera ? "TFLOP/s" : "GFLOP/s");
    return buf;
}

static void print_report(const struct report *r)
{
    struct ek_table *t =
        ek_table_new(r->measured ? "device|model|units|>memory|>free|>read|>copy|>F32|>BF16"
                                 : "device|model|units|>memory|>free");
    char b[6][EK_UNIT_LEN];

    for (size_t i = 0; i < r->n; i++) {
        const struct ek_device *d = r->entries[i].dev;
        const struct ek_ceilings *c = &r->entries[i].ceilings;
        char measured[160] = "";
        if (r->measured)
            snprintf(measured, sizeof(measured), "|%s|%s|%s|%s",
                     ek_format_rate(b[2], c->read_bandwidth),
                     ek_format_rate(b[3], c->copy_bandwidth), format_peak(b[4], c->peak_f32),
                     format_peak(b[5], c->peak_bf16));
        ek_table_row(t, "%s|%s|%u %s|%s|%s%s", d->spec.name, d->info.model, d->info.n_units,
                     d->info.simd[0] ? d->info.simd : "SMs",
                     ek_format_bytes(b[0], d->info.memory_total),
                     ek_format_bytes(b[1], d->ops->memory_free((struct ek_device *)d)), measured);
    }
    ek_table_print(t, stdout);
    ek_table_free(t);
    print_gpus(r);
    print_pairs(r);
    if (r->n_links == 0)
        return;
    puts("");
    t = ek_table_new("link|mechanism|>latency|>bandwidth|>residual");
    for (size_t i = 0; i < r->n_links; i++)
        ek_table_row(t, "%s -> %s|%s|%s|%s|%.1f %%", r->links[i].from, r->links[i].to,
                     r->links[i].mechanism,
                     r->links[i].alpha_s > 0 ? ek_format_seconds(b[0], r->links[i].alpha_s) : "-",
                     ek_format_rate(b[1], r->links[i].beta_bytes_s), 100 * r->links[i].residual);
    ek_table_print(t, stdout);
    ek_table_free(t);
}

static enum ek_status run(const struct ek_args *args)
{
    struct report r = {0};
    enum ek_status st = open_all(args, &r);

    if (st == EK_OK && ek_arg_flag(args, "measure"))
        st = measure_all(&r);
    if (st == EK_OK && r.measured && ek_arg(args, "db"))
        st = store(ek_arg(args, "db"), &r);
    if (st == EK_OK && ek_arg_flag(args, "json"))
        st = ek_json_print(report_json(&r));
    else if (st == EK_OK)
        print_report(&r);
    for (size_t i = 0; r.entries && i < r.n; i++)
        ek_device_close(r.entries[i].dev);
    free(r.entries);
    free(r.links);
    return st;
}

const struct ek_command ek_cmd_devices = {
    .name = "devices",
    .summary = "what is here: memory, links, measured ceilings",
    .operands = "",
    .options = options,
    .description =
        "A CPU device is declared with the cores it may use and its memory budget, so that any\n"
        "machine has as many as one likes; a GPU may be declared several times (cuda:0.0, "
        "cuda:0.1).",
    .run = run,
};
