/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A plan as one HTML page: no network, no script, pictures as inline SVG that scale to a phone and
 * follow the reader's light or dark mode.
 */
#include "planner/plan_file.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 760 /* of every picture, in its own units */
#define LABEL 130

struct page {
    char *data;
    size_t n, cap;
    bool failed;
};

__attribute__((format(printf, 2, 3))) static void add(struct page *t, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || t->failed ||
        ek_grow((void **)&t->data, &t->cap, t->n + (size_t)n + 1, 1, (size_t)64 << 20) != EK_OK) {
        t->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(t->data + t->n, (size_t)n + 1, fmt, ap);
    va_end(ap);
    t->n += (size_t)n;
}

/* Text of a file into HTML: the five characters that matter. */
static void add_text(struct page *t, const char *s)
{
    for (; s && *s; s++)
        switch (*s) {
        case '&':
            add(t, "&amp;");
            break;
        case '<':
            add(t, "&lt;");
            break;
        case '>':
            add(t, "&gt;");
            break;
        case '"':
            add(t, "&quot;");
            break;
        default:
            add(t, "%c", *s);
        }
}

static const char style[] =
    ":root{--fg:#1c2430;--bg:#fff;--soft:#5b6675;--line:#d8dee6;--card:#f5f7fa;--a:#2f6fb3;"
    "--b:#d98032;--c:#5b9a4a;--d:#8a63b3;--e:#b3475b;--f:#7a8594;--bad:#c0392b}"
    "@media(prefers-color-scheme:dark){:root{--fg:#e4e9f0;--bg:#12161c;--soft:#9aa6b5;"
    "--line:#2c3541;--card:#1a2029;--a:#5a9bdc;--b:#e59a55;--c:#7fbf6c;--d:#ad8bd6;--e:#d9707f;"
    "--f:#8b97a6;--bad:#e5604f}}"
    "*{box-sizing:border-box}body{margin:0 auto;max-width:860px;padding:1rem;color:var(--fg);"
    "background:var(--bg);font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;margin:.2rem 0}"
    "h2{font-size:1.1rem;margin:2rem 0 .4rem}svg{width:100%;height:auto;display:block}"
    "svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .s{fill:var(--soft)}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{padding:.25rem .5rem;"
    "border-bottom:1px solid var(--line);text-align:right}td:first-child,th:first-child{"
    "text-align:left}.wide{overflow-x:auto}p.n{color:var(--soft);font-size:.9rem;margin:.3rem 0}"
    ".k{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em}"
    ".cards{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0}.cards div{background:var(--card);"
    "border:1px solid var(--line);border-radius:.4rem;padding:.5rem .8rem;flex:1 1 9rem}"
    ".cards b{display:block;font-size:1.2rem}";

static const char *const colours[] = {"var(--a)", "var(--b)", "var(--c)",
                                      "var(--d)", "var(--e)", "var(--f)"};

/* ---- Values -------------------------------------------------------------------------------------
 */
static double number(const json_t *o, const char *key)
{
    double v = json_number_value(json_object_get(o, key));

    return isfinite(v) && v >= 0 && v < 1e18 ? v : 0;
}

static const char *string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

static void seconds(struct page *t, double s)
{
    char b[EK_UNIT_LEN];

    add_text(t, ek_format_seconds(b, s));
}

static void bytes(struct page *t, double v)
{
    char b[EK_UNIT_LEN];

    add_text(t, ek_format_bytes(b, (uint64_t)v));
}

static void rect(struct page *t, double x, double y, double w, double h, const char *colour)
{
    add(t, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\">", x, y,
        fmax(w, 0), h, colour);
}

static void label(struct page *t, double x, double y, const char *anchor, const char *class,
                  const char *s)
{
    add(t, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y, anchor, class);
    add_text(t, s);
    add(t, "</text>");
}

static void open_picture(struct page *t, double height, const char *what)
{
    add(t, "<svg viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"%s\">", WIDTH, height, what);
}

/* ---- Summary ------------------------------------------------------------------------------------
 */
static void fact(struct page *t, const char *what, const char *value)
{
    add(t, "<div>");
    add_text(t, what);
    add(t, "<b>");
    add_text(t, value);
    add(t, "</b></div>");
}

static void add_summary(struct page *t, const struct ek_plan_file *f)
{
    const json_t *pred = json_object_get(f->root, "predicted");
    const json_t *opt = json_object_get(f->root, "optimality");
    bool proven = json_is_true(json_object_get(opt, "proven"));
    char b[64];

    add(t, "<h1>");
    add_text(t, f->model);
    add(t, "</h1><p class=\"n\">batch %u, context %u, %u micro-batches, %zu stages", f->batch,
        f->context, f->micro_batches, f->n_stages);
    if (json_is_true(json_object_get(pred, "estimate")))
        add(t, " &middot; <b>an estimate, not measured</b>");
    add(t, "</p><div class=\"cards\">");
    fact(t, "prefill", ek_format_seconds(b, number(pred, "prefill_s")));
    fact(t, "decode, a token of all", ek_format_seconds(b, number(pred, "decode_s")));
    snprintf(b, sizeof(b), "%.1f", number(pred, "tokens_per_s"));
    fact(t, "tokens a second", b);
    fact(t, "optimality", proven ? "proven" : "not proven");
    add(t, "</div><p class=\"n\">");
    add_text(t, string(opt, "solver"));
    add(t, "; cross-check: ");
    add_text(t, string(opt, "cross_check"));
    add(t, "; gap %.3g</p>", number(opt, "gap"));
}

/* ---- Memory -------------------------------------------------------------------------------------
 */
static const char *const kinds[] = {"weights",   "kv",   "activations",
                                    "workspace", "comm", "overhead"};

static void memory_bar(struct page *t, const json_t *m, double y, double most)
{
    double x = LABEL, scale = (WIDTH - LABEL - 10) / most, budget = number(m, "budget");
    char b[EK_UNIT_LEN];

    label(t, LABEL - 8, y + 15, "end", "", string(m, "device"));
    for (size_t k = 0; k < EK_ARRAY_LEN(kinds); k++) {
        double v = number(m, kinds[k]);
        rect(t, x, y, v * scale, 20, colours[k]);
        add(t, "<title>%s %s</title></rect>", kinds[k], ek_format_bytes(b, (uint64_t)v));
        x += v * scale;
    }
    add(t,
        "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--bad)\" "
        "stroke-width=\"2\"/>",
        LABEL + budget * scale, LABEL + budget * scale, y - 3, y + 23);
}

static void add_memory(struct page *t, const struct ek_plan_file *f)
{
    const json_t *list = json_object_get(f->root, "memory");
    double most = 1;
    json_t *m;
    size_t i;

    if (json_array_size(list) == 0)
        return;
    json_array_foreach((json_t *)list, i, m) most =
        fmax(most, fmax(number(m, "budget"), number(m, "total")));
    add(t, "<h2>Memory of each device</h2><p class=\"n\">red line: the budget");
    for (size_t k = 0; k < EK_ARRAY_LEN(kinds); k++)
        add(t, "<span class=\"k\" style=\"background:%s\"></span>%s", colours[k], kinds[k]);
    add(t, "</p>");
    open_picture(t, 30.0 * (double)json_array_size(list) + 6, "memory of each device by kind");
    json_array_foreach((json_t *)list, i, m) memory_bar(t, m, 5 + 30.0 * (double)i, most);
    add(t, "</svg><div class=\"wide\"><table><tr><th>device</th><th>used</th><th>margin</th>"
           "<th>budget</th><th>full</th></tr>");
    json_array_foreach((json_t *)list, i, m)
    {
        add(t, "<tr><td>");
        add_text(t, string(m, "device"));
        add(t, "</td><td>");
        bytes(t, number(m, "total"));
        add(t, "</td><td>");
        bytes(t, number(m, "margin"));
        add(t, "</td><td>");
        bytes(t, number(m, "budget"));
        add(t, "</td><td>%.1f %%</td></tr>",
            100 * (number(m, "total") + number(m, "margin")) / fmax(number(m, "budget"), 1));
    }
    add(t, "</table></div>");
}

/* ---- Stages -------------------------------------------------------------------------------------
 */
static void stage_name(const struct ek_plan_file *f, size_t i, char *out, size_t cap)
{
    const struct ek_file_stage *s = &f->stages[i];

    snprintf(out, cap, "%zu %.24s%s", i, f->devices[s->devices[0]].name,
             s->n_devices > 1 ? "+" : "");
}

static void stage_bars(struct page *t, const struct ek_plan_file *f, bool decode)
{
    double most = 1e-12;
    char name[64], b[EK_UNIT_LEN];

    for (size_t i = 0; i < f->n_stages; i++)
        most = fmax(most, decode ? f->stages[i].decode_s : f->stages[i].prefill_s);
    add(t, "<p class=\"n\">%s</p>",
        decode ? "one decode step of one group" : "all prompts of the batch");
    open_picture(t, 24.0 * (double)f->n_stages + 4,
                 decode ? "decode step of each stage" : "prefill of each stage");
    for (size_t i = 0; i < f->n_stages; i++) {
        double v = decode ? f->stages[i].decode_s : f->stages[i].prefill_s;
        double w = v / most * (WIDTH - LABEL - 110), y = 3 + 24.0 * (double)i;
        stage_name(f, i, name, sizeof(name));
        label(t, LABEL - 8, y + 13, "end", "", name);
        rect(t, LABEL, y, w, 17, colours[decode ? 1 : 0]);
        add(t, "</rect>");
        label(t, LABEL + w + 6, y + 13, "start", "s", ek_format_seconds(b, v));
    }
    add(t, "</svg>");
}

static void add_stages(struct page *t, const struct ek_plan_file *f)
{
    add(t, "<h2>Stages</h2>");
    stage_bars(t, f, false);
    stage_bars(t, f, true);
    add(t, "<div class=\"wide\"><table><tr><th>stage</th><th>first module</th><th>last module</th>"
           "<th>modules</th><th>hand-off</th></tr>");
    for (size_t i = 0; i < f->n_stages; i++) {
        const struct ek_file_stage *s = &f->stages[i];
        char name[64];
        stage_name(f, i, name, sizeof(name));
        add(t, "<tr><td>");
        add_text(t, name);
        add(t, "</td><td>");
        add_text(t, s->modules[0]);
        add(t, "</td><td>");
        add_text(t, s->modules[s->n_modules - 1]);
        add(t, "</td><td>%zu</td><td>", s->n_modules);
        seconds(t, s->handoff_s);
        add(t, "</td></tr>");
    }
    add(t, "</table></div>");
}

/* ---- The pipeline over time ---------------------------------------------------------------------
 * Groups pass through the stages in turn; a stage works on one at a time, and a group's next token
 * waits for its last. */
#define SHOWN_ROUNDS 3
#define SHOWN_GROUPS 8

static void add_timeline(struct page *t, const struct ek_plan_file *f)
{
    static double start[SHOWN_ROUNDS][SHOWN_GROUPS][EK_FILE_MAX_STAGES];
    uint32_t groups = f->micro_batches < SHOWN_GROUPS ? f->micro_batches : SHOWN_GROUPS;
    double free_at[EK_FILE_MAX_STAGES] = {0}, ready[SHOWN_GROUPS] = {0}, end = 1e-12;
    char name[64];

    for (int r = 0; r < SHOWN_ROUNDS; r++)
        for (uint32_t g = 0; g < groups; g++)
            for (size_t i = 0; i < f->n_stages; i++) {
                const struct ek_file_stage *s = &f->stages[i];
                start[r][g][i] = fmax(ready[g], free_at[i]);
                free_at[i] = start[r][g][i] + s->decode_s;
                ready[g] = free_at[i] + s->handoff_s;
                end = fmax(end, ready[g]);
            }
    add(t,
        "<h2>Pipeline</h2><p class=\"n\">three decode rounds of %u group%s; a colour a group</p>",
        groups, groups == 1 ? "" : "s");
    open_picture(t, 22.0 * (double)f->n_stages + 22, "timeline of the pipeline");
    for (size_t i = 0; i < f->n_stages; i++) {
        double y = 2 + 22.0 * (double)i;
        stage_name(f, i, name, sizeof(name));
        label(t, LABEL - 8, y + 13, "end", "", name);
        for (int r = 0; r < SHOWN_ROUNDS; r++)
            for (uint32_t g = 0; g < groups; g++) {
                double scale = (WIDTH - LABEL - 6) / end;
                rect(t, LABEL + start[r][g][i] * scale, y, f->stages[i].decode_s * scale - 0.6, 17,
                     colours[g % EK_ARRAY_LEN(colours)]);
                add(t, "<title>round %d, group %u</title></rect>", r, g);
            }
    }
    label(t, LABEL, 22.0 * (double)f->n_stages + 16, "start", "s", "0");
    label(t, WIDTH - 6, 22.0 * (double)f->n_stages + 16, "end", "s", ek_format_seconds(name, end));
    add(t, "</svg>");
}

/* ---- Links --------------------------------------------------------------------------------------
 */
static const json_t *find_link(const json_t *links, const char *from, const char *to)
{
    json_t *l;
    size_t i;

    json_array_foreach((json_t *)links, i, l) if (strcmp(string(l, "from"), from) == 0 &&
                                                  strcmp(string(l, "to"), to) == 0) return l;
    return NULL;
}

static void link_cell(struct page *t, const json_t *l, double x, double y, double size, double most)
{
    double beta = number(l, "beta_bytes_s");
    char b[EK_UNIT_LEN];

    add(t,
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"var(--a)\" "
        "fill-opacity=\"%.2f\" stroke=\"var(--line)\">",
        x, y, size, size, l ? 0.15 + 0.85 * beta / most : 0);
    add(t, "<title>");
    if (l) {
        add_text(t, string(l, "from"));
        add(t, " to ");
        add_text(t, string(l, "to"));
        add(t, ": %s", ek_format_rate(b, beta));
        add(t, ", latency %s", ek_format_seconds(b, number(l, "alpha_s")));
    }
    add(t, "</title></rect>");
}

static void add_links(struct page *t, const struct ek_plan_file *f)
{
    const json_t *links = json_object_get(f->root, "links"), *l;
    double most = 1, size;
    size_t i;

    if (json_array_size(links) == 0 || f->n_devices < 2)
        return;
    json_array_foreach((json_t *)links, i, l) most = fmax(most, number(l, "beta_bytes_s"));
    size = fmin(36, (WIDTH - LABEL - 10.0) / (double)f->n_devices);
    add(t, "<h2>Links</h2><p class=\"n\">from row to column; darker is faster</p>");
    open_picture(t, size * (double)f->n_devices + 24, "bandwidth of the links");
    for (size_t a = 0; a < f->n_devices; a++) {
        label(t, LABEL - 8, 20 + size * ((double)a + 0.6), "end", "", f->devices[a].name);
        add(t, "<text x=\"%.1f\" y=\"14\" text-anchor=\"middle\" class=\"s\">%zu</text>",
            LABEL + size * ((double)a + 0.5), a);
        for (size_t b = 0; b < f->n_devices; b++)
            link_cell(t, a == b ? NULL : find_link(links, f->devices[a].name, f->devices[b].name),
                      LABEL + size * (double)b, 20 + size * (double)a, size, most);
    }
    add(t, "</svg>");
}

/* ---- What else there was ------------------------------------------------------------------------
 */
static void recipe_row(struct page *t, const json_t *r, double best)
{
    double v = number(r, "throughput_s");

    add(t, "<tr><td>");
    add_text(t, string(r, "recipe"));
    add(t, "</td><td>");
    if (json_is_true(json_object_get(r, "fits")))
        add(t, "yes");
    else
        add(t, "<span style=\"color:var(--bad)\">no</span>");
    add(t, "</td><td>");
    if (v > 0)
        seconds(t, v);
    add(t, "</td><td>");
    if (v > 0 && best > 0)
        add(t, "%.2f&times;", v / best);
    add(t, "</td></tr>");
}

static void add_others(struct page *t, const struct ek_plan_file *f)
{
    const json_t *e = json_object_get(f->root, "explanation");
    const json_t *recipes = json_object_get(e, "recipes"), *next = json_object_get(e, "next_best");
    double best = number(e, "throughput_s");
    json_t *r;
    size_t i;

    if (json_array_size(recipes)) {
        add(t, "<h2>Against the usual recipes</h2><p class=\"n\">the same costs, a batch in steady "
               "state; this plan: ");
        seconds(t, best);
        add(t, "</p><div class=\"wide\"><table><tr><th>recipe</th><th>fits</th><th>a batch</th>"
               "<th>times ours</th></tr>");
        json_array_foreach((json_t *)recipes, i, r) recipe_row(t, r, best);
        add(t, "</table></div>");
    }
    if (json_array_size(next) == 0)
        return;
    add(t, "<h2>Next-best plans</h2><div class=\"wide\"><table><tr><th>plan</th><th>a batch</th>"
           "<th>latency</th><th>fullest device</th></tr>");
    json_array_foreach((json_t *)next, i, r)
    {
        add(t, "<tr><td>%zu</td><td>", i + 2);
        seconds(t, number(r, "throughput_s"));
        add(t, "</td><td>");
        seconds(t, number(r, "latency_s"));
        add(t, "</td><td>%.1f %%</td></tr>", 100 * number(r, "balance"));
    }
    add(t, "</table></div>");
}

static void add_front(struct page *t, const struct ek_plan_file *f)
{
    const json_t *front = json_object_get(f->root, "pareto");
    double px = 1e-12, py = 1e-12;
    json_t *o;
    size_t i;

    if (json_array_size(front) == 0)
        return;
    json_array_foreach((json_t *)front, i, o)
    {
        px = fmax(px, number(o, "prefill_s"));
        py = fmax(py, number(o, "decode_s"));
    }
    add(t, "<h2>The front of alternatives</h2><p class=\"n\">slowest stage's prefill (across) and "
           "decode (up); larger: fuller memory</p>");
    open_picture(t, 300, "pareto front of prefill, decode and memory");
    json_array_foreach((json_t *)front, i, o)
    {
        add(t, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"var(--a)\" fill-opacity=\".6\">",
            LABEL + number(o, "prefill_s") / px * (WIDTH - LABEL - 30),
            285 - number(o, "decode_s") / py * 260, 3 + 7 * fmin(1, number(o, "balance")));
        add(t, "<title>prefill ");
        seconds(t, number(o, "prefill_s"));
        add(t, ", decode ");
        seconds(t, number(o, "decode_s"));
        add(t, ", memory %.1f %%</title></circle>", 100 * number(o, "balance"));
    }
    add(t, "</svg>");
}

char *ek_report_html(const struct ek_plan_file *f)
{
    struct page t = {0};

    add(&t, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
            "<meta name=\"color-scheme\" content=\"light dark\"><title>Plan of ");
    add_text(&t, f->model);
    add(&t, "</title><style>%s</style></head><body>", style);
    add_summary(&t, f);
    add_memory(&t, f);
    add_stages(&t, f);
    add_timeline(&t, f);
    add_links(&t, f);
    add_others(&t, f);
    add_front(&t, f);
    add(&t, "</body></html>\n");
    if (t.failed) {
        free(t.data);
        return NULL;
    }
    return t.data;
}
