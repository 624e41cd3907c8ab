/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Private to the report: an HTML page that grows, with pictures as inline SVG. Pictures have no
 * viewBox: across they are percentages of the page's width, down they are pixels, so that bars
 * shrink on a phone and letters do not.
 */
#ifndef EK_PLANNER_PAGE_H
#define EK_PLANNER_PAGE_H

#include "planner/plan_file.h"

struct ek_page {
    char *data; /* freed by the caller */
    size_t n, cap;
    bool failed; /* no memory: what follows is lost */
};
void ek_page_add(struct ek_page *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ek_page_text(struct ek_page *t, const char *s); /* escaped */
void ek_page_begin(struct ek_page *t, const char *title);
void ek_page_end(struct ek_page *t);
/* A chapter; note may be "". */
void ek_page_chapter(struct ek_page *t, const char *id, const char *title, const char *note);
/* Tables scroll sideways where the page is narrow. head: cells between '|'. */
void ek_page_table(struct ek_page *t, const char *head);
void ek_page_cell(struct ek_page *t, const char *s);
void ek_page_table_end(struct ek_page *t);
/* A row of a chart: what on the left, value on the right, and below them an open <svg>. class and
 * key end in the DOM: <div class="row CLASS" data-key="KEY">. */
void ek_page_row(struct ek_page *t, const char *class, const char *key, const char *what,
                 const char *value, int height);
void ek_page_row_end(struct ek_page *t);
/* x and width of 1; title is shown by a pointer that rests there. */
void ek_page_bar(struct ek_page *t, double x, double width, int height, const char *colour,
                 const char *title);
/* An upright line at x of 1. */
void ek_page_mark(struct ek_page *t, double x, int height, const char *colour);
/* What a chart's ends mean. */
void ek_page_axis(struct ek_page *t, const char *left, const char *right);
extern const char *const ek_page_colours[6];

/* ---- Values of a plan, as harmless numbers and texts --------------------------------------------
 */
double ek_page_number(const json_t *o, const char *key); /* 0 to 1e18, 0 for anything else */
const char *ek_page_string(const json_t *o, const char *key);

/* ---- Chapters of the report ---------------------------------------------------------------------
 */
struct ek_report {
    struct ek_page page;
    const struct ek_plan_file *f;
    const struct ek_store_run *runs; /* of this plan */
    size_t n_runs;
    bool sampled; /* some prediction says how many samples are behind it */
};
/* The last run's line of that name, or NULL. */
const struct ek_store_run *ek_report_run(const struct ek_report *r, const char *what);
void ek_report_stage_name(const struct ek_plan_file *f, size_t i, char *out, size_t cap);
void ek_report_timelines(struct ek_report *r);
void ek_report_links(struct ek_report *r);
void ek_report_others(struct ek_report *r);
void ek_report_front(struct ek_report *r);

#endif
