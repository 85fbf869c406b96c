#include "tests/checkkern/amx_emulator.h"

#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

/* ---- decoding ---- */

enum prefix { NONE, P66, PF3, PF2 };

enum kind {
    LOAD_CONFIG,
    STORE_CONFIG,
    RELEASE,
    ZERO,
    LOAD,
    STORE,
    BF16,
    INT8, /* signs of the two sources follow */
};

struct instruction {
    const char *name;
    enum kind kind;
    bool signed1, signed2;
    size_t length;
    unsigned dest, source1, source2; /* tiles: ModRM.reg, ModRM.rm, VEX.vvvv */
    uint8_t *memory;
    uint64_t stride; /* bytes from row to row */
};

/* The 3-byte VEX prefix, opcode and ModRM, taken apart. Register bits are not inverted here. */
struct encoding {
    unsigned reg_high, index_high, base_high; /* 0 or 8 */
    unsigned map, wide, vvvv, length, prefix;
    unsigned opcode, mod, reg, rm;
};

static bool decode_vex(const uint8_t *code, struct encoding *e)
{
    if (code[0] != 0xc4)
        return false;
    e->reg_high = code[1] & 0x80 ? 0 : 8;
    e->index_high = code[1] & 0x40 ? 0 : 8;
    e->base_high = code[1] & 0x20 ? 0 : 8;
    e->map = code[1] & 31;
    e->wide = code[2] >> 7;
    e->vvvv = ~(unsigned)code[2] >> 3 & 15;
    e->length = code[2] >> 2 & 1;
    e->prefix = code[2] & 3;
    e->opcode = code[3];
    e->mod = code[4] >> 6;
    e->reg = code[4] >> 3 & 7;
    e->rm = code[4] & 7;
    return e->map == 2 && !e->wide && !e->length;
}

static bool identify(const struct encoding *e, struct instruction *i)
{
    static const struct {
        unsigned opcode, prefix;
        bool memory; /* ModRM.mod is not 3 */
        const char *name;
        enum kind kind;
        bool signed1, signed2;
    } table[] = {
        {0x49, NONE, true, "LDTILECFG", LOAD_CONFIG, false, false},
        {0x49, P66, true, "STTILECFG", STORE_CONFIG, false, false},
        {0x49, NONE, false, "TILERELEASE", RELEASE, false, false},
        {0x49, PF2, false, "TILEZERO", ZERO, false, false},
        {0x4b, PF2, true, "TILELOADD", LOAD, false, false},
        {0x4b, P66, true, "TILELOADDT1", LOAD, false, false},
        {0x4b, PF3, true, "TILESTORED", STORE, false, false},
        {0x5c, PF3, false, "TDPBF16PS", BF16, false, false},
        {0x5e, PF2, false, "TDPBSSD", INT8, true, true},
        {0x5e, PF3, false, "TDPBSUD", INT8, true, false},
        {0x5e, P66, false, "TDPBUSD", INT8, false, true},
        {0x5e, NONE, false, "TDPBUUD", INT8, false, false},
    };
    for (size_t n = 0; n < sizeof(table) / sizeof(table[0]); n++) {
        if (table[n].opcode != e->opcode || table[n].prefix != e->prefix ||
            table[n].memory != (e->mod != 3))
            continue;
        i->name = table[n].name;
        i->kind = table[n].kind;
        i->signed1 = table[n].signed1;
        i->signed2 = table[n].signed2;
        return true;
    }
    return false;
}

/* The memory operand behind ModRM. A tile's rows are its scaled index apart, from the address
 * without it; other operands are where it brings the address. */
static void decode_memory(const struct amx_context *context, const struct encoding *e,
                          struct instruction *i)
{
    const uint8_t *at = context->code + 5;
    uint64_t address = 0;
    bool has_sib = e->rm == 4, rip_relative = false;
    unsigned base = e->rm, displacement_bytes = e->mod == 1 ? 1 : e->mod == 2 ? 4 : 0;
    if (has_sib) {
        unsigned index = (*at >> 3 & 7) + e->index_high;
        if (index != 4)
            i->stride = context->registers[index] << (*at >> 6);
        base = *at++ & 7;
    }
    if (e->mod == 0 && base == 5) {
        displacement_bytes = 4;
        rip_relative = !has_sib;
    } else {
        address = context->registers[base + e->base_high];
    }
    int32_t displacement = 0;
    if (displacement_bytes == 1)
        displacement = (int8_t)*at;
    else if (displacement_bytes == 4)
        memcpy(&displacement, at, 4);
    i->length = (size_t)(at - context->code) + displacement_bytes;
    if (i->kind == LOAD_CONFIG || i->kind == STORE_CONFIG)
        address += i->stride;
    if (rip_relative)
        address = (uint64_t)(uintptr_t)context->code + i->length;
    i->memory = (uint8_t *)(uintptr_t)(address + (uint64_t)(int64_t)displacement);
}

/* NULL, or the reason for which the encoding is none; i->name is set as soon as it is known. */
static const char *decode(const struct amx_context *context, struct instruction *i)
{
    struct encoding e;
    *i = (struct instruction){.length = 5};
    if (!decode_vex(context->code, &e) || !identify(&e, i))
        return "not a tile instruction";
    i->dest = e.reg;
    i->source1 = e.rm;
    i->source2 = e.vvvv;
    if (e.mod != 3)
        decode_memory(context, &e, i);
    bool product = i->kind == BF16 || i->kind == INT8;
    bool config = i->kind == LOAD_CONFIG || i->kind == STORE_CONFIG || i->kind == RELEASE;
    if (!product && e.vvvv != 0)
        return "VEX.vvvv is not 1111";
    if (product && e.vvvv > 7)
        return "a tile above tmm7";
    if (e.reg_high || (e.mod == 3 && e.base_high))
        return "a register above the last";
    if (config && e.reg != 0)
        return "ModRM.reg is not 0";
    if ((i->kind == RELEASE || i->kind == ZERO) && e.rm != 0)
        return "ModRM.rm is not 0";
    if ((i->kind == LOAD || i->kind == STORE) && e.rm != 4)
        return "no SIB byte";
    return NULL;
}

/* ---- configuration ---- */

/* As LDTILECFG reads and STTILECFG writes it. */
struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct config) == 64, "the size of the memory operand");

static void release(struct amx_machine *machine)
{
    memset(machine, 0, sizeof(*machine));
}

static const char *load_config(struct amx_machine *machine, const uint8_t *memory)
{
    struct config config;
    memcpy(&config, memory, sizeof(config));
    if (config.palette > 1)
        return "the palette is not 0 or 1";
    if (config.palette == 0) {
        release(machine);
        return NULL;
    }
    for (unsigned n = 0; n < sizeof(config.reserved); n++)
        if (config.reserved[n])
            return "a reserved byte is not 0";
    for (unsigned n = 0; n < 16; n++) {
        if (n >= AMX_TILES && (config.colsb[n] || config.rows[n]))
            return "a tile that palette 1 has not is configured";
        if (config.colsb[n] > AMX_ROW_BYTES)
            return "more than 64 bytes a row";
        if (config.rows[n] > AMX_ROWS)
            return "more than 16 rows";
        if ((config.colsb[n] == 0) != (config.rows[n] == 0))
            return "a tile has rows or columns, but not both";
    }
    release(machine);
    machine->configured = true;
    machine->start_row = config.start_row;
    memcpy(machine->colsb, config.colsb, sizeof(machine->colsb));
    memcpy(machine->rows, config.rows, sizeof(machine->rows));
    return NULL;
}

static void store_config(const struct amx_machine *machine, uint8_t *memory)
{
    struct config config = {.palette = machine->configured, .start_row = machine->start_row};
    memcpy(config.colsb, machine->colsb, sizeof(machine->colsb));
    memcpy(config.rows, machine->rows, sizeof(machine->rows));
    memcpy(memory, &config, sizeof(config));
}

/* ---- memory ---- */

static const char *check_tile(const struct amx_machine *machine, unsigned tile)
{
    if (!machine->configured)
        return "tiles are not configured";
    if (machine->colsb[tile] == 0)
        return "this tile is not configured";
    return machine->colsb[tile] % 4 ? "a row is not a multiple of 4 bytes" : NULL;
}

static const char *load_tile(struct amx_machine *machine, const struct instruction *i)
{
    const char *reason = check_tile(machine, i->dest);
    if (reason)
        return reason;
    if (machine->start_row >= machine->rows[i->dest])
        return "start_row is behind the last row";
    unsigned first = machine->start_row;
    if (first == 0)
        memset(machine->tiles[i->dest], 0, sizeof(machine->tiles[i->dest]));
    for (unsigned row = first; row < machine->rows[i->dest]; row++) {
        uint8_t *to = machine->tiles[i->dest][row];
        memset(to, 0, AMX_ROW_BYTES);
        memcpy(to, i->memory + row * i->stride, machine->colsb[i->dest]);
    }
    machine->start_row = 0;
    return NULL;
}

static const char *store_tile(struct amx_machine *machine, const struct instruction *i)
{
    const char *reason = check_tile(machine, i->dest);
    if (reason)
        return reason;
    if (machine->start_row >= machine->rows[i->dest])
        return "start_row is behind the last row";
    for (unsigned row = machine->start_row; row < machine->rows[i->dest]; row++)
        memcpy(i->memory + row * i->stride, machine->tiles[i->dest][row], machine->colsb[i->dest]);
    machine->start_row = 0;
    return NULL;
}

static const char *zero_tile(struct amx_machine *machine, unsigned tile)
{
    if (!machine->configured)
        return "tiles are not configured";
    if (machine->colsb[tile] == 0)
        return "this tile is not configured";
    memset(machine->tiles[tile], 0, sizeof(machine->tiles[tile]));
    machine->start_row = 0;
    return NULL;
}

/* ---- products ---- */

static const char *check_product(const struct amx_machine *machine, const struct instruction *i)
{
    const unsigned tiles[] = {i->dest, i->source1, i->source2};
    if (i->dest == i->source1 || i->dest == i->source2 || i->source1 == i->source2)
        return "two operands are the same tile";
    for (unsigned n = 0; n < 3; n++) {
        const char *reason = check_tile(machine, tiles[n]);
        if (reason)
            return reason;
    }
    if (machine->rows[i->dest] != machine->rows[i->source1])
        return "destination and first source differ in rows";
    if (machine->colsb[i->dest] != machine->colsb[i->source2])
        return "destination and second source differ in columns";
    if (machine->colsb[i->source1] / 4 != machine->rows[i->source2])
        return "columns of the first source are not rows of the second";
    return NULL;
}

#define FLUSH_DENORMALS 0x8040u /* FTZ and DAZ */

/* One row of TDPBF16PS; all columns of a row, those that are not configured are zero. */
__attribute__((target("avx2,fma"))) static void bf16_row(const uint8_t *a, unsigned pairs,
                                                         uint8_t (*b)[AMX_ROW_BYTES], uint8_t *c)
{
    const __m256i odd_half = _mm256_set1_epi32((int)0xffff0000u);
    for (unsigned half = 0; half < AMX_ROW_BYTES; half += 32) {
        __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        for (unsigned k = 0; k < pairs; k++) {
            int pair;
            memcpy(&pair, a + 4 * k, sizeof(pair));
            __m256i x = _mm256_set1_epi32(pair);
            __m256i y = _mm256_load_si256((const __m256i *)(const void *)(b[k] + half));
            even = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
                                   _mm256_castsi256_ps(_mm256_slli_epi32(y, 16)), even);
            odd = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(x, odd_half)),
                                  _mm256_castsi256_ps(_mm256_and_si256(y, odd_half)), odd);
        }
        float *out = (float *)(void *)(c + half);
        _mm256_store_ps(out, _mm256_add_ps(_mm256_load_ps(out), _mm256_add_ps(even, odd)));
    }
}

static void product_bf16(struct amx_machine *machine, const struct instruction *i)
{
    unsigned control = _mm_getcsr();
    _mm_setcsr(0x1f80u | FLUSH_DENORMALS); /* nearest even, no traps */
    for (unsigned m = 0; m < machine->rows[i->dest]; m++)
        bf16_row(machine->tiles[i->source1][m], machine->colsb[i->source1] / 4,
                 machine->tiles[i->source2], machine->tiles[i->dest][m]);
    _mm_setcsr(control);
}

static int32_t byte_of(uint8_t byte, bool is_signed)
{
    return is_signed ? (int8_t)byte : byte;
}

/* Sums wrap around. */
static void product_int8(struct amx_machine *machine, const struct instruction *i)
{
    unsigned quads = machine->colsb[i->source1] / 4, columns = machine->colsb[i->dest] / 4;
    for (unsigned m = 0; m < machine->rows[i->dest]; m++) {
        const uint8_t *a = machine->tiles[i->source1][m];
        uint32_t *c = (uint32_t *)(void *)machine->tiles[i->dest][m];
        for (unsigned k = 0; k < quads; k++) {
            const uint8_t *b = machine->tiles[i->source2][k];
            for (unsigned n = 0; n < columns; n++) {
                for (unsigned j = 0; j < 4; j++)
                    c[n] += (uint32_t)(byte_of(a[4 * k + j], i->signed1) *
                                       byte_of(b[4 * n + j], i->signed2));
            }
        }
    }
}

static const char *product(struct amx_machine *machine, const struct instruction *i)
{
    const char *reason = check_product(machine, i);
    if (reason)
        return reason;
    if (i->kind == BF16)
        product_bf16(machine, i);
    else
        product_int8(machine, i);
    machine->start_row = 0;
    return NULL;
}

static const char *execute(struct amx_machine *machine, const struct instruction *i)
{
    switch (i->kind) {
    case LOAD_CONFIG:
        return load_config(machine, i->memory);
    case STORE_CONFIG:
        store_config(machine, i->memory);
        return NULL;
    case RELEASE:
        release(machine);
        return NULL;
    case ZERO:
        return zero_tile(machine, i->dest);
    case LOAD:
        return load_tile(machine, i);
    case STORE:
        return store_tile(machine, i);
    default:
        return product(machine, i);
    }
}

const char *amx_execute(struct amx_machine *machine, const struct amx_context *context,
                        const char **ret_name, size_t *ret_length)
{
    struct instruction i;
    const char *reason = decode(context, &i);
    *ret_name = i.name;
    if (!reason)
        reason = execute(machine, &i);
    if (!reason)
        *ret_length = i.length;
    return reason;
}

/* ---- the handler ---- */

static _Thread_local struct amx_machine this_thread __attribute__((tls_model("initial-exec")));
static _Atomic uint64_t executed;
static struct sigaction previous;

uint64_t amx_emulator_count(void)
{
    return atomic_load(&executed);
}

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        abort();
}

static void fault(const char *name, const char *reason)
{
    say("amx emulator: ");
    say(name);
    say(": ");
    say(reason);
    say("\n");
    abort();
}

/* Tile instructions that follow one another are executed in one go: most of the time of each goes
 * into bringing the signal here. They change no general register. */
static void on_illegal(int signal_number, siginfo_t *info, void *user)
{
    static const int numbers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                    REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                    REG_R12, REG_R13, REG_R14, REG_R15};
    greg_t *registers = ((ucontext_t *)user)->uc_mcontext.gregs;
    struct amx_context context = {.code = (const uint8_t *)(uintptr_t)registers[REG_RIP]};
    uint64_t count = 0;
    (void)signal_number;
    (void)info;
    for (unsigned n = 0; n < 16; n++)
        context.registers[n] = (uint64_t)registers[numbers[n]];
    for (;; count++) {
        const char *name = NULL;
        size_t length = 0;
        const char *reason = amx_execute(&this_thread, &context, &name, &length);
        if (reason && name)
            fault(name, reason);
        if (reason)
            break;
        context.code += length;
    }
    if (count == 0)
        sigaction(SIGILL, &previous, NULL); /* and again, as if nobody had looked */
    registers[REG_RIP] = (greg_t)(uintptr_t)context.code;
    atomic_fetch_add(&executed, count);
}

bool amx_emulator_install(void)
{
    struct sigaction present,
        action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return false;
    if (sigaction(SIGILL, NULL, &present) == 0 && (present.sa_flags & SA_SIGINFO) &&
        present.sa_sigaction == on_illegal)
        return true;
    return sigaction(SIGILL, &action, &previous) == 0;
}
