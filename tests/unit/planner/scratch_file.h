/* A temporary folder with files of given texts; removed with them. */
#ifndef BATON_TESTS_UNIT_PLANNER_SCRATCH_FILE_H
#define BATON_TESTS_UNIT_PLANNER_SCRATCH_FILE_H

struct scratch_file {
    char dir[64], path[128];
};

void scratch_file_open(const char *name, const char *text, struct scratch_file *ret_file);
void scratch_file_close(struct scratch_file *file);

#endif
