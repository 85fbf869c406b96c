/*
 * The byte-level alphabet (introduced with GPT-2): every byte has a printable character, so that a
 * vocabulary of byte strings can be written as text. 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for
 * themselves; the other 68 bytes, in order, are U+0100 to U+0143. Pure functions.
 */
#ifndef BATON_COMMON_TEXT_BYTE_LEVEL_H
#define BATON_COMMON_TEXT_BYTE_LEVEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The code point that stands for `byte`. */
uint32_t bt_byte_level_code_point(unsigned char byte);

/* Writes `size` bytes as text; `ret_content` has room for 2 * size bytes. Returns the bytes used.
 */
size_t bt_byte_level_from_bytes(const char *bytes, size_t size, char *ret_content);

/*
 * The bytes that `content` (UTF-8) stands for; `ret_bytes` has room for `size`. False when a
 * character is not of the alphabet: then the content stands for itself.
 */
bool bt_byte_level_to_bytes(const char *content, size_t size, char *ret_bytes, size_t *ret_size);

#endif
