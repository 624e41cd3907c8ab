/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * evenkeel-plan cluster: how many replicas of which plan on which nodes.
 */
#include "planner/cluster.h"
#include "planner/commands.h"

#include <getopt.h>
#include <string.h>

static const char help[] =
    "usage: evenkeel cluster CLUSTER.json [OPTION]...\n"
    "Plans one replica on every class of node and size, then the cheapest nodes for a load.\n"
    "\n"
    "  --load T          tokens a second to give (0: the most that all nodes give)\n"
    "  --json, --help\n";

static const struct option options[] = {
    {"load", required_argument, NULL, 'l'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static void print_people(const struct ek_cluster *c)
{
    struct ek_table *t = ek_table_new("node|devices a replica|>tokens/s each|>replicas|>tokens/s");

    for (size_t i = 0; i < c->n_replicas; i++)
        ek_table_row(t, "%s|%u|%.1f|%u|%.1f", c->classes[c->replicas[i].cls].name,
                     c->replicas[i].devices, c->replicas[i].tokens_per_s, c->replicas[i].chosen,
                     c->replicas[i].chosen * c->replicas[i].tokens_per_s);
    ek_table_print(t, stdout);
    ek_table_free(t);
    putchar('\n');
    for (size_t i = 0; i < c->n_classes; i++)
        printf("%-16s %u of %u nodes\n", c->classes[i].name, c->nodes[i], c->classes[i].count);
    printf("%.1f tokens/s at price %.6g, %s\n", c->tokens_per_s, c->price,
           c->proven ? "optimal" : "NOT proven optimal");
}

static enum ek_status print_json(const struct ek_cluster *c)
{
    json_t *nodes = json_array(), *replicas = json_array(), *root;

    for (size_t i = 0; i < c->n_classes; i++)
        json_array_append_new(nodes, json_pack("{s:s s:I}", "node", c->classes[i].name, "used",
                                               (json_int_t)c->nodes[i]));
    for (size_t i = 0; i < c->n_replicas; i++)
        json_array_append_new(replicas, json_pack("{s:s s:I s:f s:I}", "node",
                                                  c->classes[c->replicas[i].cls].name, "devices",
                                                  (json_int_t)c->replicas[i].devices,
                                                  "tokens_per_s", c->replicas[i].tokens_per_s,
                                                  "replicas", (json_int_t)c->replicas[i].chosen));
    root = json_pack("{s:f s:f s:b s:o s:o}", "tokens_per_s", c->tokens_per_s, "price", c->price,
                     "proven", c->proven, "nodes", nodes, "replicas", replicas);
    return ek_json_print(root);
}

static enum ek_status run(int argc, char **argv, int *code)
{
    struct ek_request r = EK_REQUEST_INIT;
    struct ek_cluster *c;
    double load = 0;
    bool json = false;
    enum ek_status st;
    int o;

    optind = 0;
    opterr = 0;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'l') {
            EK_TRY(ek_parse_double(optarg, "--load", 0, 1e12, &load));
        } else if (o == 'j') {
            json = true;
        } else if (o == 'h') {
            fputs(help, stdout);
            return EK_OK;
        } else {
            return ek_option_error(argv);
        }
    }
    if (optind + 1 != argc)
        return ek_error(EK_EUSAGE, "cluster: give one CLUSTER.json");
    r.stop = &ek_stopped;
    EK_TRY(ek_cluster_read(argv[optind], &c));
    st = ek_cluster_plan(c, &r, load);
    if (st == EK_OK && json)
        st = print_json(c);
    else if (st == EK_OK)
        print_people(c);
    if (st == EK_OK && !c->proven)
        *code = ek_exit_code(EK_EUNPROVEN);
    ek_cluster_free(c);
    return st;
}

const struct ek_command ek_command_cluster = {"cluster", "replicas over many nodes for a load",
                                              run};
