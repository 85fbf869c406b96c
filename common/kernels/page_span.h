/* A piece of a KV pool that is hashed on a device: see bt_kernels.hash_pages. */
#ifndef BATON_COMMON_KERNELS_PAGE_SPAN_H
#define BATON_COMMON_KERNELS_PAGE_SPAN_H

#include <stdint.h>

struct bt_page_span {
    uint64_t offset; /* from the pool's base; a multiple of 16 */
    uint64_t seed;
    uint32_t bytes;
    uint32_t unused;
};

#endif
