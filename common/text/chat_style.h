/* The chat forms DeepSeek has published, as one table. Static memory, pure functions. */
#ifndef BATON_COMMON_TEXT_CHAT_STYLE_H
#define BATON_COMMON_TEXT_CHAT_STYLE_H

enum bt_chat_system {
    BT_CHAT_SYSTEM_IN_PLACE, /* each system message where it stands */
    BT_CHAT_SYSTEM_JOINED,   /* all of them after BOS, joined by an empty line */
    BT_CHAT_SYSTEM_LAST,     /* the last of them after BOS */
};

/* When the mark of an assistant's turn is written. "After user": the last turn is a user's. */
enum bt_chat_when {
    BT_CHAT_ALWAYS,
    BT_CHAT_AFTER_USER,
    BT_CHAT_UNLESS_AFTER_USER,
};

/* What of a reply in the history is left out: the reasoning, up to and with a </think>. */
enum bt_chat_cut {
    BT_CHAT_CUT_NOTHING,
    BT_CHAT_CUT_TO_FIRST,
    BT_CHAT_CUT_TO_LAST,
};

struct bt_chat_style {
    const char *name;
    const char *has[3];   /* what the template contains */
    const char *lacks[2]; /* and what it doesn't */
    enum bt_chat_system system;
    const char *system_end; /* after a system message in place */
    const char *user_begin, *user_end;
    const char *reply_begin;
    enum bt_chat_when reply_begin_when;
    const char *reply_end;  /* NULL: the EOS token */
    const char *prompt_end; /* the generation prompt */
    enum bt_chat_when prompt_end_when;
    enum bt_chat_cut cut;
};

/* The style of a chat template, whose text is changed; NULL: none of the family. */
const struct bt_chat_style *bt_chat_style_recognise(char *template_text);

#endif
