/* SPDX-License-Identifier: Apache-2.0
 *
 * Links between devices on GPUs by every mechanism, stages that hang, and memory that runs out.
 * With one GPU its links join two devices declared on it. A case that hangs a GPU is a process of
 * its own: this program again, with the case's number.
 */
#include "tests/runtime/support.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MESSAGE = 20000, MESSAGES = 40, DEADLINE_S = 1, PATIENCE_S = 10, CHANNELS = 8 };

extern char **environ;
static const char *self;
static size_t n_gpus;

static struct ek_device *open_device(const char *text, enum ek_dtype act)
{
    struct ek_device_spec *specs;
    struct ek_device *dev;
    size_t n;

    ck_ok(ek_device_specs_parse(text, &specs, &n));
    ck_ok(ek_device_open(&specs[0], act, &dev));
    free(specs);
    return dev;
}

static const char *second(void)
{
    return n_gpus > 1 ? "cuda:1" : "cuda:0.1";
}

/* ---- mechanisms */
static void fill(uint16_t *x, int message)
{
    for (int i = 0; i < MESSAGE; i++)
        x[i] = (uint16_t)(i * 7 + message * 31 + i / 251);
}

static uint64_t comm_of(struct ek_device *d)
{
    struct ek_usage by_tag[EK_N_TAGS];

    d->ops->usage(d, by_tag);
    return by_tag[EK_TAG_COMM].now;
}

/* Opens a link, which takes what was said, of our accounts, and no more of the GPUs. */
static struct ek_link *open_counted(struct ek_device *from, struct ek_device *to,
                                    const char *mechanism)
{
    struct ek_device *dev[2] = {from, to};
    uint64_t comm[2], avail[2], said[2], begin;
    struct ek_link_bytes b;
    struct ek_link *l = NULL;

    ck_ok(ek_link_memory(from, to, mechanism, MESSAGE, &b));
    said[0] = b.at_from;
    said[1] = b.at_to;
    for (int i = 0; i < 2; i++) {
        comm[i] = comm_of(dev[i]);
        avail[i] = dev[i]->ops->memory_free(dev[i]);
    }
    begin = ek_now_ns();
    ck_ok(ek_link_open_as(from, to, MESSAGE, mechanism, &l));
    printf("  open in %.3f s\n", (double)(ek_now_ns() - begin) * 1e-9);
    for (int i = 0; i < 2; i++) {
        double gone = (double)avail[i] - (double)dev[i]->ops->memory_free(dev[i]);
        uint64_t counted = comm_of(dev[i]) - comm[i];
        printf("  %s: %.2f MiB gone, %.2f counted, %.2f said (and %.1f once)\n", dev[i]->spec.name,
               gone / EK_MIB, (double)counted / EK_MIB, (double)said[i] / EK_MIB,
               (double)(i ? b.once_to : b.once_from) / EK_MIB);
        ck_assert_uint_le(counted, said[i]);
        ck_assert_double_le(gone, (double)said[i] + 16 * EK_MIB); /* a slab of small allocations */
    }
    return l;
}

/* Messages of all sizes; every other one is taken in place where that is possible. */
static void exercise(struct ek_device *from, struct ek_device *to, const char *mechanism)
{
    uint16_t *src = malloc(MESSAGE * 2), *back = malloc(MESSAGE * 2);
    struct ek_link *l;
    void *x, *y;

    printf("%s -> %s: %s\n", from->spec.name, to->spec.name, mechanism);
    fflush(stdout);
    l = open_counted(from, to, mechanism);
    ck_ok(from->ops->alloc(from, EK_TAG_ACTIVATIONS, MESSAGE * 2, &x));
    ck_ok(to->ops->alloc(to, EK_TAG_ACTIVATIONS, MESSAGE * 2, &y));
    for (int i = 0; i < MESSAGES; i++) {
        size_t n = i % 3 ? (size_t)MESSAGE : (size_t)(1 + i * 101);
        void *at;
        fill(src, i);
        ck_ok(from->ops->upload(from, x, src, MESSAGE * 2));
        ck_ok(ek_link_send(l, x, n, NULL));
        ck_ok(ek_link_wait(l, NULL));
        at = i % 2 ? ek_link_slot(l) : NULL;
        if (at == NULL)
            ck_ok(ek_link_recv(l, at = y, n));
        ck_ok(to->ops->download(to, back, at, n * 2));
        ck_assert_mem_eq(back, src, n * 2);
        if (at != y)
            ck_ok(ek_link_recv(l, at, n));
    }
    ck_ok(ek_link_check(l));
    ek_link_close(l);
    from->ops->release(from, x);
    to->ops->release(to, y);
    free(src);
    free(back);
}

START_TEST(every_mechanism_hands_over_what_was_sent)
{
    struct ek_device *a = open_device("cuda:0", EK_BF16), *b = open_device(second(), EK_BF16);
    const char *names[EK_LINK_MECHANISMS];
    size_t n = ek_link_mechanisms(a, b, names);

    for (size_t i = 0; i < n; i++) {
        exercise(a, b, names[i]);
        exercise(b, a, names[i]);
    }
    ck_assert(n_gpus < 2 || strcmp(names[n - 1], "nccl") == 0 || getenv("NO_NCCL"));
    ek_device_close(a);
    ek_device_close(b);
}
END_TEST

/* ---- stages that hang */
static const struct {
    size_t gpus;
    const char *mechanism;
    const char *stage;
} hangs[] = {
    {1, "peer-store", "0"}, {1, "copy", "1"},        {2, "peer-store", "0"},
    {2, "peer-store", "1"}, {2, "host-staged", "0"}, {2, "nccl", "0"},
};

static struct ek_plan *two_stages(const struct ek_model *m, const char *first, const char *other)
{
    static const uint32_t cuts[] = {3, 7};
    struct plan_shape shape = {.n_devices = 2, .n_stages = 2, .cuts = cuts, .context = 256};
    struct ek_plan *p = make_plan(m, &shape);

    for (int i = 0; i < 2; i++) {
        struct ek_device_spec *specs;
        size_t n;
        ck_ok(ek_device_specs_parse(i ? other : first, &specs, &n));
        p->devices[i] = specs[0];
        free(specs);
    }
    p->act = p->cache = EK_BF16;
    return p;
}

static enum ek_status prefill(struct ek_engine *e, size_t n)
{
    int32_t *ids = random_ids(ek_engine_model(e), n, 1);
    uint32_t seq;
    enum ek_status st = ek_engine_seq_open(e, &seq);

    if (st == EK_OK)
        st = ek_engine_prefill(e, seq, ids, n, EK_LOGITS_LAST, NULL, NULL);
    free(ids);
    ek_engine_seq_close(e, seq);
    return st;
}

/* ---- padded batches */
enum { TOGETHER = 9, STEPS = 5 };

/* Logits of n sequences, the first of the given number, over some decode steps. */
static void decode(struct ek_engine *e, uint32_t first, uint32_t n, const int32_t *ids, float *out)
{
    uint32_t seqs[TOGETHER], ones[TOGETHER], vocab = ek_engine_model(e)->config.vocab;
    int32_t next[TOGETHER];

    for (uint32_t i = 0; i < n; i++) {
        ones[i] = 1;
        ck_ok(ek_engine_seq_open(e, &seqs[i]));
        ck_ok(ek_engine_prefill(e, seqs[i], ids + first + i, 5 + first + i, EK_LOGITS_NONE, NULL,
                                NULL));
    }
    for (int s = 0; s < STEPS; s++) {
        struct ek_step step = {
            .n_seqs = n, .seqs = seqs, .n_tokens = ones, .tokens = next, .logits = EK_LOGITS_LAST};
        const float *logits;
        uint64_t ticket;
        for (uint32_t i = 0; i < n; i++)
            next[i] = ids[20 + s * TOGETHER + (int)(first + i)];
        ck_ok(ek_engine_submit(e, &step, &ticket));
        ck_ok(ek_engine_wait(e, ticket, &logits, NULL, NULL));
        for (uint32_t i = 0; i < n; i++)
            memcpy(out + ((size_t)s * TOGETHER + first + i) * vocab, logits + (size_t)i * vocab,
                   vocab * sizeof(*out));
        ek_engine_release(e, ticket);
    }
    for (uint32_t i = 0; i < n; i++)
        ek_engine_seq_close(e, seqs[i]);
}

/* Nine sequences are padded to ten; no message has the tenth row. */
START_TEST(padded_steps_over_stages_equal_their_sequences_alone)
{
    struct ek_model *m = small_model(4);
    struct ek_plan *p = two_stages(m, "cuda:0", second());
    size_t rows = (size_t)STEPS * TOGETHER, n = rows * m->config.vocab;
    float *alone = calloc(n, sizeof(*alone)), *together = calloc(n, sizeof(*together));
    int32_t *ids = random_ids(m, 100, 5);
    struct ek_engine *e;
    double off;

    p->act = p->cache = EK_F32;
    p->batch = 16;
    e = open_engine(m, p);
    for (uint32_t i = 0; i < TOGETHER; i++)
        decode(e, i, 1, ids, alone);
    decode(e, 0, TOGETHER, ids, together);
    off = largest_difference(together, alone, n) / largest(alone, n);
    printf("padded steps: %.1e off\n", off);
    ck_assert_double_lt(off, 1e-4);
    ck_assert(ek_engine_close(e));
    ek_plan_free(p);
    ek_model_close(m);
    free(ids);
    free(alone);
    free(together);
}
END_TEST

/* ---- another process, whose exit code is what a command's would be: the case of a stage that
 * hangs, or NO_NCCL, where that library is not to be found, or AT_ONCE, or BROKEN: a kernel fails
 */
#define NO_NCCL EK_ARRAY_LEN(hangs)
#define AT_ONCE (NO_NCCL + 1)
#define BROKEN  (NO_NCCL + 2)
static size_t which;
static int answer = 1;

START_TEST(the_other_process_hangs)
{
    struct ek_engine_options options = {.deadline_s = DEADLINE_S};
    struct ek_model *m = small_model(4);
    struct ek_plan *p = two_stages(m, "cuda:0", hangs[which].gpus > 1 ? "cuda:1" : "cuda:0.1");
    struct ek_engine *e = NULL;
    uint64_t begin;
    enum ek_status st;
    char name[32];
    bool said;

    setenv("EVENKEEL_LINK", hangs[which].mechanism, 1);
    setenv("EK_HANG_STAGE", hangs[which].stage, 1);
    ck_ok(ek_engine_open(m, p, &options, &e));
    begin = ek_now_ns();
    st = prefill(e, 40);
    printf("  %.2f s, status %d: %s\n", (double)(ek_now_ns() - begin) * 1e-9, st, ek_last_error());
    snprintf(name, sizeof(name), "stage %s (%s,", hangs[which].stage,
             hangs[which].stage[0] == '0' ? "cuda:0"
             : hangs[which].gpus > 1      ? "cuda:1"
                                          : "cuda:0.1");
    said = st == EK_EDEVICE && strstr(ek_last_error(), name) != NULL &&
           strstr(ek_last_error(), "does not end: no answer for 1 s") != NULL;
    begin = ek_now_ns();
    said = said && prefill(e, 1) == EK_EDEVICE && ek_now_ns() - begin < 100000000ull;
    begin = ek_now_ns();
    printf("  closed: %s,", ek_engine_close(e) ? "wholly" : "left alone");
    printf(" %.2f s\n", (double)(ek_now_ns() - begin) * 1e-9);
    answer = said ? 6 : 1;
}
END_TEST

/* A kernel of a step's device reads where there is no memory: its context is gone. Steps end with
 * the device's error, no token comes of them, and the engine closes. */
START_TEST(the_other_process_breaks)
{
    struct ek_model *m = small_model(4);
    struct ek_plan *p = two_stages(m, "cuda:0", "cuda:0.1");
    struct ek_engine *e = open_engine(m, p);
    struct ek_device *dev = ek_engine_device(e, 0);
    void *nowhere = (void *)(uintptr_t)4096;

    ck_ok(prefill(e, 40));
    ck_ok(dev->ops->swiglu(dev, nowhere, 64, 4, 32, nowhere, 32));
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(prefill(e, 40), EK_EDEVICE);
        printf("  %s\n", ek_last_error());
        ck_assert_ptr_nonnull(strstr(ek_last_error(), "cudaErrorIllegalAddress"));
    }
    ck_assert_int_eq(dev->ops->sync(dev), EK_EDEVICE);
    (void)ek_engine_close(e);
    answer = 6;
}
END_TEST

/* Neither by a plan that names it nor by the environment: another mechanism, and the reason. */
START_TEST(the_other_process_has_no_nccl)
{
    struct ek_device *a = open_device("cuda:0", EK_BF16), *b = open_device(second(), EK_BF16);
    struct ek_model *m = small_model(4);
    struct ek_plan *p = two_stages(m, "cuda:0", second());
    struct ek_link *l = NULL;
    struct ek_engine *e;

    setenv("EVENKEEL_NCCL", "/nowhere/libnccl.so", 1);
    ck_assert_int_eq(ek_link_open_as(a, b, MESSAGE, "nccl", &l), EK_EUNSUPPORTED);
    printf("  %s\n", ek_last_error());
    ck_assert_ptr_nonnull(strstr(ek_last_error(), n_gpus > 1 ? "/nowhere/libnccl.so" : "one GPU"));
    ck_ok(ek_link_open(a, b, MESSAGE, "nccl", &l));
    ck_assert_str_eq(ek_link_mechanism(l), ek_link_pick(a, b, NULL));
    ek_link_close(l);
    setenv("EVENKEEL_LINK", "nccl", 1);
    e = open_engine(m, p);
    ck_ok(prefill(e, 40));
    ck_assert(ek_engine_close(e));
    ek_plan_free(p);
    ek_model_close(m);
    ek_device_close(a);
    ek_device_close(b);
    answer = 0;
}
END_TEST

/* Threads with devices of their own, the first of the process to open channels, in both directions
 * between two GPUs; then all send. */
struct opener {
    struct ek_device *from, *to;
    struct ek_link_bytes said;
    struct ek_link *l;
    enum ek_status st;
    pthread_barrier_t *begin;
};

static enum ek_status send_messages(struct opener *o)
{
    void *x, *y;

    EK_TRY(o->from->ops->alloc(o->from, EK_TAG_ACTIVATIONS, MESSAGE * 2, &x));
    EK_TRY(o->to->ops->alloc(o->to, EK_TAG_ACTIVATIONS, MESSAGE * 2, &y));
    pthread_barrier_wait(o->begin);
    for (int i = 0; i < MESSAGES; i++) {
        EK_TRY(ek_link_send(o->l, x, MESSAGE, NULL));
        EK_TRY(ek_link_wait(o->l, NULL));
        EK_TRY(ek_link_recv(o->l, y, MESSAGE));
        if (i % 8 == 7)
            EK_TRY(o->to->ops->sync(o->to));
    }
    pthread_barrier_wait(o->begin);
    o->from->ops->release(o->from, x);
    o->to->ops->release(o->to, y);
    return EK_OK;
}

static void *open_link(void *arg)
{
    struct opener *o = arg;

    pthread_barrier_wait(o->begin);
    o->st = ek_link_memory(o->from, o->to, "nccl", MESSAGE, &o->said);
    if (o->st == EK_OK)
        o->st = ek_link_open_as(o->from, o->to, MESSAGE, "nccl", &o->l);
    if (o->st == EK_OK)
        o->st = send_messages(o);
    return NULL;
}

static void close_link(struct opener *o)
{
    uint64_t from = comm_of(o->from), to = comm_of(o->to);

    printf("  %s -> %s: %.2f and %.2f MiB counted, %.2f and %.2f said (%.1f and %.1f once)\n",
           o->from->spec.name, o->to->spec.name, (double)from / EK_MIB, (double)to / EK_MIB,
           (double)o->said.at_from / EK_MIB, (double)o->said.at_to / EK_MIB,
           (double)o->said.once_from / EK_MIB, (double)o->said.once_to / EK_MIB);
    ck_ok(o->st);
    ck_assert_uint_gt(o->said.once_from, o->said.at_from);
    ck_assert_uint_gt(o->said.once_to, o->said.at_to);
    ck_assert_uint_gt(from, 0);
    ck_assert_uint_le(from, o->said.at_from);
    ck_assert_uint_le(to, o->said.at_to);
    ck_assert_uint_lt(o->said.at_from + o->said.at_to, 64 * EK_MIB);
    ek_link_close(o->l);
    ck_assert_uint_eq(comm_of(o->from) + comm_of(o->to), 0);
    ek_device_close(o->from);
    ek_device_close(o->to);
}

START_TEST(the_other_process_opens_channels_at_once)
{
    struct opener o[CHANNELS] = {{.from = NULL}};
    pthread_barrier_t begin;
    pthread_t threads[CHANNELS];
    uint64_t at = ek_now_ns();

    pthread_barrier_init(&begin, NULL, CHANNELS);
    for (int i = 0; i < CHANNELS; i++)
        o[i] = (struct opener){.from = open_device(i % 2 ? "cuda:1" : "cuda:0", EK_BF16),
                               .to = open_device(i % 2 ? "cuda:0" : "cuda:1", EK_BF16),
                               .begin = &begin};
    for (int i = 0; i < CHANNELS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, open_link, &o[i]), 0);
    for (int i = 0; i < CHANNELS; i++)
        pthread_join(threads[i], NULL);
    printf("  open, and messages sent, after %.2f s\n", (double)(ek_now_ns() - at) * 1e-9);
    for (int i = 0; i < CHANNELS; i++)
        close_link(&o[i]);
    pthread_barrier_destroy(&begin);
    answer = 0;
}
END_TEST

static void run_suite(Suite *s, int *failed)
{
    SRunner *sr = srunner_create(s);

    srunner_set_fork_status(sr, CK_NOFORK); /* a CUDA context does not survive a fork */
    srunner_run_all(sr, CK_ENV);
    *failed = srunner_ntests_failed(sr);
    srunner_free(sr);
}

static int be_the_other(void)
{
    Suite *s = suite_create("another process");
    TCase *tc = tcase_create("other");
    int failed;

    tcase_set_timeout(tc, 0);
    if (which == NO_NCCL)
        tcase_add_test(tc, the_other_process_has_no_nccl);
    else if (which == AT_ONCE)
        tcase_add_test(tc, the_other_process_opens_channels_at_once);
    else if (which == BROKEN)
        tcase_add_test(tc, the_other_process_breaks);
    else
        tcase_add_test(tc, the_other_process_hangs);
    suite_add_tcase(s, tc);
    run_suite(s, &failed);
    return failed ? 1 : answer;
}

static int wait_for(pid_t child, uint64_t begin)
{
    int status = -1;

    while (waitpid(child, &status, WNOHANG) == 0) {
        if (ek_now_ns() - begin > PATIENCE_S * 1000000000ull) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            ck_abort_msg("still there after %d s", PATIENCE_S);
        }
        usleep(10000);
    }
    return status;
}

static void other_process_exits(size_t number, int code)
{
    char text[8];
    char *args[] = {(char *)(uintptr_t)self, text, NULL};
    uint64_t begin = ek_now_ns();
    pid_t child;
    int status;

    fflush(stdout);
    unsetenv("CK_RUN_CASE"); /* of this process alone */
    snprintf(text, sizeof(text), "%zu", number);
    ck_assert_int_eq(posix_spawn(&child, self, NULL, NULL, args, environ), 0);
    status = wait_for(child, begin);
    printf("  process: %.2f s\n", (double)(ek_now_ns() - begin) * 1e-9);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), code);
}

START_TEST(a_stage_that_hangs_ends_in_its_name_and_so_does_the_process)
{
    if (hangs[_i].gpus > n_gpus)
        return;
    printf("stage %s hangs, %zu GPUs, %s\n", hangs[_i].stage, hangs[_i].gpus, hangs[_i].mechanism);
    other_process_exits((size_t)_i, 6);
}
END_TEST

START_TEST(without_nccl_another_mechanism_is_taken)
{
    puts("no NCCL");
    other_process_exits(NO_NCCL, 0);
}
END_TEST

START_TEST(channels_open_and_work_at_once_and_count_what_is_theirs)
{
    if (n_gpus < 2 || getenv("NO_NCCL"))
        return;
    puts("channels at once");
    other_process_exits(AT_ONCE, 0);
}
END_TEST

START_TEST(a_kernel_that_fails_ends_every_step_and_the_process_with_a_code_of_its_own)
{
    puts("a kernel fails");
    other_process_exits(BROKEN, 6);
}
END_TEST

/* ---- memory that runs out */
/* Takes what is free on a GPU but so much. */
static void *occupy(struct ek_device *dev, uint64_t leave)
{
    uint64_t free_bytes = dev->ops->memory_free(dev);
    void *p;

    ck_assert_uint_gt(free_bytes, leave);
    ck_ok(dev->ops->alloc(dev, EK_TAG_KV, free_bytes - leave, &p));
    return p;
}

START_TEST(a_plan_that_does_not_fit_is_refused_before_it_is_loaded)
{
    struct ek_device *other = open_device("cuda:0.9", EK_BF16);
    struct ek_model *m = small_model(4);
    struct ek_plan *p = two_stages(m, "cuda:0", "cuda:0.1");
    struct ek_engine *e = NULL;
    void *taken = occupy(other, 64 * EK_MIB);

    p->batch = 4096; /* a cache of gigabytes */
    ck_assert_int_eq(ek_engine_open(m, p, NULL, &e), EK_EENV);
    ck_assert_ptr_null(e);
    printf("refused: %s\n", ek_last_error());
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "the plan does not fit: cuda:0 lacks "));
    other->ops->release(other, taken);
    p->batch = 4;
    e = open_engine(m, p); /* the context is whole */
    ck_ok(prefill(e, 40));
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
    ek_device_close(other);
}
END_TEST

/* Scratch memory of a larger step is not there: that step ends, others go on. */
START_TEST(a_step_that_finds_no_memory_is_told_and_survived)
{
    struct ek_device *other = open_device("cuda:0.9", EK_BF16);
    struct ek_model *m = small_model(4);
    struct ek_plan *p = two_stages(m, "cuda:0", "cuda:0.1");
    struct ek_engine *e = open_engine(m, p);
    void *taken, *rest[64];
    int n = 0;
    enum ek_status st;

    taken = occupy(other, 32 * EK_MIB);
    while (n < 64 && other->ops->alloc(other, EK_TAG_KV, 2 * EK_MIB, &rest[n]) == EK_OK)
        n++;
    st = prefill(e, 40);
    printf("without memory: status %d: %s\n", st, st ? ek_last_error() : "");
    ck_assert_int_eq(st, EK_ENOMEM);
    ck_assert_ptr_nonnull(strstr(ek_last_error(), "out of memory"));
    while (n-- > 0)
        other->ops->release(other, rest[n]);
    other->ops->release(other, taken);
    ck_ok(prefill(e, 40));
    ck_ok(prefill(e, 1));
    ck_assert(ek_engine_close(e));
    ek_plan_free(p);
    ek_model_close(m);
    ek_device_close(other);
}
END_TEST

static size_t count_gpus(void)
{
    struct ek_device_spec *specs = NULL;
    struct ek_device_info *infos = NULL;
    size_t n = 0, gpus = 0;

    if (ek_devices_list(&specs, &infos, &n) != EK_OK)
        return 0;
    while (gpus < n && strcmp(specs[gpus].backend, "cuda") == 0)
        gpus++;
    free(specs);
    free(infos);
    return gpus;
}

int main(int argc, char **argv)
{
    Suite *s;
    TCase *tc;
    int failed;

    if ((n_gpus = count_gpus()) == 0) {
        puts("skipped: no GPU");
        return 77;
    }
    which = argc > 1 ? strtoul(argv[1], NULL, 10) % (BROKEN + 1) : 0;
    if (argc > 1) { /* as the command does: what runs at a usual exit may wait for the GPU */
        answer = be_the_other();
        fflush(NULL);
        _exit(answer);
    }
    self = argv[0];
    s = suite_create("links on GPUs");
    tc = tcase_create("links");
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, every_mechanism_hands_over_what_was_sent);
    tcase_add_test(tc, a_plan_that_does_not_fit_is_refused_before_it_is_loaded);
    tcase_add_test(tc, a_step_that_finds_no_memory_is_told_and_survived);
    tcase_add_test(tc, padded_steps_over_stages_equal_their_sequences_alone);
    tcase_add_test(tc, without_nccl_another_mechanism_is_taken);
    tcase_add_test(tc, channels_open_and_work_at_once_and_count_what_is_theirs);
    tcase_add_test(tc, a_kernel_that_fails_ends_every_step_and_the_process_with_a_code_of_its_own);
    suite_add_tcase(s, tc);
    tc = tcase_create("hangs");
    tcase_set_timeout(tc, 0);
    tcase_add_loop_test(tc, a_stage_that_hangs_ends_in_its_name_and_so_does_the_process, 0,
                        (int)EK_ARRAY_LEN(hangs));
    suite_add_tcase(s, tc);
    run_suite(s, &failed);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
