/*
 * The tile instructions of x86 in software, so that kernels written for them can be checked where
 * the CPU has none: a handler of SIGILL reads the instruction that was refused, does what it would
 * have done, and goes on behind it.
 *
 * AMX-TILE, AMX-BF16 and AMX-INT8 with palette 1, 64-bit mode, after the operation sections of the
 * Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (LDTILECFG, TILELOADD,
 * TDPBF16PS, TDPBSSD, ...) and the exception classes AMX-E1 … E6 there. TDPBF16PS: for each output
 * two chains of fused multiply-adds from 0, the even and the odd element of each pair, k ascending;
 * then their sum; then that is added to the destination. Every step rounds to nearest even,
 * takes denormals as zero and flushes denormal results; MXCSR plays no part. Of two NaNs the manual
 * does not say which is kept.
 *
 * Tiles belong to a thread, as the registers do.
 */
#ifndef BATON_TESTS_CHECKKERN_AMX_EMULATOR_H
#define BATON_TESTS_CHECKKERN_AMX_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AMX_TILES     8
#define AMX_ROWS      16
#define AMX_ROW_BYTES 64

struct amx_machine {
    bool configured;
    uint8_t start_row;
    uint16_t colsb[AMX_TILES]; /* bytes of a row */
    uint8_t rows[AMX_TILES];
    _Alignas(64) uint8_t tiles[AMX_TILES][AMX_ROWS][AMX_ROW_BYTES];
};

/* What an instruction is given: general registers by their number in the encoding. */
struct amx_context {
    const uint8_t *code; /* where the instruction begins, RIP */
    uint64_t registers[16];
};

/*
 * Executes one tile instruction. *ret_name: its name, NULL if the bytes are none. Returns NULL and
 * its length, or the reason for which it faults. Memory it names is read or written.
 */
const char *amx_execute(struct amx_machine *machine, const struct amx_context *context,
                        const char **ret_name, size_t *ret_length);

/*
 * Installs the handler for all threads of the process. An instruction that would fault ends the
 * process with its name and the reason; SIGILL of any other instruction acts as before. Where it is
 * installed already, nothing changes.
 * False: this CPU lacks what the emulator itself is built with (AVX2 and FMA).
 */
bool amx_emulator_install(void);

/* Instructions that the handler executed so far. */
uint64_t amx_emulator_count(void);

#endif
