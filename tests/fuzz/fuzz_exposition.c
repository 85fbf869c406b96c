/*
 * A worker's page of metrics, joined with that of another: whatever it says, each line that comes
 * out has the form of one, is text, and names its worker, and the other's lines are all there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"
#include "common/text/utf8.h"
#include "router/exposition.h"
#include "tests/fuzz/driver.h"

static const char honest[] = "# HELP up One.\n# TYPE up gauge\nup{a=\"b\"} 1\n"
                             "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\n"
                             "h_sum 1\nh_count 1\n";

static void check_line(const char *line, size_t size)
{
    BT_ASSERT(size > 0 && bt_utf8_valid_size(line, size) == size);
    for (size_t i = 0; i < size; i++)
        BT_ASSERT((unsigned char)line[i] >= 0x20 && line[i] != 0x7f);
    if (size > 7 && (memcmp(line, "# HELP ", 7) == 0 || memcmp(line, "# TYPE ", 7) == 0))
        return;
    const char *of = memmem(line, size, "{worker=\"", 9);
    BT_ASSERT(of && line[0] != '#');
    of += 9;
    size_t left = size - (size_t)(of - line);
    BT_ASSERT((left > 4 && memcmp(of, "bad\"", 4) == 0) ||
              (left > 5 && memcmp(of, "fine\"", 5) == 0));
    BT_ASSERT(memmem(of, left, "} ", 2));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rt_exposition_page pages[2] = {
        {.worker = "bad", .text = (const char *)data, .size = size},
        {.worker = "fine", .text = honest, .size = sizeof honest - 1},
    };
    char *text = NULL;
    size_t text_size = 0;
    FILE *out = open_memstream(&text, &text_size);
    BT_ASSERT(out && rt_exposition_merge(pages, 2, out) && fclose(out) == 0);
    BT_ASSERT(pages[1].rejected == 0 && strlen(text) == text_size);
    BT_ASSERT(strstr(text, "up{worker=\"fine\",a=\"b\"} 1\n"));
    size_t lines = 0;
    for (char *line = text; *line;) {
        size_t length = strcspn(line, "\n");
        BT_ASSERT(line[length] == '\n');
        check_line(line, length);
        lines += memmem(line, length, "{worker=\"fine\"", 14) != NULL;
        line += length + 1;
    }
    BT_ASSERT(lines >= 1 && lines <= 5);
    free(text);
    return 0;
}

static const char *const seeds[] = {
    honest,
    "# HELP n_total \\\\ and \\n\n# TYPE n_total counter\nn_total{l=\"q\\\"\\\\\\n\"} 7 123\n",
    "# TYPE up histogram\nup_bucket{le=\"0.5\"} 5\nup_sum 1e9\nup_count 5\nup{worker=\"liar\"} "
    "NaN\n",
    "x{worker=\"a\",exported_worker=\"b\"} 1\ny -Inf\nz{a=\"\xE6\x97\xA5\"} +Inf\n# more\n\nx 1\n",
};

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    return fuzz_seed_text(seeds, sizeof seeds / sizeof *seeds, index, ret_data, capacity);
}
