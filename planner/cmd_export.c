/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan export and report: a plan in other forms.
 */
#include "planner/commands.h"
#include "planner/plan_file.h"

#include <config.h>

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char export_help[] =
    "usage: evenkeel export PLAN.json --to TARGET [OPTION]...\n"
    "Writes a plan in another runtime's own form; exit code 1 where that cannot express it.\n"
    "\n"
    "  --to TARGET           accelerate, vllm, sglang, tensorrt-llm, llama.cpp, deepspeed\n"
    "  -o, --output FILE     write there instead of standard output\n"
    "  --force               replace FILE\n"
    "  --json                {\"target\", \"text\"} instead of the text\n"
    "  --help, --version\n";
static const char report_help[] =
    "usage: evenkeel report PLAN.json [-o REPORT.html] [OPTION]...\n"
    "Writes one self-contained page: memory, times, pipeline, links, alternatives.\n"
    "\n"
    "  --db FILE             profile with what `bench --db` measured of this very plan file\n"
    "  -o, --output FILE     write there (report.html; - is standard output)\n"
    "  --force               replace FILE\n"
    "  --json                {\"report\": FILE} when done\n"
    "  --help, --version\n";

enum { O_TO = 256, O_DB, O_FORCE, O_JSON, O_QUIET, O_HELP, O_VERSION };
static const struct option options[] = {
    {"db", required_argument, NULL, O_DB},
    {"to", required_argument, NULL, O_TO},
    {"output", required_argument, NULL, 'o'},
    {"force", no_argument, NULL, O_FORCE},
    {"json", no_argument, NULL, O_JSON},
    {"quiet", no_argument, NULL, O_QUIET},
    {"help", no_argument, NULL, O_HELP},
    {"version", no_argument, NULL, O_VERSION},
    {NULL, 0, NULL, 0},
};

struct arguments {
    const char *plan, *to, *db, *output;
    bool force, json, done;
};

static enum ek_status read_arguments(int argc, char **argv, const char *help, struct arguments *a)
{
    int o;

    optind = 0;
    opterr = 0;
    while ((o = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
        if (o == O_TO)
            a->to = optarg;
        else if (o == O_DB)
            a->db = optarg;
        else if (o == 'o')
            a->output = optarg;
        else if (o == O_FORCE)
            a->force = true;
        else if (o == O_JSON)
            a->json = true;
        else if (o == O_QUIET)
            ek_set_quiet(true);
        else if (o == O_HELP || o == O_VERSION) {
            if (o == O_HELP)
                fputs(help, stdout);
            else
                printf("evenkeel-plan %s\n", PACKAGE_VERSION);
            a->done = true;
            return EK_OK;
        } else {
            return ek_option_error(argv);
        }
    }
    if (optind + 1 != argc)
        return ek_error(EK_EUSAGE, "%s: give one PLAN.json", argv[0]);
    a->plan = argv[optind];
    return EK_OK;
}

static enum ek_status write_text(const struct arguments *a, const char *text)
{
    json_t *o;

    if (!a->json || a->output)
        EK_TRY(ek_file_write(a->output ? a->output : "-", text, strlen(text), a->force));
    if (!a->json)
        return EK_OK;
    o = json_pack("{s:s s:s}", "target", a->to, "text", text);
    return ek_json_print(o);
}

static enum ek_status run_export(int argc, char **argv, int *code)
{
    struct arguments a = {0};
    struct ek_plan_file *f;
    char *text;
    enum ek_status st;

    (void)code;
    EK_TRY(read_arguments(argc, argv, export_help, &a));
    if (a.done)
        return EK_OK;
    if (a.to == NULL)
        return ek_error(EK_EUSAGE, "export: --to TARGET is missing");
    if (a.db)
        return ek_error(EK_EUSAGE, "export: --db is for report");
    EK_TRY(ek_plan_file_read(a.plan, &f));
    st = ek_export(f, a.to, &text);
    if (st == EK_OK) {
        st = write_text(&a, text);
        free(text);
    }
    ek_plan_file_free(f);
    return st;
}

/* The rows of one plan file, by the hash that bench gave it. */
static enum ek_status read_runs(const struct arguments *a, struct ek_store_run **runs, size_t *n)
{
    struct ek_store *store;
    char *text, hash[33];
    size_t size, kept = 0;
    enum ek_status st;

    EK_TRY(ek_file_read(a->plan, (size_t)64 << 20, &text, &size));
    ek_hash_hex(text, size, hash);
    free(text);
    EK_TRY(ek_store_open(a->db, EK_STORE_READ, &store));
    st = ek_store_runs(store, runs, n);
    ek_store_close(store);
    EK_TRY(st);
    for (size_t i = 0; i < *n; i++)
        if (strcmp((*runs)[i].plan_hash, hash) == 0)
            (*runs)[kept++] = (*runs)[i];
    *n = kept;
    if (kept == 0)
        ek_note("%s has no run of %s; `evenkeel bench --plan %s --db %s` stores one", a->db,
                a->plan, a->plan, a->db);
    return EK_OK;
}

static enum ek_status make_page(const struct arguments *a, char **page)
{
    struct ek_plan_file *f = NULL;
    struct ek_store_run *runs = NULL;
    size_t n = 0;
    enum ek_status st = EK_OK;

    if (a->db)
        st = read_runs(a, &runs, &n);
    if (st == EK_OK)
        st = ek_plan_file_read(a->plan, &f);
    if (st == EK_OK && (*page = ek_report_html(f, runs, n)) == NULL)
        st = ek_error(EK_ENOMEM, "out of host memory");
    ek_plan_file_free(f);
    free(runs);
    return st;
}

static enum ek_status run_report(int argc, char **argv, int *code)
{
    struct arguments a = {.output = "report.html"};
    char *page = NULL;
    enum ek_status st;

    (void)code;
    EK_TRY(read_arguments(argc, argv, report_help, &a));
    if (a.done)
        return EK_OK;
    if (a.to)
        return ek_error(EK_EUSAGE, "report: --to is for export");
    EK_TRY(make_page(&a, &page));
    st = ek_file_write(a.output, page, strlen(page), a.force);
    free(page);
    EK_TRY(st);
    if (a.json) {
        json_t *done = json_pack("{ss}", "report", a.output);
        st = done ? ek_json_write("-", done, true)
                  : ek_error(EK_EUSAGE, "%s: the name is not UTF-8", a.output);
        json_decref(done);
        return st;
    }
    if (strcmp(a.output, "-") != 0)
        ek_note("report written to %s", a.output);
    return EK_OK;
}

const struct ek_command ek_command_export = {"export", "a plan in another runtime's form",
                                             run_export};
const struct ek_command ek_command_report = {"report", "a page of pictures of a plan", run_report};
