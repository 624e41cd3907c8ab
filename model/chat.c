/* SPDX-License-Identifier: Apache-2.0
 *
 * Chat templates: what the families' Jinja templates render for plain conversations, without a
 * Jinja interpreter. Contents are never parsed for special tokens, so that a user's text cannot
 * forge a turn; between special tokens the text is encoded in one run, as rendered text would be.
 */
#include "model/model.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_MESSAGES 65536

struct chat {
    const struct ek_tokenizer *t;
    const struct ek_message *messages;
    size_t n;
    struct ek_buffer text; /* not yet encoded */
    struct ek_ids ids;
    const struct ek_vl_rules *rules; /* of pictures in contents; NULL: text alone */
    size_t before[2];                /* pictures, videos that stand before the first user's text */
};

struct ek_chat_family {
    const char *name;
    const char *tokens[3]; /* special tokens the template needs (up to the first NULL) */
    const char *text[2];   /* and that the template's source has; NULL: any */
    const char *absent;    /* text of templates that say something else; NULL: none */
    bool by_tokens;        /* recognised by its tokens alone where there is no template ... */
    bool before_template;  /* ... or whatever the template says */
    enum ek_status (*render)(struct chat *c);
    const char *stops[3]; /* tokens that end a turn beside eos */
};

/* ---- Building the ids ------------------------------------------------------------------------ */

static enum ek_status add_n(struct chat *c, const char *s, size_t n)
{
    return ek_buffer_add(&c->text, s, n);
}

static enum ek_status add(struct chat *c, const char *s)
{
    return add_n(c, s, strlen(s));
}

/* Encodes the text so far. */
static enum ek_status flush(struct chat *c)
{
    int32_t *ids;
    size_t n;
    enum ek_status st = EK_OK;

    if (c->text.n == 0)
        return EK_OK;
    EK_TRY(ek_tokenizer_encode(c->t, c->text.data, c->text.n, 0, &ids, &n));
    for (size_t i = 0; i < n && st == EK_OK; i++)
        st = ek_ids_add(&c->ids, ids[i]);
    free(ids);
    c->text.n = 0;
    return st;
}

static enum ek_status add_id(struct chat *c, int32_t id)
{
    EK_TRY(flush(c));
    return id >= 0 ? ek_ids_add(&c->ids, id) : EK_OK;
}

static enum ek_status add_special(struct chat *c, const char *token)
{
    return add_id(c, ek_tokenizer_id(c->t, token));
}

static bool is_role(const struct ek_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

/* ---- Pictures in contents -------------------------------------------------------------------- */

enum marker_kind { MARKER_IMAGE, MARKER_VIDEO, MARKER_TOKEN };
static const struct marker {
    const char *text;
    enum marker_kind kind;
} markers[] = {
    {"<image>", MARKER_IMAGE},       {"<video>", MARKER_VIDEO}, {"<|ref|>", MARKER_TOKEN},
    {"<|/ref|>", MARKER_TOKEN},      {"<|det|>", MARKER_TOKEN}, {"<|/det|>", MARKER_TOKEN},
    {"<|grounding|>", MARKER_TOKEN},
};

/* Pictures stand in users' messages, videos in Qwen's; VL2's markers of boxes, which cannot forge a
 * turn, in all. */
static bool counts(const struct chat *c, const struct marker *m, bool user)
{
    if (m->kind == MARKER_TOKEN)
        return c->rules->kind == EK_VISION_VL2 && ek_tokenizer_id(c->t, m->text) >= 0;
    return user && (m->kind == MARKER_IMAGE || c->rules->video_id >= 0);
}

/* The first marker within n bytes of s, and where it is; NULL: none. */
static const struct marker *find_marker(const struct chat *c, bool user, const char *s, size_t n,
                                        size_t *at)
{
    for (*at = 0; *at < n; ++*at) {
        for (size_t i = 0; s[*at] == '<' && i < EK_ARRAY_LEN(markers); i++) {
            size_t length = strlen(markers[i].text);
            if (length <= n - *at && memcmp(s + *at, markers[i].text, length) == 0 &&
                counts(c, &markers[i], user))
                return &markers[i];
        }
    }
    return NULL;
}

static enum ek_status add_marker(struct chat *c, const struct marker *m)
{
    int32_t id = m->kind == MARKER_VIDEO ? c->rules->video_id : c->rules->image_id;
    bool qwen = c->rules->kind == EK_VISION_QWEN25;

    if (m->kind == MARKER_TOKEN)
        return add_special(c, m->text);
    if (qwen)
        EK_TRY(add_special(c, "<|vision_start|>"));
    EK_TRY(add_id(c, id));
    return qwen ? add_special(c, "<|vision_end|>") : EK_OK;
}

/* The pictures that no message names: before the first user's text, in VL2's manner a line each. */
static enum ek_status add_before(struct chat *c)
{
    for (int kind = MARKER_IMAGE; kind <= MARKER_VIDEO; kind++) {
        for (; c->before[kind] > 0; c->before[kind]--) {
            EK_TRY(add_marker(c, &markers[kind]));
            if (c->rules->kind == EK_VISION_VL2)
                EK_TRY(add(c, "\n"));
        }
    }
    return EK_OK;
}

/* n bytes of a message, its markers as the tokens they stand for. */
static enum ek_status add_content(struct chat *c, const struct ek_message *message, const char *s,
                                  size_t n)
{
    bool user = is_role(message, "user");
    const struct marker *m;
    size_t at;

    if (c->rules == NULL)
        return add_n(c, s, n);
    if (user)
        EK_TRY(add_before(c));
    while ((m = find_marker(c, user, s, n, &at)) != NULL) {
        EK_TRY(add_n(c, s, at));
        EK_TRY(add_marker(c, m));
        at += strlen(m->text);
        s += at;
        n -= at;
    }
    return add_n(c, s, n);
}

/* Holds the pictures that messages name against those given. */
static enum ek_status match_pictures(struct chat *c, const size_t given[2])
{
    static const char *const names[] = {"pictures", "videos"};
    size_t named[2] = {0}, users = 0, at;
    const struct marker *m;

    for (size_t i = 0; i < c->n; i++) {
        const char *s = c->messages[i].content;
        if (!is_role(&c->messages[i], "user"))
            continue;
        users++;
        while ((m = find_marker(c, true, s, strlen(s), &at)) != NULL) {
            if (m->kind != MARKER_TOKEN)
                named[m->kind]++;
            s += at + strlen(m->text);
        }
    }
    if (users == 0 && given[0] + given[1] > 0)
        return ek_error(EK_EUSAGE, "chat: %zu pictures and no user's message", given[0] + given[1]);
    for (int kind = 0; kind < 2; kind++) {
        if (named[0] + named[1] == 0)
            c->before[kind] = given[kind];
        else if (named[kind] != given[kind])
            return ek_error(EK_EUSAGE, "chat: the messages name %zu %s, %zu are given", named[kind],
                            names[kind], given[kind]);
    }
    return EK_OK;
}

/* Content without the white space around it. */
static enum ek_status add_trimmed(struct chat *c, const struct ek_message *m)
{
    size_t n = strlen(m->content), skip = ek_leading_space(m->content, n);

    n -= skip;
    return add_content(c, m, m->content + skip, n - ek_trailing_space(m->content + skip, n));
}

/* ---- The families ---------------------------------------------------------------------------- */

static enum ek_status chatml_turn(struct chat *c, const struct ek_message *m)
{
    EK_TRY(add_special(c, "<|im_start|>"));
    EK_TRY(add(c, m->role));
    EK_TRY(add(c, "\n"));
    EK_TRY(add_content(c, m, m->content, strlen(m->content)));
    EK_TRY(add_special(c, "<|im_end|>"));
    return add(c, "\n");
}

/* SmolLM2, Qwen2 and Qwen2.5: the default system message stands where the first is none. */
static enum ek_status render_chatml(struct chat *c)
{
    struct ek_message first = {"system", c->t->chat_system};

    if (first.content != NULL && !is_role(&c->messages[0], "system"))
        EK_TRY(chatml_turn(c, &first));
    for (size_t i = 0; i < c->n; i++)
        EK_TRY(chatml_turn(c, &c->messages[i]));
    EK_TRY(add_special(c, "<|im_start|>"));
    return add(c, "assistant\n");
}

static enum ek_status llama3_header(struct chat *c, const char *role)
{
    EK_TRY(add_special(c, "<|start_header_id|>"));
    EK_TRY(add(c, role));
    EK_TRY(add_special(c, "<|end_header_id|>"));
    return add(c, "\n\n");
}

static enum ek_status llama3_turns(struct chat *c, size_t first)
{
    for (size_t i = first; i < c->n; i++) {
        EK_TRY(llama3_header(c, c->messages[i].role));
        EK_TRY(add_trimmed(c, &c->messages[i]));
        EK_TRY(add_special(c, "<|eot_id|>"));
    }
    return llama3_header(c, "assistant");
}

static enum ek_status render_llama3(struct chat *c)
{
    EK_TRY(add_id(c, c->t->bos));
    return llama3_turns(c, 0);
}

/* Llama 3.1 and 3.2 always have a system turn, with two dates: today's is the template's own
 * fallback, so that the same conversation gives the same ids tomorrow. */
static enum ek_status render_llama31(struct chat *c)
{
    bool given = is_role(&c->messages[0], "system");

    EK_TRY(add_id(c, c->t->bos));
    EK_TRY(llama3_header(c, "system"));
    EK_TRY(add(c, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"));
    if (given)
        EK_TRY(add_trimmed(c, &c->messages[0]));
    EK_TRY(add_special(c, "<|eot_id|>"));
    return llama3_turns(c, given ? 1 : 0);
}

/* DeepSeek LLM, V2 and V2-Lite. */
static enum ek_status render_deepseek_llm(struct chat *c)
{
    EK_TRY(add_id(c, c->t->bos));
    for (size_t i = 0; i < c->n; i++) {
        const struct ek_message *m = &c->messages[i];
        bool answer = is_role(m, "assistant");
        EK_TRY(add(c, answer ? "Assistant: " : is_role(m, "user") ? "User: " : ""));
        EK_TRY(add(c, m->content));
        EK_TRY(answer ? add_id(c, c->t->eos) : add(c, "\n\n"));
    }
    return add(c, "Assistant:");
}

/* DeepSeek V2.5 and V3: all system messages first. */
static enum ek_status render_deepseek_v3(struct chat *c)
{
    bool some = false;

    EK_TRY(add_id(c, c->t->bos));
    for (size_t i = 0; i < c->n; i++) {
        if (!is_role(&c->messages[i], "system"))
            continue;
        EK_TRY(add(c, some ? "\n\n" : ""));
        EK_TRY(add(c, c->messages[i].content));
        some = true;
    }
    for (size_t i = 0; i < c->n; i++) {
        const struct ek_message *m = &c->messages[i];
        bool answer = is_role(m, "assistant");
        if (is_role(m, "system"))
            continue;
        EK_TRY(add_special(c, answer ? "<｜Assistant｜>" : "<｜User｜>"));
        EK_TRY(add(c, m->content));
        if (answer)
            EK_TRY(add_id(c, c->t->eos));
    }
    return add_special(c, "<｜Assistant｜>");
}

/* DeepSeek-VL2's processor: each turn is encoded for itself; an answer ends in eos alone. */
static enum ek_status render_deepseek_vl2(struct chat *c)
{
    EK_TRY(add_id(c, c->t->bos));
    for (size_t i = 0; i < c->n; i++) {
        const struct ek_message *m = &c->messages[i];
        bool user = is_role(m, "user"), answer = is_role(m, "assistant");
        if (!user && !answer && i > 0)
            return ek_error(EK_EUSAGE,
                            "chat: message %zu is a system message; DeepSeek-VL2 takes "
                            "one only as the first",
                            i);
        if (user) {
            EK_TRY(add_special(c, "<|User|>"));
            EK_TRY(add(c, ": "));
        }
        EK_TRY(add_trimmed(c, m));
        if (user) {
            EK_TRY(add(c, "\n\n"));
            EK_TRY(add_special(c, "<|Assistant|>"));
            EK_TRY(add(c, ":"));
        }
        EK_TRY(answer ? add_id(c, c->t->eos) : flush(c));
    }
    return EK_OK;
}

static const struct ek_chat_family families[] = {
    {.name = "deepseek-vl2",
     .tokens = {"<|User|>", "<|Assistant|>", "<|grounding|>"},
     .by_tokens = true,
     .before_template = true, /* the small model's file carries another model's template */
     .render = render_deepseek_vl2},
    {.name = "chatml",
     .tokens = {"<|im_start|>", "<|im_end|>"},
     .text = {"<|im_start|>", "<|im_start|>assistant"},
     .absent = "<think>", /* Qwen3, QwQ: an open reasoning block */
     .by_tokens = true,
     .render = render_chatml,
     .stops = {"<|im_end|>", "<|endoftext|>"}},
    {.name = "llama3.1",
     .tokens = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     .text = {"<|start_header_id|>", "Cutting Knowledge Date: December 2023"},
     .render = render_llama31,
     .stops = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}},
    {.name = "llama3",
     .tokens = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     .text = {"<|start_header_id|>"},
     .by_tokens = true,
     .render = render_llama3,
     .stops = {"<|eot_id|>", "<|end_of_text|>"}},
    {.name = "deepseek-v3",
     .tokens = {"<｜User｜>", "<｜Assistant｜>"},
     .text = {"<｜User｜>"},
     .absent = "<think>", /* R1 and V3.1 open a reasoning block */
     .render = render_deepseek_v3},
    {.name = "deepseek-llm", .text = {"'User: '", "'Assistant:'"}, .render = render_deepseek_llm},
};

/* ---- Recognising one ------------------------------------------------------------------------- */

static bool has_tokens(const struct ek_tokenizer *t, const struct ek_chat_family *f)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(f->tokens) && f->tokens[i] != NULL; i++)
        if (ek_tokenizer_id(t, f->tokens[i]) < 0)
            return false;
    return true;
}

static bool matches(const struct ek_tokenizer *t, const struct ek_chat_family *f)
{
    const char *source = t->chat_template;

    if (!has_tokens(t, f))
        return false;
    if (source == NULL || f->before_template)
        return f->by_tokens;
    for (size_t i = 0; i < EK_ARRAY_LEN(f->text) && f->text[i] != NULL; i++)
        if (strstr(source, f->text[i]) == NULL)
            return false;
    return f->absent == NULL || strstr(source, f->absent) == NULL;
}

/* Length of the newline at s, written raw or as the escape of a Jinja string; 0: none. */
static size_t newline(const char *s)
{
    return s[0] == '\n' ? 1 : s[0] == '\\' && s[1] == 'n' ? 2 : 0;
}

/* Copies n bytes of a Jinja string's inside to out, escapes resolved. False where the string ends
 * before: a quote. out has room for n + 1 bytes. */
static bool unescape(const char *s, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\'' || s[i] == '"')
            return false;
        if (s[i] == '\\' && i + 1 < n)
            *out++ = s[++i] == 'n' ? '\n' : s[i];
        else
            *out++ = s[i];
    }
    *out = '\0';
    return true;
}

/* ChatML's default system message: the literal text between "<|im_start|>system\n" and the next
 * "<|im_end|>". Behind a raw newline the text may be a template's own, where braces are not text.
 */
static enum ek_status find_system(struct ek_tokenizer *t)
{
    static const char open[] = "<|im_start|>system";
    const char *at = t->chat_template, *end;
    size_t skip, n;

    while (at != NULL && (at = strstr(at, open)) != NULL) {
        at += sizeof(open) - 1;
        if ((skip = newline(at)) == 0 || (end = strstr(at, "<|im_end|>")) == NULL)
            continue;
        n = (size_t)(end - at) - skip;
        if (n == 0 || (skip == 1 && strcspn(at + skip, "{}\\") < n))
            continue;
        if ((t->chat_system = ek_calloc(n + 1, 1)) == NULL)
            return EK_ENOMEM;
        if (unescape(at + skip, n, t->chat_system))
            return EK_OK;
        free(t->chat_system);
        t->chat_system = NULL;
    }
    return EK_OK;
}

/* VL2's processor needs both, whatever files a copy of the checkpoint lacks. */
static void find_ends(struct ek_tokenizer *t)
{
    if (t->bos < 0)
        t->bos = ek_tokenizer_id(t, "<｜begin▁of▁sentence｜>");
    if (t->eos < 0)
        t->eos = ek_tokenizer_id(t, "<｜end▁of▁sentence｜>");
}

enum ek_status ek_chat_recognise(struct ek_tokenizer *t)
{
    for (size_t i = 0; i < EK_ARRAY_LEN(families); i++) {
        if (matches(t, &families[i])) {
            t->chat = &families[i];
            if (t->chat->render == render_deepseek_vl2)
                find_ends(t);
            return t->chat->render == render_chatml ? find_system(t) : EK_OK;
        }
    }
    return EK_OK;
}

const char *ek_chat_template(const struct ek_tokenizer *t)
{
    return t->chat ? t->chat->name : NULL;
}

/* ---- The public functions -------------------------------------------------------------------- */

static enum ek_status check_messages(const struct ek_tokenizer *t,
                                     const struct ek_message *messages, size_t n)
{
    char quoted[EK_QUOTE_LEN];

    if (t->chat == NULL)
        return ek_error(EK_EUNSUPPORTED, "chat: the checkpoint has %s",
                        t->chat_template ? "a chat template of no known family"
                                         : "no chat template");
    if (n == 0 || n > MAX_MESSAGES)
        return ek_error(EK_EUSAGE, "chat: %zu messages, must be 1 to %d", n, MAX_MESSAGES);
    for (size_t i = 0; i < n; i++) {
        const struct ek_message *m = &messages[i];
        if (!is_role(m, "system") && !is_role(m, "user") && !is_role(m, "assistant"))
            return ek_error(EK_EUSAGE,
                            "chat: message %zu has role '%s', must be system, user or assistant", i,
                            ek_quote(quoted, m->role, strlen(m->role)));
    }
    return EK_OK;
}

/* Frees c's text; on failure its ids too. */
static enum ek_status render(struct chat *c, int32_t **ids, size_t *n_ids)
{
    enum ek_status st = c->t->chat->render(c);

    if (st == EK_OK)
        st = flush(c);
    ek_buffer_free(&c->text);
    if (st != EK_OK) {
        free(c->ids.ids);
        return st;
    }
    *ids = c->ids.ids;
    *n_ids = c->ids.n;
    return EK_OK;
}

enum ek_status ek_chat_encode(const struct ek_tokenizer *t, const struct ek_message *messages,
                              size_t n, int32_t **ids, size_t *n_ids)
{
    struct chat c = {.t = t, .messages = messages, .n = n};

    EK_TRY(check_messages(t, messages, n));
    return render(&c, ids, n_ids);
}

enum ek_status ek_vl_chat_encode(const struct ek_tokenizer *t, const struct ek_vl_rules *rules,
                                 const struct ek_message *messages, size_t n, size_t n_images,
                                 size_t n_videos, int32_t **ids, size_t *n_ids)
{
    struct chat c = {.t = t, .messages = messages, .n = n, .rules = rules};
    const char *family = rules->kind == EK_VISION_QWEN25 ? "chatml" : "deepseek-vl2";

    EK_TRY(check_messages(t, messages, n));
    if (strcmp(t->chat->name, family) != 0)
        return ek_error(EK_EUNSUPPORTED, "chat: the tokenizer's template is %s, the model's %s",
                        t->chat->name, family);
    EK_TRY(match_pictures(&c, (const size_t[2]){n_images, n_videos}));
    if (c.before[MARKER_VIDEO] > 0 && rules->video_id < 0)
        return ek_error(EK_EUNSUPPORTED, "chat: the model takes pictures, no videos");
    return render(&c, ids, n_ids);
}

size_t ek_chat_stops(const struct ek_tokenizer *t, int32_t *ids, size_t cap)
{
    size_t n = 0;

    if (t->eos >= 0 && n < cap)
        ids[n++] = t->eos;
    for (size_t i = 0; t->chat != NULL && i < EK_ARRAY_LEN(t->chat->stops) && n < cap; i++) {
        int32_t id = t->chat->stops[i] ? ek_tokenizer_id(t, t->chat->stops[i]) : -1;
        if (id >= 0 && (n == 0 || id != ids[0]))
            ids[n++] = id;
    }
    return n;
}
