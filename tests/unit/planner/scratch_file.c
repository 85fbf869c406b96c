#include "tests/unit/planner/scratch_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

void scratch_file_open(const char *name, const char *text, struct scratch_file *ret_file)
{
    snprintf(ret_file->dir, sizeof(ret_file->dir), "/tmp/baton-planner-XXXXXX");
    assert_non_null(mkdtemp(ret_file->dir));
    snprintf(ret_file->path, sizeof(ret_file->path), "%s/%s", ret_file->dir, name);
    FILE *file = fopen(ret_file->path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

void scratch_file_close(struct scratch_file *file)
{
    unlink(file->path);
    rmdir(file->dir);
}
