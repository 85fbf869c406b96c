/* The tables that rows_loops.c is compiled to. Internal to this folder. */
#ifndef BATON_COMMON_PARALLEL_ROWS_TABLES_H
#define BATON_COMMON_PARALLEL_ROWS_TABLES_H

#include "common/parallel/rows.h"

extern const struct bt_row_ops bt_rows_plain, bt_rows_avx2, bt_rows_avx512;

#endif
