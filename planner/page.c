/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Pieces of an HTML page: text that is escaped, tables, chapters.
 */
#include "planner/page.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *const ek_page_colours[6] = {"var(--a)", "var(--b)", "var(--c)",
                                        "var(--d)", "var(--e)", "var(--f)"};

void ek_page_add(struct ek_page *t, const char *fmt, ...)
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

/* The characters that matter to HTML, in text and in attributes. */
void ek_page_text(struct ek_page *t, const char *s)
{
    for (; s && *s; s++)
        switch (*s) {
        case '&':
            ek_page_add(t, "&amp;");
            break;
        case '<':
            ek_page_add(t, "&lt;");
            break;
        case '>':
            ek_page_add(t, "&gt;");
            break;
        case '"':
            ek_page_add(t, "&quot;");
            break;
        default:
            ek_page_add(t, "%c", *s);
        }
}

static const char style[] =
    ":root{--fg:#1c2430;--bg:#fff;--soft:#566170;--line:#d8dee6;--card:#f5f7fa;--a:#2f6fb3;"
    "--b:#d98032;--c:#5b9a4a;--d:#8a63b3;--e:#b3475b;--f:#7a8594;--bad:#c0392b;--on:#fff}"
    "@media(prefers-color-scheme:dark){:root{--fg:#e4e9f0;--bg:#12161c;--soft:#a3aebc;"
    "--line:#2c3541;--card:#1a2029;--a:#5a9bdc;--b:#e59a55;--c:#7fbf6c;--d:#ad8bd6;--e:#d9707f;"
    "--f:#8b97a6;--bad:#ff7a66;--on:#12161c}}"
    "*{box-sizing:border-box}body{margin:0 auto;max-width:900px;padding:1rem;color:var(--fg);"
    "background:var(--bg);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}"
    "h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}"
    "h3{font-size:1rem;margin:1.2rem 0 .3rem}svg{width:100%;display:block}"
    "svg text{fill:var(--fg);font:12px system-ui,sans-serif}"
    ".row{margin:.45rem 0}.row>div,.axis{display:flex;flex-wrap:wrap;justify-content:"
    "space-between;gap:0 1rem;font-size:.85rem}.row>div span,.axis{color:var(--soft)}"
    ".row svg{background:var(--card);border-radius:3px;margin-top:.1rem}"
    ".wide{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;width:100%;"
    "font-size:.85rem}td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line);"
    "text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}"
    "p.n{color:var(--soft);font-size:.9rem;margin:.3rem 0}.bad{color:var(--bad)}"
    ".k{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em}"
    ".cards{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0}.cards div{background:var(--card);"
    "border:1px solid var(--line);border-radius:.4rem;padding:.5rem .8rem;flex:1 1 9rem;"
    "font-size:.85rem}.cards b{display:block;font-size:1.2rem}.cards i{display:block;"
    "font-style:normal;color:var(--soft)}";

void ek_page_begin(struct ek_page *t, const char *title)
{
    ek_page_add(t, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                   "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                   "<meta name=\"color-scheme\" content=\"light dark\"><title>");
    ek_page_text(t, title);
    ek_page_add(t, "</title><style>%s</style></head><body>\n", style);
}

void ek_page_end(struct ek_page *t)
{
    ek_page_add(t, "</body></html>\n");
}

void ek_page_chapter(struct ek_page *t, const char *id, const char *title, const char *note)
{
    ek_page_add(t, "<h2 id=\"%s\">%s</h2>\n", id, title);
    if (note[0])
        ek_page_add(t, "<p class=\"n\">%s</p>\n", note);
}

void ek_page_table(struct ek_page *t, const char *head)
{
    ek_page_add(t, "<div class=\"wide\"><table><tr>");
    while (*head) {
        size_t n = strcspn(head, "|");
        ek_page_add(t, "<th>%.*s</th>", (int)n, head);
        head += n + (head[n] == '|');
    }
    ek_page_add(t, "</tr>\n");
}

void ek_page_cell(struct ek_page *t, const char *s)
{
    ek_page_add(t, "<td>");
    ek_page_text(t, s);
    ek_page_add(t, "</td>");
}

void ek_page_table_end(struct ek_page *t)
{
    ek_page_add(t, "</table></div>\n");
}

void ek_page_row(struct ek_page *t, const char *class, const char *key, const char *what,
                 const char *value, int height)
{
    ek_page_add(t, "<div class=\"row %s\" data-key=\"", class);
    ek_page_text(t, key);
    ek_page_add(t, "\"><div><b>");
    ek_page_text(t, what);
    ek_page_add(t, "</b><span>");
    ek_page_text(t, value);
    ek_page_add(t, "</span></div><svg height=\"%d\" role=\"img\" aria-label=\"", height);
    ek_page_text(t, what);
    ek_page_add(t, ": ");
    ek_page_text(t, value);
    ek_page_add(t, "\">");
}

void ek_page_row_end(struct ek_page *t)
{
    ek_page_add(t, "</svg></div>\n");
}

static double within(double v)
{
    return v > 0 ? fmin(v, 1) : 0;
}

void ek_page_bar(struct ek_page *t, double x, double width, int height, const char *colour,
                 const char *title)
{
    ek_page_add(t, "<rect x=\"%.2f%%\" width=\"%.2f%%\" height=\"%d\" fill=\"%s\"><title>",
                100 * within(x), 100 * within(width), height, colour);
    ek_page_text(t, title);
    ek_page_add(t, "</title></rect>");
}

void ek_page_mark(struct ek_page *t, double x, int height, const char *colour)
{
    ek_page_add(t, "<rect x=\"%.2f%%\" width=\"2\" height=\"%d\" fill=\"%s\"/>",
                fmin(100 * within(x), 99.6), height, colour);
}

void ek_page_axis(struct ek_page *t, const char *left, const char *right)
{
    ek_page_add(t, "<div class=\"axis\"><span>");
    ek_page_text(t, left);
    ek_page_add(t, "</span><span>");
    ek_page_text(t, right);
    ek_page_add(t, "</span></div>\n");
}

double ek_page_number(const json_t *o, const char *key)
{
    double v = json_number_value(json_object_get(o, key));

    return isfinite(v) && v >= 0 && v < 1e18 ? v : 0;
}

const char *ek_page_string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}
