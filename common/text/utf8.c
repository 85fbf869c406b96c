#include "common/text/utf8.h"

#include <string.h>

/*
 * Table 3-7 of the Unicode standard: how long the sequence of a lead byte is and in which range its
 * second byte must lie; later bytes lie in 80..BF. 0: not a lead byte.
 */
static size_t lead(unsigned char byte, unsigned char *ret_low, unsigned char *ret_high)
{
    *ret_low = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    *ret_high = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    if (byte < 0x80)
        return 1;
    if (byte >= 0xC2 && byte <= 0xDF)
        return 2;
    if (byte >= 0xE0 && byte <= 0xEF)
        return 3;
    if (byte >= 0xF0 && byte <= 0xF4)
        return 4;
    return 0;
}

enum bt_utf8_kind bt_utf8_next(const char *bytes, size_t size, size_t *ret_size)
{
    const unsigned char *b = (const unsigned char *)bytes;
    unsigned char low, high;
    size_t length = lead(b[0], &low, &high);
    if (length == 0) {
        *ret_size = 1;
        return BT_UTF8_BROKEN;
    }
    for (size_t i = 1; i < length; i++) {
        if (i == size) {
            *ret_size = size;
            return BT_UTF8_UNFINISHED;
        }
        if (b[i] < low || b[i] > high) {
            *ret_size = i;
            return BT_UTF8_BROKEN;
        }
        low = 0x80;
        high = 0xBF;
    }
    *ret_size = length;
    return BT_UTF8_CHARACTER;
}

size_t bt_utf8_valid_size(const char *bytes, size_t size)
{
    size_t at = 0;
    while (at < size) {
        uint64_t word;
        if (size - at >= sizeof word) {
            memcpy(&word, bytes + at, sizeof word);
            if ((word & UINT64_C(0x8080808080808080)) == 0) {
                at += sizeof word;
                continue;
            }
        }
        size_t length;
        if (bt_utf8_next(bytes + at, size - at, &length) != BT_UTF8_CHARACTER)
            return at;
        at += length;
    }
    return size;
}

uint32_t bt_utf8_code_point(const char *character, size_t size)
{
    static const unsigned char mask[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t code = (unsigned char)character[0] & mask[size];
    for (size_t i = 1; i < size; i++)
        code = code << 6 | ((unsigned char)character[i] & 0x3F);
    return code;
}
