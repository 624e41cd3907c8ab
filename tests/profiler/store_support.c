/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/profiler/store_support.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char dir[] = "/tmp/ek-store-XXXXXX", path[64];

void make_dir(void)
{
    strcpy(dir, "/tmp/ek-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/p.db", dir);
}

void remove_dir(void)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal", ".copy", "-wal.copy"};
    char name[96];

    chmod(dir, 0700);
    for (size_t i = 0; i < EK_ARRAY_LEN(ends); i++) {
        snprintf(name, sizeof(name), "%s%s", path, ends[i]);
        unlink(name);
    }
    ck_assert_int_eq(rmdir(dir), 0);
}

struct ek_store *open_store(enum ek_store_mode mode)
{
    struct ek_store *s = NULL;
    enum ek_status st = ek_store_open(path, mode, &s);

    ck_assert_msg(st == EK_OK, "%s", ek_last_error());
    return s;
}

int64_t put_device(struct ek_store *s, const char *name, const char *driver)
{
    struct ek_store_device d = {.memory_total = 1 << 30,
                                .read_bandwidth = 1e10,
                                .peak_f32 = 1e11,
                                .backend = "cpu",
                                .host = "here",
                                .uuid = "u"};

    snprintf(d.name, sizeof(d.name), "%s", name);
    snprintf(d.driver, sizeof(d.driver), "%s", driver);
    ck_assert_msg(ek_store_put_device(s, &d) == EK_OK, "%s", ek_last_error());
    return d.id;
}

struct ek_store_key key_at(int64_t device, enum ek_phase phase, uint32_t batch, uint32_t tokens,
                           uint32_t context)
{
    return (struct ek_store_key){.device = device,
                                 .signature = "layer",
                                 .phase = phase,
                                 .batch = batch,
                                 .tokens = tokens,
                                 .context = context,
                                 .act = "F32",
                                 .cache = "F32",
                                 .launch = "eager"};
}

void put_time(struct ek_store *s, const struct ek_store_key *k, double t)
{
    struct ek_store_time time = {
        .median_s = t, .mad_s = t / 100, .min_s = t, .n = 10, .clock_mhz = 1980, .throttle = 4};

    strcpy(time.stop, "converged");
    ck_assert_msg(ek_store_put_time(s, k, &time) == EK_OK, "%s", ek_last_error());
}
