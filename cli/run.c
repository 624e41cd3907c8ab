/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/messages.h"
#include "cli/pictures.h"
#include "cli/session.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PROMPT_BYTES (16u << 20)
#define MAX_STOPS        16

static const struct ek_option options[] = {
    {"plan", "FILE", "run under this plan (default: everything on one device)"},
    {"devices", "DEVICE", "the device when there is no plan"},
    {"cache", "TYPE", "type of the cache when there is no plan (default: of activations; fp8)"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups; +ends: embedding, head too"},
    {"prompt", "TEXT", "what the user says (may be given several times: a batch)"},
    {"prompt-file", "FILE", "the prompt from a file (- for stdin)"},
    {"messages", "FILE",
     "a conversation, as JSON: [{\"role\": \"user\", \"content\": \"...\"}, ...]; its next turn is "
     "said"},
    {"system", "TEXT", "system message of the conversation"},
    {"raw", NULL, "the prompt is continued as it is, without a chat template"},
    {"image", "FILE", "a JPEG or PNG of the prompt (several: in order; <image> says where)"},
    {"frame", "FILE", "a frame of the prompt's video (several: in order; <video> says where)"},
    {"image-as", "HOW",
     "stored, upright (turned as EXIF says) or white (transparency on white); default: as the "
     "model's own processor"},
    {"fps", "F", "frames a second of the video (default 2)"},
    {"ids", "LIST", "token ids instead of text: 1,2,3 (no tokenizer needed)"},
    {"max-tokens", "N", "most new tokens (default 128)"},
    {"temperature", "F", "0: greedy (default 0)"},
    {"top-k", "N", "only the k best tokens (0: all)"},
    {"top-p", "F", "only the best tokens of this total probability (default 1)"},
    {"min-p", "F", "only tokens of at least this share of the best one's probability"},
    {"repetition-penalty", "F",
     "divides logits above 0 of tokens in the prompt or the answer, multiplies others (default 1)"},
    {"presence-penalty", "F", "off a token's logit once it is in the answer (default 0)"},
    {"frequency-penalty", "F", "and for each time that it is (default 0)"},
    {"seed", "N", "of sampling (default 1)"},
    {"ignore-eos", NULL, "go on after the end-of-sequence token"},
    {"record", "FILE", "write a reference of this run's logits (prompt and answer)"},
    {"force", NULL, "replace the file of --record"},
    {NULL, NULL, NULL},
};

#define MAX_PROMPTS EK_MAX_VALUES

struct job {
    const struct ek_args *args;
    struct ek_tokenizer *tokenizer; /* NULL with --ids */
    struct ek_session session;
    struct ek_prompt prompts[MAX_PROMPTS];
    int32_t *ids[MAX_PROMPTS]; /* as they were given */
    size_t n_prompts;
    struct ek_pictures pictures;
    bool sees;         /* there are some */
    bool names_images; /* there are none, but a prompt says where */
    int32_t stops[MAX_STOPS];
    struct ek_decoder *stream; /* of the first prompt, when it is printed as it comes */
    struct ek_completion *completions;
    struct ek_generate_timing timing;
};

/* ---- Prompts --------------------------------------------------------------------------------- */
static enum ek_status parse_ids(const char *text, int32_t **ids, size_t *n)
{
    size_t cap = 0;
    char *end;

    *ids = NULL;
    *n = 0;
    for (const char *p = text; *p; p = *end ? end + 1 : end) {
        long v = strtol(p, &end, 10);
        if (end == p || v < 0 || v > INT32_MAX || (*end && *end != ',' && *end != ' ')) {
            free(*ids);
            return ek_error(EK_EUSAGE, "--ids: expected a token id at position %zu",
                            (size_t)(p - text) + 1);
        }
        if (ek_grow((void **)ids, &cap, *n + 1, sizeof(**ids), 1u << 22) != EK_OK) {
            free(*ids);
            return EK_ENOMEM;
        }
        (*ids)[(*n)++] = (int32_t)v;
    }
    return *n ? EK_OK : ek_error(EK_EUSAGE, "--ids: empty");
}

static enum ek_status encode_chat(struct job *j, const struct ek_message *m, size_t n,
                                  int32_t **ids, size_t *n_ids)
{
    for (size_t i = 0; i < n && !j->sees; i++)
        if (strcmp(m[i].role, "user") == 0)
            j->names_images |= strstr(m[i].content, "<image>") || strstr(m[i].content, "<video>");
    if (!j->sees)
        return ek_chat_encode(j->tokenizer, m, n, ids, n_ids);
    return ek_vl_chat_encode(j->tokenizer, &j->pictures.rules, m, n, j->pictures.n_images,
                             j->pictures.n_videos, ids, n_ids);
}

static enum ek_status encode(struct job *j, const char *text, size_t n, int32_t **ids,
                             size_t *n_ids)
{
    const char *system = ek_arg(j->args, "system");
    struct ek_message messages[2] = {{"system", system}, {"user", text}};

    if (!ek_arg_flag(j->args, "raw") && (j->sees || ek_chat_template(j->tokenizer)))
        return encode_chat(j, system ? messages : messages + 1, system ? 2 : 1, ids, n_ids);
    if (system)
        return ek_error(EK_EUSAGE, "--system needs a model with a known chat template");
    return ek_tokenizer_encode(j->tokenizer, text, n, EK_ENCODE_SPECIAL | EK_ENCODE_BOS, ids,
                               n_ids);
}

static enum ek_status add_prompt(struct job *j, int32_t *ids, size_t n)
{
    if (n == 0 || j->n_prompts == MAX_PROMPTS) {
        free(ids);
        return ek_error(EK_EUSAGE, n ? "more than %d prompts" : "a prompt is empty", MAX_PROMPTS);
    }
    j->ids[j->n_prompts] = ids;
    j->prompts[j->n_prompts].ids = ids;
    j->prompts[j->n_prompts++].n = n;
    return EK_OK;
}

static enum ek_status add_text(struct job *j, const char *text, size_t n)
{
    int32_t *ids = NULL;
    size_t n_ids = 0;

    EK_TRY(encode(j, text, n, &ids, &n_ids));
    return add_prompt(j, ids, n_ids);
}

static enum ek_status add_file(struct job *j, const char *path)
{
    char *text;
    size_t n;
    enum ek_status st;

    EK_TRY(ek_file_read(strcmp(path, "-") == 0 ? "/dev/stdin" : path, MAX_PROMPT_BYTES, &text, &n));
    st = add_text(j, text, n);
    free(text);
    return st;
}

static enum ek_status add_conversation(struct job *j, const char *path)
{
    struct ek_messages m = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    enum ek_status st;

    if (ek_arg(j->args, "system") || ek_arg_flag(j->args, "raw"))
        return ek_error(EK_EUSAGE, "--messages: a system message is one of them; --raw has none");
    EK_TRY(ek_messages_read(path, &m));
    st = encode_chat(j, m.items, m.n, &ids, &n);
    ek_messages_free(&m);
    return st == EK_OK ? add_prompt(j, ids, n) : st;
}

static enum ek_status collect_prompts(struct job *j)
{
    for (size_t i = 0; i < j->args->n_values; i++) {
        const char *name = j->args->values[i].option->name, *value = j->args->values[i].value;
        int32_t *ids = NULL;
        size_t n = 0;
        if (strcmp(name, "ids") == 0) {
            EK_TRY(parse_ids(value, &ids, &n));
            EK_TRY(add_prompt(j, ids, n));
        } else if (strcmp(name, "prompt") == 0) {
            EK_TRY(add_text(j, value, strlen(value)));
        } else if (strcmp(name, "prompt-file") == 0) {
            EK_TRY(add_file(j, value));
        } else if (strcmp(name, "messages") == 0) {
            EK_TRY(add_conversation(j, value));
        }
    }
    if (j->n_prompts == 0)
        return ek_error(EK_EUSAGE, "run: --prompt, --prompt-file, --messages or --ids is needed");
    return EK_OK;
}

/* ---- Pictures -------------------------------------------------------------------------------- */
/* Reads them before the prompt is encoded, which must hold a place for each. */
static enum ek_status open_pictures(struct job *j)
{
    struct ek_model_options opt = EK_MODEL_OPTIONS_INIT;

    j->sees = ek_pictures_given(j->args);
    if (!j->sees)
        return EK_OK;
    EK_TRY(ek_quantize_parse(ek_arg(j->args, "quantize"), &opt.quantize));
    EK_TRY(ek_model_open(j->args->operands[0], &opt, &j->session.model));
    return ek_pictures_open(j->args, j->session.model, &j->pictures);
}

/* What the engine must have room for; without a plan also for the answer. */
static enum ek_status need_of_pictures(const struct job *j, struct ek_session_need *need)
{
    uint32_t most = j->session.model->config.max_position, max_tokens = 128;
    uint64_t tokens = 0;

    if (j->n_prompts != 1)
        return ek_error(EK_EUSAGE, "pictures belong to one prompt, %zu given", j->n_prompts);
    EK_TRY(ek_arg_u32(j->args, "max-tokens", 1, 1u << 22, &max_tokens));
    EK_TRY(ek_pictures_tokens(&j->pictures, j->prompts[0].n, &tokens));
    if (tokens > most)
        return ek_error(EK_EUSAGE, "the prompt with its pictures has %llu tokens, %s takes %u",
                        (unsigned long long)tokens, j->session.model->name, most);
    if (!ek_arg(j->args, "plan"))
        tokens = tokens + max_tokens < most ? tokens + max_tokens : most;
    need->context = (uint32_t)tokens;
    return EK_OK;
}

/* A model that sees, and no pictures: the prompts may name none, in text or as ids. */
static enum ek_status check_blind(const struct job *j)
{
    struct ek_vl_rules rules;
    bool named = j->names_images;

    if (j->session.model->config.vision == EK_VISION_NONE)
        return EK_OK;
    EK_TRY(ek_vl_rules_open(j->session.model, &rules));
    for (size_t i = 0; i < j->n_prompts; i++)
        for (size_t k = 0; k < j->prompts[i].n; k++)
            named |= j->prompts[i].ids[k] == rules.image_id ||
                     (rules.video_id >= 0 && j->prompts[i].ids[k] == rules.video_id);
    return named ? ek_error(EK_EUSAGE, "the prompt names pictures, 0 are given (--image, --frame)")
                 : EK_OK;
}

static enum ek_status look(struct job *j)
{
    if (!j->sees)
        return check_blind(j);
    EK_TRY(ek_pictures_encode(&j->pictures, j->session.engine, j->ids[0], j->prompts[0].n));
    j->prompts[0] = j->pictures.prompt.prompt;
    return EK_OK;
}

/* ---- Generation ------------------------------------------------------------------------------ */
static bool print_token(void *user, size_t prompt, int32_t id)
{
    struct job *j = user;
    const char *text;

    if (prompt == 0 && j->stream && ek_decoder_push(j->stream, id, &text) == EK_OK) {
        fputs(text, stdout);
        fflush(stdout);
    }
    return true;
}

static size_t collect_stops(struct job *j)
{
    const struct ek_config *c = &j->session.model->config;
    size_t n = 0;

    if (ek_arg_flag(j->args, "ignore-eos"))
        return 0;
    for (uint32_t i = 0; i < c->n_eos && n < MAX_STOPS; i++)
        j->stops[n++] = c->eos[i];
    if (j->tokenizer)
        n += ek_chat_stops(j->tokenizer, j->stops + n, MAX_STOPS - n);
    return n;
}

static enum ek_status read_sampling(const struct ek_args *a, struct ek_sampling *s)
{
    EK_TRY(ek_arg_double(a, "temperature", 0, 100, &s->temperature));
    EK_TRY(ek_arg_u32(a, "top-k", 0, UINT32_MAX, &s->top_k));
    EK_TRY(ek_arg_double(a, "top-p", 0, 1, &s->top_p));
    EK_TRY(ek_arg_double(a, "min-p", 0, 1, &s->min_p));
    return ek_arg_u64(a, "seed", 0, UINT64_MAX, &s->seed);
}

/* *some: they do something. */
static enum ek_status read_penalties(const struct ek_args *a, struct ek_penalties *p, bool *some)
{
    double repetition = 1, presence = 0, frequency = 0;

    EK_TRY(ek_arg_double(a, "repetition-penalty", 0.01, 100, &repetition));
    EK_TRY(ek_arg_double(a, "presence-penalty", -2, 2, &presence));
    EK_TRY(ek_arg_double(a, "frequency-penalty", -2, 2, &frequency));
    *p = (struct ek_penalties){.repetition = (float)repetition,
                               .presence = (float)presence,
                               .frequency = (float)frequency};
    *some = repetition != 1 || presence != 0 || frequency != 0;
    return EK_OK;
}

static enum ek_status generate(struct job *j)
{
    struct ek_penalties penalties;
    bool penalised;
    struct ek_generate_options opt = {.sampling = EK_SAMPLING_GREEDY,
                                      .max_tokens = 128,
                                      .stop = j->stops,
                                      .on_token = print_token,
                                      .user = j,
                                      .cancel = &ek_interrupted};
    enum ek_status st;

    EK_TRY(read_sampling(j->args, &opt.sampling));
    EK_TRY(read_penalties(j->args, &penalties, &penalised));
    opt.penalties = penalised ? &penalties : NULL;
    EK_TRY(ek_arg_u32(j->args, "max-tokens", 1, 1u << 22, &opt.max_tokens));
    opt.n_stop = collect_stops(j);
    if (j->tokenizer && j->n_prompts == 1 && !ek_arg_flag(j->args, "json") &&
        (j->stream = ek_decoder_new(j->tokenizer, true)) == NULL)
        return EK_ENOMEM;
    ek_catch_interrupts();
    st =
        ek_generate(j->session.engine, j->prompts, j->n_prompts, &opt, &j->completions, &j->timing);
    if (j->stream) {
        fputs(ek_decoder_flush(j->stream), stdout);
        fputc('\n', stdout);
        fflush(stdout);
    }
    return st;
}

/* ---- Output ---------------------------------------------------------------------------------- */
static json_t *ids_json(const int32_t *ids, size_t n)
{
    json_t *a = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, json_integer(ids[i]));
    return a;
}

/* What the answer points at, where the model says boxes. */
static void add_grounding(const struct job *j, const struct ek_completion *c, json_t *v)
{
    const struct ek_vl_prompt *vl = &j->pictures.prompt.vl;
    bool one = vl->n_visuals == 1;
    json_t *found = NULL;
    char *text = NULL;

    if (ek_tokenizer_decode(j->tokenizer, c->ids, c->n, false, &text) == EK_OK &&
        ek_grounding_parse(text, one ? vl->visuals[0].width : 0, one ? vl->visuals[0].height : 0,
                           &found) == EK_OK)
        json_object_set_new(v, "grounding", found);
    free(text);
}

static json_t *completion_json(const struct job *j, size_t i)
{
    static const char *const finish[] = {"length", "stop", "callback"};
    const struct ek_completion *c = &j->completions[i];
    json_t *v = json_pack("{sI so ss}", "prompt_tokens", (json_int_t)j->prompts[i].n, "ids",
                          ids_json(c->ids, c->n), "finish", finish[c->finish]);
    char *text = NULL;

    if (v && j->tokenizer && ek_tokenizer_decode(j->tokenizer, c->ids, c->n, true, &text) == EK_OK)
        json_object_set_new(v, "text", json_string(text));
    if (v && j->tokenizer && j->sees && j->pictures.rules.kind == EK_VISION_VL2)
        add_grounding(j, c, v);
    free(text);
    return v;
}

static enum ek_status print_result(const struct job *j)
{
    const struct ek_generate_timing *t = &j->timing;
    json_t *all = json_array();

    for (size_t i = 0; i < j->n_prompts; i++)
        json_array_append_new(all, completion_json(j, i));
    if (ek_arg_flag(j->args, "json")) {
        json_t *v =
            json_pack("{so sf sf sI sI}", "completions", all, "prefill_s", t->prefill_s, "decode_s",
                      t->decode_s, "prompt_tokens", (json_int_t)t->prompt_tokens, "new_tokens",
                      (json_int_t)t->new_tokens);
        if (v && j->sees) {
            json_object_set_new(v, "pictures", ek_pictures_json(&j->pictures));
            json_object_set_new(v, "pictures_s", json_real(j->pictures.seconds));
        }
        return ek_json_print(v);
    }
    for (size_t i = 0; !j->stream && i < j->n_prompts; i++) {
        const json_t *c = json_array_get(all, i);
        const char *text = json_string_value(json_object_get(c, "text"));
        char *ids = json_dumps(json_object_get(c, "ids"), JSON_COMPACT);
        printf("%s%s", text ? text : ids ? ids : "", "\n");
        free(ids);
    }
    json_decref(all);
    if (j->sees)
        ek_note("pictures: %zu in %.3f s", j->pictures.n_items, j->pictures.seconds);
    ek_note(
        "%llu prompt tokens in %.3f s (%.1f tokens/s), %llu new tokens in %.3f s (%.1f tokens/s)",
        (unsigned long long)t->prompt_tokens, t->prefill_s,
        t->prefill_s > 0 ? (double)t->prompt_tokens / t->prefill_s : 0,
        (unsigned long long)t->new_tokens, t->decode_s,
        t->decode_s > 0 ? (double)(t->new_tokens - j->n_prompts) / t->decode_s : 0);
    return EK_OK;
}

/* Tokens of an answer before the first that would be a place of another picture. */
static size_t sayable(const struct job *j, const struct ek_completion *c)
{
    const struct ek_vl_rules *r = &j->pictures.rules;
    size_t n = 0;

    while (n < c->n && !(j->sees && (c->ids[n] == r->image_id || c->ids[n] == r->video_id)))
        n++;
    return n;
}

/* Logits of the first prompt, its pictures and its answer, teacher-forced, as a reference file. */
static enum ek_status record(const struct job *j)
{
    const char *path = ek_arg(j->args, "record");
    const struct ek_prompt *p = &j->prompts[0];
    struct ek_reference in = {.items = (struct ek_vl_item *)j->pictures.items,
                              .n_items = j->pictures.n_items};
    size_t answer = sayable(j, &j->completions[0]);
    enum ek_status st;

    if (path == NULL)
        return EK_OK;
    in.n_ids = p->n + answer;
    if ((in.ids = ek_calloc(in.n_ids, sizeof(*in.ids))) == NULL)
        return EK_ENOMEM;
    memcpy(in.ids, p->ids, p->n * sizeof(*in.ids));
    memcpy(in.ids + p->n, j->completions[0].ids, answer * sizeof(*in.ids));
    st = ek_reference_record(j->session.engine, &in, path, ek_arg_flag(j->args, "force"));
    free(in.ids);
    return st;
}

/* What would change nothing is refused. */
static enum ek_status check_options(const struct ek_args *a)
{
    if (ek_arg(a, "ids") && (ek_arg(a, "system") || ek_arg_flag(a, "raw")))
        return ek_error(EK_EUSAGE, "--ids: token ids go in as they are, without --system or --raw");
    if (ek_arg(a, "fps") && !ek_arg(a, "frame"))
        return ek_error(EK_EUSAGE, "--fps: is of a video, which --frame gives");
    if (ek_arg(a, "image-as") && !ek_pictures_given(a))
        return ek_error(EK_EUSAGE, "--image-as: is of pictures, which --image or --frame give");
    return EK_OK;
}

static bool needs_tokenizer(const struct ek_args *a)
{
    return ek_arg(a, "prompt") || ek_arg(a, "prompt-file") || ek_arg(a, "messages");
}

static enum ek_status open_session(struct job *j)
{
    struct ek_session_need need = {.batch = (uint32_t)j->n_prompts, .tokenizer = j->tokenizer};

    if (ek_arg(j->args, "plan"))
        need.batch = 0; /* more prompts than the plan's batch run in waves */
    if (j->sees)
        EK_TRY(need_of_pictures(j, &need));
    return ek_session_open(j->args, j->args->operands[0], &need, &j->session);
}

static enum ek_status run(const struct ek_args *args)
{
    struct job j = {.args = args};
    enum ek_status st = EK_OK;

    EK_TRY(check_options(args));
    if (ek_arg(args, "record"))
        EK_TRY(ek_file_may_write(ek_arg(args, "record"), ek_arg_flag(args, "force")));
    if (needs_tokenizer(args))
        EK_GOTO(ek_tokenizer_open(args->operands[0], &j.tokenizer), st, done);
    EK_GOTO(open_pictures(&j), st, done);
    EK_GOTO(collect_prompts(&j), st, done);
    EK_GOTO(open_session(&j), st, done);
    EK_GOTO(look(&j), st, done);
    EK_GOTO(generate(&j), st, done);
    EK_GOTO(print_result(&j), st, done);
    st = record(&j);
done:
    if (j.completions)
        ek_completions_free(j.completions, j.n_prompts);
    ek_decoder_free(j.stream);
    ek_pictures_close(&j.pictures);
    ek_session_close(&j.session);
    for (size_t i = 0; i < j.n_prompts; i++)
        free(j.ids[i]);
    ek_tokenizer_free(j.tokenizer);
    return st;
}

const struct ek_command ek_cmd_run = {
    .name = "run",
    .summary = "run a model under a plan and print what it says",
    .operands = "MODEL",
    .n_operands = 1,
    .options = options,
    .description = "A plan that does not fit is refused before the first weight byte is read, with "
                   "a table of\n"
                   "every device. Without --plan everything runs on one device. One prompt is "
                   "streamed; several\n"
                   "run as a batch. Pictures stand before the text unless it says <image> where.",
    .run = run,
};
