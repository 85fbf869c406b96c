#include "common/text/split_dialect.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/unicode_newer.h"

/* Unicode's White_Space, which is what \s means in Oniguruma; PCRE2 would add U+180E. */
#define WHITE_SPACE                                                                                \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"    \
    "\\x{205F}\\x{3000}"

#define REASON_SIZE 80

struct translation {
    const char *at;
    FILE *out;
    char *reason;
    bool in_class;
};

static bool refuse(struct translation *t, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool refuse(struct translation *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->reason, REASON_SIZE, format, arguments);
    va_end(arguments);
    return false;
}

static bool is_ascii_alnum(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* The members of \p{category}, to stand inside a class. */
static bool put_category(struct translation *t, char category)
{
    size_t count;
    const struct bt_unicode_range *newer = bt_unicode_newer(category, &count);
    if (!newer)
        return refuse(t, "only \\p{L}, \\p{M}, \\p{N}, \\p{P} and \\p{S} are supported");
    fprintf(t->out, "\\p{%c}", category);
    for (size_t i = 0; i < count; i++)
        fprintf(t->out, "\\x{%X}-\\x{%X}", (unsigned)newer[i].first, (unsigned)newer[i].last);
    return true;
}

/* \s, \S, \p{X}, \P{X}; t->at stands on the letter and ends after all of it. */
static bool put_set(struct translation *t)
{
    char kind = *t->at++;
    bool negated = kind == 'S' || kind == 'P';
    if (negated && t->in_class)
        return refuse(t, "\\%c inside [] is not supported", kind);
    if (!t->in_class)
        fputs(negated ? "[^" : "[", t->out);
    if (kind == 's' || kind == 'S') {
        fputs(WHITE_SPACE, t->out);
    } else {
        if (t->at[0] != '{' || !t->at[1] || t->at[2] != '}')
            return refuse(t, "only \\p{L}, \\p{M}, \\p{N}, \\p{P} and \\p{S} are supported");
        if (!put_category(t, t->at[1]))
            return false;
        t->at += 3;
    }
    if (!t->in_class)
        fputc(']', t->out);
    else if (t->at[0] == '-' && t->at[1] != ']')
        return refuse(t, "a range that starts with a class is not supported");
    return true;
}

static bool put_escape(struct translation *t)
{
    char c = t->at[1];
    if (c == 's' || c == 'S' || c == 'p' || c == 'P') {
        t->at++;
        return put_set(t);
    }
    bool plain = c > ' ' && c < 0x7F && !is_ascii_alnum(c);
    if (!plain && !(c && strchr("rntf", c)))
        return c > ' ' && c < 0x7F ? refuse(t, "\\%c is not supported", c)
                                   : refuse(t, "a lone \\ is not supported");
    fputc('\\', t->out);
    fputc(c, t->out);
    t->at += 2;
    return true;
}

static bool put_class(struct translation *t)
{
    t->in_class = true;
    fputc(*t->at++, t->out);
    if (*t->at == '^')
        fputc(*t->at++, t->out);
    if (*t->at == ']')
        return refuse(t, "a class that starts with ] is not supported");
    while (*t->at != ']') {
        if (!*t->at)
            return refuse(t, "a class is not closed");
        if (*t->at == '[' || (t->at[0] == '&' && t->at[1] == '&'))
            return refuse(t, "classes inside a class are not supported");
        if (t->at[0] == '-' && t->at[1] == '\\' && t->at[2] && strchr("sSpP", t->at[2]))
            return refuse(t, "a range that ends with a class is not supported");
        if (*t->at == '\\') {
            if (!put_escape(t))
                return false;
        } else {
            fputc(*t->at++, t->out);
        }
    }
    fputc(*t->at++, t->out);
    t->in_class = false;
    return true;
}

static bool put_group(struct translation *t)
{
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++) {
        size_t size = strlen(openings[i]);
        if (strncmp(t->at, openings[i], size) == 0) {
            fputs(openings[i], t->out);
            t->at += size;
            return true;
        }
    }
    if (t->at[1] == '?' || t->at[1] == '*')
        return refuse(t, "this kind of group is not supported");
    fputc(*t->at++, t->out);
    return true;
}

/* {n}, {n,} or {n,m}, where the two engines agree; a brace that is none of these is refused. */
static bool put_interval(struct translation *t)
{
    const char *p = t->at + 1;
    size_t digits = strspn(p, "0123456789");
    p += digits;
    if (*p == ',')
        p += 1 + strspn(p + 1, "0123456789");
    if (!digits || *p != '}' || p[1] == '+')
        return refuse(t, "this use of { is not supported");
    fwrite(t->at, 1, (size_t)(p + 1 - t->at), t->out);
    t->at = p + 1;
    return true;
}

static bool put_next(struct translation *t)
{
    switch (*t->at) {
    case '\\':
        return put_escape(t);
    case '[':
        return put_class(t);
    case '(':
        return put_group(t);
    case '{':
        return put_interval(t);
    case '^':
        return refuse(t, "^ is not supported");
    default:
        fputc(*t->at++, t->out);
        return true;
    }
}

char *bt_split_dialect_translate(const char *pattern, char ret_reason[static REASON_SIZE])
{
    char *text = NULL;
    size_t size = 0;
    struct translation t = {.at = pattern, .reason = ret_reason};
    if (strlen(pattern) > BT_SPLIT_MAX_PATTERN_BYTES) {
        refuse(&t, "it is longer than %d bytes", BT_SPLIT_MAX_PATTERN_BYTES);
        return NULL;
    }
    /* The same matches, but a long run of spaces is not tried again from each of its places. */
    if (strcmp(pattern, "\\s+$") == 0)
        t.at = "(?<!\\s)\\s+$";

    ret_reason[0] = '\0';
    t.out = open_memstream(&text, &size);
    if (!t.out)
        return NULL;
    bool good = true;
    while (good && *t.at)
        good = put_next(&t);
    if (fclose(t.out) != 0 || !good) {
        free(text);
        return NULL;
    }
    return text;
}
