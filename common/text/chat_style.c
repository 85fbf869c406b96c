#include "common/text/chat_style.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define USER      "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define EOS       "<｜end▁of▁sentence｜>"

/* Parts that several templates share. */
#define JOINS "is_first_sp"
#define CUTS  "split('</think>')[-1]"

/* The first that fits is taken, so a form stands before those that contain less. */
static const struct bt_chat_style styles[] = {
    {
        .name = "deepseek-v2",
        .has = {"'User: ' + message['content'] + '\n\n'", "'Assistant: ' + message['content']",
                "'Assistant:'"},
        .lacks = {"ns."},
        .system = BT_CHAT_SYSTEM_IN_PLACE,
        .system_end = "\n\n",
        .user_begin = "User: ",
        .user_end = "\n\n",
        .reply_begin = "Assistant: ",
        .reply_end = NULL,
        .prompt_end = "Assistant:",
    },
    {
        .name = "deepseek-v3.1-terminus",
        .has = {ASSISTANT "</think>", "or not ns.is_prefix", JOINS},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT "</think>",
        .reply_begin_when = BT_CHAT_AFTER_USER,
        .reply_end = EOS,
        .prompt_end = ASSISTANT "</think>",
        .cut = BT_CHAT_CUT_TO_FIRST,
    },
    {
        .name = "deepseek-v3.1",
        .has = {ASSISTANT "</think>", "and ns.is_last_user and not ns.is_tool", JOINS},
        .lacks = {"is_prefix"},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT "</think>",
        .reply_begin_when = BT_CHAT_AFTER_USER,
        .reply_end = EOS,
        .prompt_end = ASSISTANT "</think>",
        .prompt_end_when = BT_CHAT_AFTER_USER,
        .cut = BT_CHAT_CUT_TO_FIRST,
    },
    {
        .name = "deepseek-r1-0528",
        .has = {"'" USER "' + content + '" ASSISTANT "'", CUTS, JOINS},
        .lacks = {"enable_thinking"},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = ASSISTANT,
        .reply_begin = "",
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
        .prompt_end_when = BT_CHAT_UNLESS_AFTER_USER,
        .cut = BT_CHAT_CUT_TO_LAST,
    },
    {
        .name = "deepseek-v3-0324",
        .has = {"'" USER "' + message['content'] + '" ASSISTANT "'", "not ns.is_last_user", JOINS},
        .lacks = {"think"},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = ASSISTANT,
        .reply_begin = "",
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
        .prompt_end_when = BT_CHAT_UNLESS_AFTER_USER,
    },
    {
        .name = "deepseek-r1",
        .has = {"'" ASSISTANT "<think>\n'", CUTS, JOINS},
        .lacks = {"is_last_user", "enable_thinking"},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT "<think>\n",
        .cut = BT_CHAT_CUT_TO_LAST,
    },
    {
        .name = "deepseek-r1-distill",
        .has = {"'" ASSISTANT "<think>\n'", CUTS, "ns.system_prompt = message['content']"},
        .lacks = {"is_last_user", "enable_thinking"},
        .system = BT_CHAT_SYSTEM_LAST,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT "<think>\n",
        .cut = BT_CHAT_CUT_TO_LAST,
    },
    {
        .name = "deepseek-r1 without <think>",
        .has = {"'" ASSISTANT "' + content + '" EOS "'", CUTS, JOINS},
        .lacks = {"is_last_user", "<think>"},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
        .cut = BT_CHAT_CUT_TO_LAST,
    },
    {
        .name = "deepseek-r1-distill without <think>",
        .has = {"'" ASSISTANT "' + content + '" EOS "'", CUTS,
                "ns.system_prompt = message['content']"},
        .lacks = {"is_last_user", "<think>"},
        .system = BT_CHAT_SYSTEM_LAST,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
        .cut = BT_CHAT_CUT_TO_LAST,
    },
    {
        .name = "deepseek-v3",
        .has = {"'" USER "' + message['content']", "'" ASSISTANT "' + message['content'] + '" EOS,
                JOINS},
        .lacks = {"is_last_user", "think"},
        .system = BT_CHAT_SYSTEM_JOINED,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
    },
    {
        .name = "deepseek-v2.5",
        .has = {"'" USER "' + message['content']", "'" ASSISTANT "' + message['content'] + '" EOS,
                "ns.system_prompt = message['content']"},
        .lacks = {"is_last_user", "think"},
        .system = BT_CHAT_SYSTEM_LAST,
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
    },
    {
        .name = "plain",
        .has = {"'" USER "' + message['content']",
                "'" ASSISTANT "' + message['content'] + '" EOS "'",
                "== 'system' %}{{ message['content']"},
        .lacks = {"ns.", "think"},
        .system = BT_CHAT_SYSTEM_IN_PLACE,
        .system_end = "",
        .user_begin = USER,
        .user_end = "",
        .reply_begin = ASSISTANT,
        .reply_end = EOS,
        .prompt_end = ASSISTANT,
    },
};

static bool fits(const struct bt_chat_style *style, const char *text)
{
    for (size_t i = 0; i < sizeof style->has / sizeof *style->has; i++) {
        if (style->has[i] && !strstr(text, style->has[i]))
            return false;
    }
    for (size_t i = 0; i < sizeof style->lacks / sizeof *style->lacks; i++) {
        if (style->lacks[i] && strstr(text, style->lacks[i]))
            return false;
    }
    return true;
}

/* Turns the escape \n into the newline it stands for: published templates have either. */
static void unescape_newlines(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (from[0] == '\\' && from[1] == 'n') {
            *to++ = '\n';
            from++;
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
}

const struct bt_chat_style *bt_chat_style_recognise(char *template_text)
{
    unescape_newlines(template_text);
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++) {
        if (fits(&styles[i], template_text))
            return &styles[i];
    }
    return NULL;
}
