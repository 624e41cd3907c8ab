/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A plan as one HTML page: no network, no script, readable on a phone and in dark mode. This file:
 * the summary, memory, and stages with what was measured of them; report_more.c has the rest.
 */
#include "planner/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BAR 18 /* pixels */

/* ---- Measured -----------------------------------------------------------------------------------
 */
const struct ek_store_run *ek_report_run(const struct ek_report *r, const char *what)
{
    for (size_t i = r->n_runs; i-- > 0;)
        if (strcmp(r->runs[i].what, what) == 0)
            return &r->runs[i];
    return NULL;
}

/* Predicted over measured, "-4.7 %"; "" when either is missing. */
static void error_text(double predicted, const struct ek_store_run *run, char *out, size_t cap)
{
    if (run && predicted > 0 && run->measured > 0)
        snprintf(out, cap, "%+.1f %%", 100 * (predicted / run->measured - 1));
    else
        out[0] = '\0';
}

static void spread_text(double mad, uint32_t n, char *out, size_t cap)
{
    char b[EK_UNIT_LEN];

    out[0] = '\0';
    if (n > 0)
        snprintf(out, cap, "± %s", ek_format_seconds(b, mad));
}

static void count_text(uint32_t n, char *out, size_t cap)
{
    out[0] = '\0';
    if (n > 0)
        snprintf(out, cap, "%u", n);
}

/* Predicted and (where there is any in the plan) its spread and n; where something was measured,
 * that, its spread and n, and the error. */
static void time_cells(struct ek_report *r, double predicted, double mad, uint32_t n,
                       const struct ek_store_run *run)
{
    struct ek_page *t = &r->page;
    char b[EK_UNIT_LEN], s[48];

    ek_page_cell(t, ek_format_seconds(b, predicted));
    if (r->sampled) {
        spread_text(mad, n, s, sizeof(s));
        ek_page_cell(t, s);
        count_text(n, s, sizeof(s));
        ek_page_cell(t, s);
    }
    if (r->n_runs > 0) {
        ek_page_cell(t, run ? ek_format_seconds(b, run->measured) : "");
        spread_text(run ? run->mad : 0, run ? run->n : 0, s, sizeof(s));
        ek_page_cell(t, s);
        count_text(run ? run->n : 0, s, sizeof(s));
        ek_page_cell(t, s);
        error_text(predicted, run, s, sizeof(s));
        ek_page_cell(t, s);
    }
    ek_page_add(t, "</tr>\n");
}

static void time_head(struct ek_report *r)
{
    char head[96];

    snprintf(head, sizeof(head), "stage|predicted%s%s", r->sampled ? "|spread|n" : "",
             r->n_runs ? "|measured|spread|n|error" : "");
    ek_page_table(&r->page, head);
}

/* ---- Summary ------------------------------------------------------------------------------------
 */
static void fact(struct ek_page *t, const char *what, const char *value,
                 const struct ek_store_run *run)
{
    char b[EK_UNIT_LEN], s[EK_UNIT_LEN];

    ek_page_add(t, "<div>");
    ek_page_text(t, what);
    ek_page_add(t, "<b>");
    ek_page_text(t, value);
    ek_page_add(t, "</b>");
    if (run)
        ek_page_add(t, "<i>measured %s ± %s, n %u</i>", ek_format_seconds(b, run->measured),
                    ek_format_seconds(s, run->mad), run->n);
    ek_page_add(t, "</div>");
}

static void add_facts(struct ek_report *r)
{
    const json_t *pred = json_object_get(r->f->root, "predicted");
    const json_t *opt = json_object_get(r->f->root, "optimality");
    bool given = strcmp(ek_page_string(opt, "status"), "given") == 0;
    bool proven = json_is_true(json_object_get(opt, "proven"));
    char b[64];

    ek_page_add(&r->page, "<div class=\"cards\">");
    fact(&r->page, "prefill, predicted", ek_format_seconds(b, ek_page_number(pred, "prefill_s")),
         ek_report_run(r, "prefill"));
    fact(&r->page, "decode, a token of all, predicted",
         ek_format_seconds(b, ek_page_number(pred, "decode_s")),
         ek_report_run(r, "decode, a token of all"));
    snprintf(b, sizeof(b), "%.1f", ek_page_number(pred, "tokens_per_s"));
    fact(&r->page, "tokens a second, predicted", b, NULL);
    fact(&r->page, "optimality", given ? "handed in" : proven ? "proven" : "not proven", NULL);
    ek_page_add(&r->page, "</div>\n<p class=\"n\">");
    if (!given) {
        ek_page_text(&r->page, ek_page_string(opt, "solver"));
        ek_page_add(&r->page, "; bound %.6g, gap %.3g; ", ek_page_number(opt, "bound"),
                    ek_page_number(opt, "gap"));
    }
    ek_page_add(&r->page, "cross-check: ");
    ek_page_text(&r->page, ek_page_string(opt, "cross_check"));
    ek_page_add(&r->page, "</p>\n");
}

static void add_calibrations(struct ek_report *r)
{
    json_t *d;
    size_t i;

    json_array_foreach(json_object_get(r->f->root, "devices"), i, d)
    {
        const json_t *c = json_object_get(d, "calibration");
        if (!json_is_object(c))
            continue;
        ek_page_add(&r->page, "<p class=\"n\">calibrated: ");
        ek_page_text(&r->page, ek_page_string(d, "name"));
        ek_page_add(&r->page, ", prefill &times; %.3f, decode &times; %.3f (n %.0f)</p>\n",
                    ek_page_number(c, "prefill"), ek_page_number(c, "decode"),
                    ek_page_number(c, "n"));
    }
}

static void add_summary(struct ek_report *r)
{
    const struct ek_plan_file *f = r->f;
    const json_t *pred = json_object_get(f->root, "predicted");

    ek_page_add(&r->page, "<h1>");
    ek_page_text(&r->page, f->model);
    ek_page_add(&r->page,
                "</h1><p class=\"n\">batch %u, context %u, %u micro-batch%s, %zu stages on %zu "
                "devices",
                f->batch, f->context, f->micro_batches, f->micro_batches == 1 ? "" : "es",
                f->n_stages, f->n_devices);
    if (json_is_true(json_object_get(pred, "extrapolated")))
        ek_page_add(&r->page, " &middot; <b>partly beyond what was measured</b>");
    else if (json_is_true(json_object_get(pred, "estimate")))
        ek_page_add(&r->page, " &middot; <b>an estimate, not measured</b>");
    ek_page_add(&r->page, "</p>\n");
    add_facts(r);
    add_calibrations(r);
    if (r->n_runs == 0)
        ek_page_add(&r->page, "<p class=\"n\">Nothing of this plan was measured: <code>evenkeel "
                              "bench --db</code> does, <code>report --db</code> shows it.</p>\n");
}

/* ---- Memory -------------------------------------------------------------------------------------
 */
static const char *const kinds[] = {"weights",   "kv",   "activations",
                                    "workspace", "comm", "overhead"};

/* What bench saw, with the overhead that it does not see; 0: nothing. */
static double measured_memory(const struct ek_report *r, const json_t *m)
{
    char what[64];
    const struct ek_store_run *run;

    snprintf(what, sizeof(what), "memory %.32s total", ek_page_string(m, "device"));
    run = ek_report_run(r, what);
    return run ? run->measured + ek_page_number(m, "overhead") : 0;
}

static void memory_row(struct ek_report *r, const json_t *m, double most)
{
    double x = 0, budget = ek_page_number(m, "budget"), took = measured_memory(r, m);
    char b[3][EK_UNIT_LEN], value[160], title[96];

    snprintf(value, sizeof(value), "%s of %s",
             ek_format_bytes(b[0], (uint64_t)ek_page_number(m, "total")),
             ek_format_bytes(b[1], (uint64_t)budget));
    if (took > 0)
        snprintf(value + strlen(value), sizeof(value) - strlen(value), ", measured %s",
                 ek_format_bytes(b[2], (uint64_t)took));
    ek_page_row(&r->page, "memory", ek_page_string(m, "device"), ek_page_string(m, "device"), value,
                BAR);
    for (size_t k = 0; k < EK_ARRAY_LEN(kinds); k++) {
        double v = ek_page_number(m, kinds[k]);
        snprintf(title, sizeof(title), "%s %s", kinds[k], ek_format_bytes(b[0], (uint64_t)v));
        if (v > 0)
            ek_page_bar(&r->page, x / most, v / most, BAR, ek_page_colours[k], title);
        x += v;
    }
    ek_page_mark(&r->page, budget / most, BAR, "var(--bad)");
    if (took > 0)
        ek_page_mark(&r->page, took / most, BAR, "var(--fg)");
    ek_page_row_end(&r->page);
}

static void memory_cells(struct ek_report *r, const json_t *m)
{
    double total = ek_page_number(m, "total"), budget = ek_page_number(m, "budget");
    double took = measured_memory(r, m);
    char b[EK_UNIT_LEN], s[32] = "";

    ek_page_add(&r->page, "<tr>");
    ek_page_cell(&r->page, ek_page_string(m, "device"));
    ek_page_cell(&r->page, ek_format_bytes(b, (uint64_t)total));
    if (r->n_runs > 0) {
        ek_page_cell(&r->page, took > 0 ? ek_format_bytes(b, (uint64_t)took) : "");
        if (took > 0)
            snprintf(s, sizeof(s), "%+.2f %%", 100 * (total / took - 1));
        ek_page_cell(&r->page, s);
    }
    ek_page_cell(&r->page, ek_format_bytes(b, (uint64_t)ek_page_number(m, "margin")));
    ek_page_cell(&r->page, ek_format_bytes(b, (uint64_t)budget));
    snprintf(s, sizeof(s), "%.1f %%",
             100 * (total + ek_page_number(m, "margin")) / fmax(budget, 1));
    ek_page_cell(&r->page, s);
    for (size_t k = 0; k < EK_ARRAY_LEN(kinds); k++)
        ek_page_cell(&r->page, ek_format_bytes(b, (uint64_t)ek_page_number(m, kinds[k])));
    ek_page_add(&r->page, "</tr>\n");
}

static void add_memory(struct ek_report *r)
{
    const json_t *list = json_object_get(r->f->root, "memory");
    double most = 1;
    json_t *m;
    size_t i;

    if (json_array_size(list) == 0)
        return;
    json_array_foreach((json_t *)list, i, m) most =
        fmax(most, fmax(ek_page_number(m, "budget"), ek_page_number(m, "total")));
    ek_page_chapter(&r->page, "memory", "Memory of each device",
                    r->n_runs ? "red line: the budget; the other one: the measured peak"
                              : "red line: the budget");
    ek_page_add(&r->page, "<p class=\"n\">");
    for (size_t k = 0; k < EK_ARRAY_LEN(kinds); k++)
        ek_page_add(&r->page, "<span class=\"k\" style=\"background:%s\"></span>%s",
                    ek_page_colours[k], kinds[k]);
    ek_page_add(&r->page, "</p>\n");
    json_array_foreach((json_t *)list, i, m) memory_row(r, m, most);
    ek_page_table(&r->page,
                  r->n_runs ? "device|predicted|measured|error|margin|budget|full|weights|cache|"
                              "activations|workspace|messages|overhead"
                            : "device|predicted|margin|budget|full|weights|cache|activations|"
                              "workspace|messages|overhead");
    json_array_foreach((json_t *)list, i, m) memory_cells(r, m);
    ek_page_table_end(&r->page);
}

/* ---- Stages -------------------------------------------------------------------------------------
 */
void ek_report_stage_name(const struct ek_plan_file *f, size_t i, char *out, size_t cap)
{
    const struct ek_file_stage *s = &f->stages[i];

    snprintf(out, cap, "%zu %.48s", i, f->devices[s->devices[0]].name);
    for (uint32_t d = 1; d < s->n_devices; d++) {
        size_t n = strlen(out);
        snprintf(out + n, cap - n, "+%.24s", f->devices[s->devices[d]].name);
    }
}

static const struct ek_store_run *stage_run(const struct ek_report *r, size_t i, bool decode)
{
    char what[96];

    snprintf(what, sizeof(what), "stage %zu (%s) %s", i,
             r->f->devices[r->f->stages[i].devices[0]].name, decode ? "decode step" : "prefill");
    what[sizeof(r->runs->what) - 1] = '\0'; /* as long as the profile keeps it */
    return ek_report_run(r, what);
}

/* Layers in two shades of one colour in turn, the chain's ends and side modules in others. */
static const char *module_colour(const char *name)
{
    int32_t layer = ek_layer_number(name);
    const char *last = strrchr(name, '.');

    last = last ? last + 1 : name;
    if (layer >= 0)
        return layer % 2 ? "var(--a)" : "color-mix(in srgb,var(--a) 78%,var(--bg))";
    if (strcmp(last, "embed_tokens") == 0 || strcmp(last, "norm") == 0)
        return ek_page_colours[5];
    return ek_page_colours[strcmp(last, "lm_head") == 0 ? 1 : 3];
}

static double module_seconds(const struct ek_file_stage *s, size_t k, bool decode)
{
    double v = json_number_value(json_array_get(json_array_get(s->times, k), decode));

    return isfinite(v) && v >= 0 ? fmin(v, 1e9) : 0;
}

static void module_bars(struct ek_page *t, const struct ek_file_stage *s, bool decode, double most)
{
    double x = 0;
    char b[EK_UNIT_LEN], title[192];

    for (size_t k = 0; s->times && k < s->n_modules; k++) {
        double v = module_seconds(s, k, decode);
        snprintf(title, sizeof(title), "%s: %s", s->modules[k], ek_format_seconds(b, v));
        if (v > 0)
            ek_page_bar(t, x / most, v / most, BAR, module_colour(s->modules[k]), title);
        x += v;
    }
}

static void stage_row(struct ek_report *r, size_t i, bool decode, double most)
{
    const struct ek_file_stage *s = &r->f->stages[i];
    const struct ek_store_run *run = stage_run(r, i, decode);
    double v = decode ? s->decode_s : s->prefill_s;
    char name[256], value[128], b[2][EK_UNIT_LEN];

    ek_report_stage_name(r->f, i, name, sizeof(name));
    snprintf(value, sizeof(value), "%s", ek_format_seconds(b[0], v));
    if (run)
        snprintf(value, sizeof(value), "%s, measured %s", ek_format_seconds(b[0], v),
                 ek_format_seconds(b[1], run->measured));
    ek_page_row(&r->page, decode ? "decode" : "prefill", name, name, value, BAR);
    ek_page_bar(&r->page, 0, v / most, BAR, "var(--f)", value);
    module_bars(&r->page, s, decode, most);
    if (run) {
        ek_page_mark(&r->page, run->measured / most, BAR, "var(--fg)");
        ek_page_bar(&r->page, (run->measured - run->mad) / most, 2 * run->mad / most, 3,
                    "var(--fg)", "spread of what was measured");
    }
    ek_page_row_end(&r->page);
}

static void stage_chart(struct ek_report *r, bool decode)
{
    const struct ek_plan_file *f = r->f;
    double most = 1e-12;
    char name[256];

    for (size_t i = 0; i < f->n_stages; i++) {
        const struct ek_store_run *run = stage_run(r, i, decode);
        most = fmax(most, decode ? f->stages[i].decode_s : f->stages[i].prefill_s);
        most = fmax(most, run ? run->measured + run->mad : 0);
    }
    ek_page_add(&r->page, "<h3>%s</h3>\n",
                decode ? "One decode step of one group" : "Prefill: all prompts of the batch");
    for (size_t i = 0; i < f->n_stages; i++)
        stage_row(r, i, decode, most);
    time_head(r);
    for (size_t i = 0; i < f->n_stages; i++) {
        const struct ek_file_stage *s = &f->stages[i];
        ek_report_stage_name(f, i, name, sizeof(name));
        ek_page_add(&r->page, "<tr>");
        ek_page_cell(&r->page, name);
        time_cells(r, decode ? s->decode_s : s->prefill_s,
                   decode ? s->decode_mad_s : s->prefill_mad_s, s->samples,
                   stage_run(r, i, decode));
    }
    ek_page_table_end(&r->page);
}

static void add_contents(struct ek_report *r)
{
    const struct ek_plan_file *f = r->f;
    char name[256], n[32], b[EK_UNIT_LEN];

    ek_page_table(&r->page, "stage|first module|last module|modules|hand-off");
    for (size_t i = 0; i < f->n_stages; i++) {
        const struct ek_file_stage *s = &f->stages[i];
        ek_report_stage_name(f, i, name, sizeof(name));
        snprintf(n, sizeof(n), "%zu", s->n_modules);
        ek_page_add(&r->page, "<tr>");
        ek_page_cell(&r->page, name);
        ek_page_cell(&r->page, s->modules[0]);
        ek_page_cell(&r->page, s->modules[s->n_modules - 1]);
        ek_page_cell(&r->page, n);
        ek_page_cell(&r->page, i + 1 < f->n_stages ? ek_format_seconds(b, s->handoff_s) : "");
        ek_page_add(&r->page, "</tr>\n");
    }
    ek_page_table_end(&r->page);
}

static void add_stages(struct ek_report *r)
{
    ek_page_chapter(&r->page, "stages", "Time of each stage and module",
                    "n: samples behind a number (of a prediction: the least behind any of its "
                    "modules); spread: their median absolute deviation");
    ek_page_add(&r->page,
                "<p class=\"n\"><span class=\"k\" style=\"background:var(--a)\"></span>"
                "layers<span class=\"k\" style=\"background:var(--f)\"></span>embedding, "
                "norm, the stage's own<span class=\"k\" style=\"background:var(--b)\">"
                "</span>head<span class=\"k\" style=\"background:var(--d)\"></span>vision "
                "and other side modules</p>\n");
    stage_chart(r, false);
    stage_chart(r, true);
    add_contents(r);
}

char *ek_report_html(const struct ek_plan_file *f, const struct ek_store_run *runs, size_t n_runs)
{
    struct ek_report r = {.f = f, .runs = runs, .n_runs = n_runs};
    char title[160];

    for (size_t i = 0; i < f->n_stages; i++)
        r.sampled = r.sampled || f->stages[i].samples > 0;
    snprintf(title, sizeof(title), "Plan of %.128s", f->model);
    ek_page_begin(&r.page, title);
    add_summary(&r);
    add_memory(&r);
    add_stages(&r);
    ek_report_timelines(&r);
    ek_report_links(&r);
    ek_report_others(&r);
    ek_report_front(&r);
    ek_page_end(&r.page);
    if (r.page.failed) {
        free(r.page.data);
        return NULL;
    }
    return r.page.data;
}
