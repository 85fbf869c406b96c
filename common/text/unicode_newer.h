/*
 * Characters that Unicode 15.0, 15.1 and 16.0 added, by general category. The tokenizers library
 * that checkpoints are made with knows Unicode 16; PCRE2 10.40 to 10.42 know Unicode 14. Naming the
 * difference in every \p{..} makes token ids independent of the PCRE2 release.
 */
#ifndef BATON_COMMON_TEXT_UNICODE_NEWER_H
#define BATON_COMMON_TEXT_UNICODE_NEWER_H

#include <stddef.h>
#include <stdint.h>

struct bt_unicode_range {
    uint32_t first, last;
};

/* `category`: 'L', 'M', 'N', 'P' or 'S'; NULL for any other. Static memory. */
const struct bt_unicode_range *bt_unicode_newer(char category, size_t *ret_count);

#endif
