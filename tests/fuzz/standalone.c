/* SPDX-License-Identifier: Apache-2.0
 *
 * main of every fuzz target where libFuzzer is not linked: replays files and directories given as
 * arguments, or, without any, the target's own corpus (fuzz_NAME: tests/fuzz/corpus/NAME).
 */
#include "base/base.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define INPUT_MAX ((size_t)64 << 20)

static size_t replayed;

static int replay_file(const char *path)
{
    char *data;
    size_t n;

    if (ek_file_read(path, INPUT_MAX, &data, &n) != EK_OK) {
        fprintf(stderr, "%s\n", ek_last_error());
        return EXIT_FAILURE;
    }
    LLVMFuzzerTestOneInput((const uint8_t *)data, n);
    free(data);
    replayed++;
    return EXIT_SUCCESS;
}

static int replay(const char *path)
{
    DIR *d = opendir(path);
    int rc = EXIT_SUCCESS;
    struct dirent *e;

    if (d == NULL)
        return replay_file(path);
    while (rc == EXIT_SUCCESS && (e = readdir(d)) != NULL) {
        char *file = e->d_name[0] == '.' ? NULL : ek_path_join(path, e->d_name);
        if (file)
            rc = replay_file(file);
        free(file);
    }
    closedir(d);
    return rc;
}

int main(int argc, char **argv)
{
    const char *base = strrchr(argv[0], '/'), *srcdir = getenv("srcdir");
    char *corpus;
    int rc = EXIT_SUCCESS;

    for (int i = 1; i < argc && rc == EXIT_SUCCESS; i++)
        rc = replay(argv[i]);
    if (argc == 1) {
        base = strstr(base ? base : argv[0], "fuzz_");
        corpus = ek_asprintf("%s/tests/fuzz/corpus/%s", srcdir ? srcdir : ".",
                             base ? base + strlen("fuzz_") : "");
        rc = corpus ? replay(corpus) : EXIT_FAILURE;
        free(corpus);
    }
    printf("%zu inputs replayed\n", replayed);
    return replayed ? rc : EXIT_FAILURE;
}
