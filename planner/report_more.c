/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The report's later chapters: the pipeline over time, links, and what else there was to choose.
 */
#include "planner/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- The pipeline over time ---------------------------------------------------------------------
 * Jobs pass through the stages in turn; a device works on one at a time, and what follows a job
 * waits for its last stage. */
#define SHOWN_ROUNDS 3
#define SHOWN_JOBS   8
#define ROW          15 /* pixels */

struct timeline {
    uint32_t rounds, jobs;
    double step[EK_FILE_MAX_STAGES], hop[EK_FILE_MAX_STAGES];
    double start[SHOWN_ROUNDS][SHOWN_JOBS][EK_FILE_MAX_STAGES], end;
};

static void schedule(const struct ek_plan_file *f, struct timeline *t)
{
    double free_at[EK_FILE_MAX_DEVICES] = {0}, ready[SHOWN_JOBS] = {0};

    t->end = 1e-12;
    for (uint32_t r = 0; r < t->rounds; r++)
        for (uint32_t g = 0; g < t->jobs; g++)
            for (size_t i = 0; i < f->n_stages; i++) {
                double *device = &free_at[f->stages[i].devices[0]];
                t->start[r][g][i] = fmax(ready[g], *device);
                *device = t->start[r][g][i] + t->step[i];
                ready[g] = *device + t->hop[i];
                t->end = fmax(t->end, *device);
            }
}

/* Side modules alone have no part in decoding. */
static bool idle(const struct timeline *t, size_t stage)
{
    return t->step[stage] <= 0;
}

static void draw(struct ek_report *r, const struct timeline *t, const char *class,
                 const char *round_word, const char *job_word)
{
    char name[256], value[EK_UNIT_LEN], title[96];

    for (size_t i = 0; i < r->f->n_stages; i++) {
        if (idle(t, i))
            continue;
        ek_report_stage_name(r->f, i, name, sizeof(name));
        ek_page_row(&r->page, class, name, name, "", ROW);
        for (uint32_t k = 0; k < t->rounds; k++)
            for (uint32_t g = 0; g < t->jobs; g++) {
                snprintf(title, sizeof(title), "%s %u, %s %u", round_word, k, job_word, g);
                ek_page_bar(&r->page, t->start[k][g][i] / t->end, t->step[i] / t->end, ROW,
                            ek_page_colours[g % 6], title);
            }
        ek_page_row_end(&r->page);
    }
    ek_page_axis(&r->page, "0", ek_format_seconds(value, t->end));
}

static void prefill_timeline(struct ek_report *r, struct timeline *t)
{
    const json_t *w = json_object_get(r->f->root, "workload");
    double chunk = ek_page_number(w, "prefill_chunk");
    double prompt = ek_page_number(w, "prompt") +
                    ek_page_number(w, "images") * ek_page_number(w, "image_tokens");
    double chunks = chunk > 0 ? ceil(r->f->batch * prompt / chunk) : 1;

    if (prompt == 0)
        return;
    t->rounds = 1;
    t->jobs = (uint32_t)fmin(fmax(chunks, 1), SHOWN_JOBS);
    for (size_t i = 0; i < r->f->n_stages; i++) {
        t->step[i] = r->f->stages[i].prefill_s / fmax(chunks, 1);
        t->hop[i] = r->f->stages[i].handoff_s;
    }
    schedule(r->f, t);
    ek_page_add(&r->page, "<h3>Prefill: the first %u of %.0f chunks, a colour each</h3>\n", t->jobs,
                fmax(chunks, 1));
    draw(r, t, "timeline filling", "prefill", "chunk");
}

static void decode_timeline(struct ek_report *r, struct timeline *t)
{
    t->rounds = SHOWN_ROUNDS;
    t->jobs = r->f->micro_batches < SHOWN_JOBS ? r->f->micro_batches : SHOWN_JOBS;
    for (size_t i = 0; i < r->f->n_stages; i++) {
        t->step[i] = r->f->stages[i].decode_s;
        t->hop[i] = r->f->stages[i].handoff_s;
    }
    schedule(r->f, t);
    ek_page_add(&r->page, "<h3>Three decode rounds of %u group%s, a colour each</h3>\n", t->jobs,
                t->jobs == 1 ? "" : "s");
    draw(r, t, "timeline stepping", "round", "group");
}

void ek_report_timelines(struct ek_report *r)
{
    struct timeline *t = ek_calloc(1, sizeof(*t));

    if (t == NULL) {
        r->page.failed = true;
        return;
    }
    ek_page_chapter(&r->page, "pipeline", "The pipeline over time", "as predicted");
    prefill_timeline(r, t);
    decode_timeline(r, t);
    free(t);
}

/* ---- Links --------------------------------------------------------------------------------------
 */
#define NAMES 18.0 /* per cent of the width that row names take */
#define CELL  30   /* pixels high */

static const json_t *find_link(const json_t *links, const char *from, const char *to)
{
    json_t *l;
    size_t i;

    json_array_foreach((json_t *)links, i,
                       l) if (strcmp(ek_page_string(l, "from"), from) == 0 &&
                              strcmp(ek_page_string(l, "to"), to) == 0) return l;
    return NULL;
}

static void link_title(struct ek_page *t, const json_t *l)
{
    char b[EK_UNIT_LEN], a[EK_UNIT_LEN];

    ek_page_add(t, "<title>");
    ek_page_text(t, ek_page_string(l, "from"));
    ek_page_add(t, " to ");
    ek_page_text(t, ek_page_string(l, "to"));
    ek_page_add(t, ": %s, latency %s, ", ek_format_rate(b, ek_page_number(l, "beta_bytes_s")),
                ek_format_seconds(a, ek_page_number(l, "alpha_s")));
    ek_page_text(t, ek_page_string(l, "mechanism"));
    ek_page_add(t, "</title>");
}

static void link_cell(struct ek_page *t, const json_t *l, double x, double y, double width,
                      double most)
{
    double beta = ek_page_number(l, "beta_bytes_s"), heat = l ? 0.15 + 0.85 * beta / most : 0;

    ek_page_add(t,
                "<rect class=\"%s\" x=\"%.2f%%\" y=\"%.0f\" width=\"%.2f%%\" height=\"%d\" "
                "fill=\"var(--a)\" fill-opacity=\"%.2f\" stroke=\"var(--line)\">",
                l ? "link" : "none", x, y, width, CELL, heat);
    if (l)
        link_title(t, l);
    ek_page_add(t, "</rect>");
    if (l && width > 8)
        ek_page_add(t,
                    "<text x=\"%.2f%%\" y=\"%.0f\" text-anchor=\"middle\" pointer-events=\"none\" "
                    "style=\"fill:%s\">%.*f</text>",
                    x + width / 2, y + 20, heat > 0.5 ? "var(--on)" : "var(--fg)",
                    beta < 9.95e9 ? 1 : 0, beta / 1e9);
}

static void link_matrix(struct ek_report *r, const json_t *links, double most)
{
    const struct ek_plan_file *f = r->f;
    double width = (100 - NAMES) / (double)f->n_devices;

    ek_page_add(&r->page,
                "<svg class=\"links\" height=\"%.0f\" role=\"img\" aria-label=\"bandwidth "
                "of the links\">",
                22 + CELL * (double)f->n_devices);
    for (size_t a = 0; a < f->n_devices; a++) {
        ek_page_add(&r->page, "<text x=\"0\" y=\"%.0f\">", 20 + CELL * ((double)a + 0.65));
        ek_page_add(&r->page, "%zu ", a);
        ek_page_text(&r->page, f->n_devices <= 16 ? f->devices[a].name : "");
        ek_page_add(&r->page,
                    "</text><text x=\"%.2f%%\" y=\"14\" text-anchor=\"middle\">%zu</text>",
                    NAMES + width * ((double)a + 0.5), a);
        for (size_t b = 0; b < f->n_devices; b++)
            link_cell(&r->page,
                      a == b ? NULL : find_link(links, f->devices[a].name, f->devices[b].name),
                      NAMES + width * (double)b, 20 + CELL * (double)a, width, most);
    }
    ek_page_add(&r->page, "</svg>\n");
}

void ek_report_links(struct ek_report *r)
{
    const json_t *links = json_object_get(r->f->root, "links");
    double most = 1;
    json_t *l;
    size_t i;

    if (json_array_size(links) == 0 || r->f->n_devices < 2)
        return;
    json_array_foreach((json_t *)links, i, l) most = fmax(most, ek_page_number(l, "beta_bytes_s"));
    ek_page_chapter(&r->page, "links", "Links",
                    "GB/s from row to column; darker is faster; no colour: none");
    link_matrix(r, links, most);
}

/* ---- What else there was ------------------------------------------------------------------------
 */
static void ratio_cell(struct ek_page *t, double v, double best)
{
    char s[32] = "";

    if (v > 0 && best > 0)
        snprintf(s, sizeof(s), "%.2f ×", v / best);
    ek_page_cell(t, s);
}

static void recipe_row(struct ek_page *t, const json_t *o, double best)
{
    double v = ek_page_number(o, "throughput_s");
    bool fits = json_is_true(json_object_get(o, "fits"));
    char b[EK_UNIT_LEN], full[32] = "";

    if (ek_page_number(o, "balance") > 0)
        snprintf(full, sizeof(full), "%.0f %%", 100 * ek_page_number(o, "balance"));
    ek_page_add(t, "<tr class=\"recipe\">");
    ek_page_cell(t, ek_page_string(o, "recipe"));
    ek_page_add(t, "<td%s>%s</td>", fits ? "" : " class=\"bad\"", fits ? "yes" : "no");
    ek_page_cell(t, v > 0 ? ek_format_seconds(b, v) : "");
    ratio_cell(t, v, best);
    ek_page_cell(t, full);
    ek_page_cell(t, ek_page_string(o, "note"));
    ek_page_add(t, "</tr>\n");
}

static void own_row(struct ek_page *t, const json_t *e)
{
    char b[EK_UNIT_LEN];

    ek_page_add(t, "<tr>");
    ek_page_cell(t, "this plan");
    ek_page_cell(t, "yes");
    ek_page_cell(t, ek_format_seconds(b, ek_page_number(e, "throughput_s")));
    ek_page_cell(t, "1.00 ×");
    snprintf(b, sizeof(b), "%.0f %%", 100 * ek_page_number(e, "balance"));
    ek_page_cell(t, b);
    ek_page_cell(t, "");
    ek_page_add(t, "</tr>\n");
}

static void next_row(struct ek_page *t, const json_t *o, size_t rank, double best)
{
    char s[EK_UNIT_LEN];

    snprintf(s, sizeof(s), "%zu", rank);
    ek_page_add(t, "<tr class=\"next\">");
    ek_page_cell(t, s);
    ek_page_cell(t, ek_format_seconds(s, ek_page_number(o, "throughput_s")));
    ratio_cell(t, ek_page_number(o, "throughput_s"), best);
    ek_page_cell(t, ek_format_seconds(s, ek_page_number(o, "latency_s")));
    snprintf(s, sizeof(s), "%.1f %%", 100 * ek_page_number(o, "balance"));
    ek_page_cell(t, s);
    ek_page_add(t, "</tr>\n");
}

static void add_purchases(struct ek_page *t, const json_t *list)
{
    json_t *o;
    size_t i;
    char s[32];

    if (json_array_size(list) == 0)
        return;
    ek_page_chapter(t, "purchases", "What more would buy",
                    "the first objective, against this plan");
    ek_page_table(t, "change|against this plan");
    json_array_foreach((json_t *)list, i, o)
    {
        ek_page_add(t, "<tr>");
        ek_page_cell(t, ek_page_string(o, "change"));
        snprintf(s, sizeof(s), "%.3f ×", ek_page_number(o, "times"));
        ek_page_cell(t, s);
        ek_page_add(t, "</tr>\n");
    }
    ek_page_table_end(t);
}

void ek_report_others(struct ek_report *r)
{
    const json_t *e = json_object_get(r->f->root, "explanation");
    const json_t *recipes = json_object_get(e, "recipes"), *next = json_object_get(e, "next_best");
    double best = ek_page_number(e, "throughput_s");
    json_t *o;
    size_t i;

    if (json_array_size(recipes)) {
        ek_page_chapter(&r->page, "recipes", "Against the usual recipes",
                        "the same costs; seconds a batch in steady state");
        ek_page_table(&r->page, "recipe|fits|a batch|against ours|fullest|");
        own_row(&r->page, e);
        json_array_foreach((json_t *)recipes, i, o) recipe_row(&r->page, o, best);
        ek_page_table_end(&r->page);
    }
    if (json_array_size(next)) {
        ek_page_chapter(&r->page, "next", "Next-best plans", "");
        ek_page_table(&r->page, "plan|a batch|against ours|latency|fullest device");
        json_array_foreach((json_t *)next, i, o) next_row(&r->page, o, i + 2, best);
        ek_page_table_end(&r->page);
    }
    add_purchases(&r->page, json_object_get(e, "sensitivity"));
}

/* ---- The front ----------------------------------------------------------------------------------
 */
#define PLOT 260 /* pixels high */

struct axis { /* a little more than the points' own range */
    double low, high;
};

static struct axis axis_of(const json_t *front, const char *key)
{
    struct axis a = {INFINITY, 0};
    double slack;
    json_t *o;
    size_t i;

    json_array_foreach((json_t *)front, i, o)
    {
        a.low = fmin(a.low, ek_page_number(o, key));
        a.high = fmax(a.high, ek_page_number(o, key));
    }
    slack = fmax(0.08 * (a.high - a.low), 0.02 * a.high + 1e-12);
    return (struct axis){fmax(a.low - slack, 0), a.high + slack};
}

static double along(const struct axis *a, double v)
{
    return (v - a->low) / (a->high - a->low);
}

static void front_point(struct ek_page *t, const json_t *o, const struct axis *x,
                        const struct axis *y)
{
    double prefill = ek_page_number(o, "prefill_s"), decode = ek_page_number(o, "decode_s");
    double balance = ek_page_number(o, "balance");
    char a[EK_UNIT_LEN], b[EK_UNIT_LEN];

    ek_page_add(t,
                "<circle class=\"point\" cx=\"%.2f%%\" cy=\"%.1f\" r=\"%.1f\" fill=\"var(--a)\" "
                "fill-opacity=\".6\"><title>prefill %s, decode %s, memory %.1f %%</title></circle>",
                3 + 94 * along(x, prefill), PLOT - 12 - (PLOT - 40) * along(y, decode),
                3 + 7 * fmin(1, balance), ek_format_seconds(a, prefill),
                ek_format_seconds(b, decode), 100 * balance);
}

static void front_row(struct ek_page *t, const json_t *o)
{
    char b[EK_UNIT_LEN];

    ek_page_add(t, "<tr class=\"front\">");
    ek_page_cell(t, ek_format_seconds(b, ek_page_number(o, "prefill_s")));
    ek_page_cell(t, ek_format_seconds(b, ek_page_number(o, "decode_s")));
    snprintf(b, sizeof(b), "%.1f %%", 100 * ek_page_number(o, "balance"));
    ek_page_cell(t, b);
    ek_page_add(t, "</tr>\n");
}

void ek_report_front(struct ek_report *r)
{
    const json_t *front = json_object_get(r->f->root, "pareto");
    struct axis x, y;
    char b[EK_UNIT_LEN], low[EK_UNIT_LEN];
    json_t *o;
    size_t i;

    if (json_array_size(front) == 0)
        return;
    x = axis_of(front, "prefill_s");
    y = axis_of(front, "decode_s");
    ek_page_chapter(&r->page, "front", "The front of alternatives",
                    "no plan is better in one of the slowest stage's prefill (across), its decode "
                    "(up) and the fullest memory (size) without being worse in another");
    ek_page_add(&r->page,
                "<svg class=\"plot\" height=\"%d\" role=\"img\" aria-label=\"front of "
                "prefill, decode and memory\"><rect x=\"0\" y=\"0\" width=\"100%%\" "
                "height=\"%d\" fill=\"none\" stroke=\"var(--line)\"/><text x=\"6\" "
                "y=\"16\">decode %s</text><text x=\"6\" y=\"%d\">%s</text>",
                PLOT, PLOT, ek_format_seconds(b, y.high), PLOT - 6, ek_format_seconds(low, y.low));
    json_array_foreach((json_t *)front, i, o) front_point(&r->page, o, &x, &y);
    ek_page_add(&r->page, "</svg>\n");
    ek_page_add(&r->page, "<div class=\"axis\"><span>prefill %s</span><span>%s</span></div>\n",
                ek_format_seconds(low, x.low), ek_format_seconds(b, x.high));
    ek_page_table(&r->page, "prefill|decode|fullest memory");
    json_array_foreach((json_t *)front, i, o) front_row(&r->page, o);
    ek_page_table_end(&r->page);
}
