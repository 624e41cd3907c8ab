/* SPDX-License-Identifier: Apache-2.0
 *
 * What lies between two rounds of decoding: the device takes over the next step's batch, with the
 * ids that it has just chosen. Measured with the engine itself, on a model that is small, but large
 * enough for the host to stay ahead.
 */
#include "profiler/measure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 240, PROMPT = 8, CONTEXT = 256 };

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": "
    "\"silu\","
    " \"hidden_size\": 1024, \"intermediate_size\": 2816, \"num_attention_heads\": 16,"
    " \"num_key_value_heads\": 4, \"num_hidden_layers\": 8, \"vocab_size\": 1024,"
    " \"max_position_embeddings\": 1024, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,"
    " \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"bos_token_id\": 1,"
    " \"eos_token_id\": 2}\n";

/* Models come from files alone. */
static enum ek_status open_small(struct ek_model **out)
{
    static const struct ek_model_options synthetic = {.seed = 1, .synthetic = true};
    const char *folder = getenv("TMPDIR");
    char path[512];
    ssize_t n;
    enum ek_status st;
    int fd;

    snprintf(path, sizeof(path), "%s/evenkeel-XXXXXX.json", folder ? folder : "/tmp");
    if ((fd = mkstemps(path, (int)strlen(".json"))) < 0)
        return ek_error(EK_EENV, "%s: cannot be made", path);
    n = write(fd, config, strlen(config));
    close(fd);
    st = n == (ssize_t)strlen(config) ? ek_model_open(path, &synthetic, out)
                                      : ek_error(EK_EENV, "%s: cannot be written", path);
    unlink(path);
    return st;
}

/* The median round less what the device was at work in it. */
static enum ek_status time_rounds(struct ek_engine *e, double *seconds)
{
    static const struct ek_bench_options options = {
        .batch = 1, .prompt = PROMPT, .generate = ROUNDS, .repeats = 1, .seed = 1};
    struct ek_bench_result r;

    EK_TRY(ek_bench_run(e, &options, &r));
    *seconds = fmax(r.decode_s.median - r.decode[0].busy_s / (double)r.decode[0].steps, 0);
    ek_bench_result_clear(&r);
    return EK_OK;
}

enum ek_status ek_measure_return(const struct ek_device_spec *device, enum ek_dtype act,
                                 struct ek_store_link *out)
{
    struct ek_device_spec whole = *device;
    struct ek_store_link l = {.mechanism = EK_STORE_RETURN, .beta_bytes_s = 1e12, .n = ROUNDS};
    struct ek_model *m = NULL;
    struct ek_plan *p = NULL;
    struct ek_engine *e = NULL;
    enum ek_status st;

    whole.memory = 0;
    whole.memory_fraction = 0;
    EK_GOTO(open_small(&m), st, done);
    EK_GOTO(ek_plan_single(m, &whole, 1, CONTEXT, &p), st, done);
    p->act = p->cache = act;
    EK_GOTO(ek_engine_open(m, p, NULL, &e), st, done);
    EK_GOTO(time_rounds(e, &l.alpha_s), st, done);
    snprintf(l.from, sizeof(l.from), "%s", device->name);
    snprintf(l.to, sizeof(l.to), "%s", device->name);
    *out = l;
done:
    ek_engine_close(e);
    ek_plan_free(p);
    ek_model_close(m);
    return st;
}
