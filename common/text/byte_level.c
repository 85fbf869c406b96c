#include "common/text/byte_level.h"

#include "common/text/utf8.h"

#define FIRST_MOVED 0x100u /* the character of byte 0 */

/* Bytes that don't stand for themselves: 0x00-0x20, 0x7F-0xA0, 0xAD. */
static bool is_moved(unsigned char byte)
{
    return byte <= 0x20 || (byte >= 0x7F && byte <= 0xA0) || byte == 0xAD;
}

uint32_t bt_byte_level_code_point(unsigned char byte)
{
    if (!is_moved(byte))
        return byte;
    if (byte <= 0x20)
        return FIRST_MOVED + byte;
    if (byte <= 0xA0)
        return FIRST_MOVED + 0x21 + (byte - 0x7Fu);
    return FIRST_MOVED + 0x21 + 0x22;
}

/* -1: the character is not of the alphabet. */
static int byte_of(uint32_t code)
{
    if (code < FIRST_MOVED)
        return is_moved((unsigned char)code) ? -1 : (int)code;
    uint32_t moved = code - FIRST_MOVED;
    if (moved <= 0x20)
        return (int)moved;
    if (moved < 0x21 + 0x22)
        return (int)(moved - 0x21 + 0x7F);
    return moved == 0x21 + 0x22 ? 0xAD : -1;
}

size_t bt_byte_level_from_bytes(const char *bytes, size_t size, char *ret_content)
{
    size_t used = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t code = bt_byte_level_code_point((unsigned char)bytes[i]);
        if (code < 0x80) {
            ret_content[used++] = (char)code;
        } else {
            ret_content[used++] = (char)(0xC0 | code >> 6);
            ret_content[used++] = (char)(0x80 | (code & 0x3F));
        }
    }
    return used;
}

bool bt_byte_level_to_bytes(const char *content, size_t size, char *ret_bytes, size_t *ret_size)
{
    size_t used = 0;
    for (size_t at = 0; at < size;) {
        size_t length;
        if (bt_utf8_next(content + at, size - at, &length) != BT_UTF8_CHARACTER)
            return false;
        int byte = byte_of(bt_utf8_code_point(content + at, length));
        if (byte < 0)
            return false;
        ret_bytes[used++] = (char)byte;
        at += length;
    }
    *ret_size = used;
    return true;
}
