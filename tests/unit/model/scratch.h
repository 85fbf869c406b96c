/* A checkpoint directory under the temporary directory, to be spoiled. Removed with its files. */
#ifndef BATON_TESTS_UNIT_MODEL_SCRATCH_H
#define BATON_TESTS_UNIT_MODEL_SCRATCH_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct scratch {
    char dir[256];
};

/* Copies every file of tests/models/`variant` but its goldens; no folders. */
void scratch_open(const char *variant, struct scratch *ret_scratch);
void scratch_close(struct scratch *scratch);

void scratch_write(const struct scratch *scratch, const char *name, const void *data, size_t bytes);
void scratch_remove(const struct scratch *scratch, const char *name);
/* The caller frees it. */
uint8_t *scratch_read(const struct scratch *scratch, const char *name, size_t *ret_bytes);

json_t *scratch_read_json(const struct scratch *scratch, const char *name);
void scratch_write_json(const struct scratch *scratch, const char *name, const json_t *root);

/* The header of a safetensors file, and back, with the data that was there. */
json_t *scratch_read_header(const struct scratch *scratch, const char *name);
void scratch_write_header(const struct scratch *scratch, const char *name, const json_t *header);
void scratch_write_header_text(const struct scratch *scratch, const char *name, const char *text);

#endif
