/*
 * A gate before the passes of the decode engines of a test's own process, and one before those of
 * its prefill engines: what must not be over when a test goes on can't be, however long any thread
 * sleeps. The program is linked with --wrap=dc_engine_run,--wrap=pf_engine_run.
 */
#ifndef BATON_TESTS_UNIT_DECODE_GATE_H
#define BATON_TESTS_UNIT_DECODE_GATE_H

#include <stdint.h>

#define GATE_OPEN UINT32_MAX

/* So many passes from now on, whatever was left; 0: none. One that has begun goes on. */
void decode_gate(uint32_t passes);
void prefill_gate(uint32_t passes);
/* Those that have not begun yet. */
uint32_t decode_gate_left(void);

#endif
