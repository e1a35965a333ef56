/* y = x W^T + b with a weight of 8 or 4 bits a number: see quantised_linear.py. A number of y is one sum over the
 * inputs in their order; one over groups adds up every group by itself first. That order knows no number of rows. */
#include "linear.h"
#include "threads.h"

#define GROUP 32            /* inputs that share a scale */
#define VECTOR 64           /* bytes of a vector of codes: 16 outputs by 4 or 8 inputs */
#define SCALES_BYTES 64     /* one fp16 number for each output of a panel */
#define PREFETCH_BYTES 4096

/* How a weight is stored. In groups: each begins with its scales, then its minima where it has them. */
enum kind { INT8_ROWS, INT8_GROUPS, INT4_GROUPS, INT4_MIN_GROUPS, NUM_KINDS };

struct quantised_linear {
    struct target target;
    const void *x;               /* [num_rows, num_inputs] */
    const unsigned char *weight; /* [ceil(num_outputs / PANEL)] panels, 64-byte aligned */
    const float *row_scales;     /* [ceil(num_outputs / PANEL), PANEL]; of INT8_ROWS only */
    float *group_sums;           /* [num_rows, num_inputs / GROUP], scratch; of INT4_MIN_GROUPS only */
    int64_t num_rows, num_inputs, kind, num_threads;
};

INLINE int in_groups(int kind) { return kind != INT8_ROWS; }
INLINE int has_minima(int kind) { return kind == INT4_MIN_GROUPS; }
INLINE int has_4_bits(int kind) { return kind == INT4_GROUPS || kind == INT4_MIN_GROUPS; }
/* Inputs of one vector of codes. */
INLINE int vector_inputs(int kind) { return has_4_bits(kind) ? 8 : 4; }
INLINE int words_of(int is_bf16, int num_inputs) { return is_bf16 ? num_inputs / 2 : num_inputs; }
INLINE int64_t header_bytes(int kind) { return in_groups(kind) ? (has_minima(kind) ? 2 : 1) * SCALES_BYTES : 0; }
INLINE int64_t codes_bytes(int kind, int64_t num_inputs) { return num_inputs / vector_inputs(kind) * 2 * VECTOR; }

INLINE int64_t panel_bytes(int kind, int64_t num_inputs) {
    return codes_bytes(kind, num_inputs) + (in_groups(kind) ? num_inputs / GROUP * header_bytes(kind) : 0);
}

/* Tables of bf16 numbers: the two bytes of 0 to 127, and what the 16 codes mean, twice because five bits choose. */
static uint8_t low_bytes[128] __attribute__((aligned(64))), high_bytes[128] __attribute__((aligned(64)));
static uint16_t meanings[2][32] __attribute__((aligned(64)));

static uint32_t bits_of(int number) {
    float x = (float)number;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

__attribute__((constructor)) static void fill_tables(void) {
    for (int i = 0; i < 128; i++) {
        low_bytes[i] = (uint8_t)(bits_of(i) >> 16);
        high_bytes[i] = (uint8_t)(bits_of(i) >> 24);
    }
    for (int i = 0; i < 32; i++) {
        meanings[0][i] = (uint16_t)(bits_of(i % 16 - 8) >> 16);
        meanings[1][i] = (uint16_t)(bits_of(i % 16) >> 16);
    }
}

/* Two vectors of whole numbers that bf16 holds exactly, as words. */
INLINE u32x16 pair_bf16(f32x16 first, f32x16 second) {
    return (u32x16)first >> 16 | ((u32x16)second & 0xffff0000u);
}

/* Lane j: output j. Bits 4 s and 16 + 4 s on: the codes of its inputs 2 s and 2 s + 1. */
INLINE void unpack_4_bits(int is_bf16, int kind, const unsigned char *from, u32x16 *words) {
    u32x16 codes = load_words((const uint32_t *)from);
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
#ifdef __AVX512BW__
        if (is_bf16) {
            __m512i meaning = _mm512_load_si512(meanings[has_minima(kind)]);
            words[s] = (u32x16)_mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)codes, 4 * s), meaning);
            continue;
        }
#endif
        i32x16 zero = has_minima(kind) ? (i32x16){} : (i32x16){} + 8;
        f32x16 first = __builtin_convertvector((i32x16)(codes >> (4 * s) & 15) - zero, f32x16);
        f32x16 second = __builtin_convertvector((i32x16)(codes >> (16 + 4 * s) & 15) - zero, f32x16);
        if (is_bf16) words[s] = pair_bf16(first, second);
        else words[2 * s] = (u32x16)first, words[2 * s + 1] = (u32x16)second;
    }
}

typedef uint16_t u16x32 __attribute__((vector_size(64)));

#ifdef __AVX512VBMI__
INLINE __m512i look_up(const uint8_t *table, __m512i codes) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
}
#endif

/* A code is a sign and seven bits. In a quarter of the vector: inputs 0 and 1 of four outputs, then 2 and 3. */
INLINE void unpack_8_bits(int is_bf16, const unsigned char *from, u32x16 *words) {
#ifdef __AVX512VBMI__
    if (is_bf16) {
        __m512i codes = _mm512_load_si512(from);
        __m512i low = look_up(low_bytes, codes), high = look_up(high_bytes, codes);
        high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | codes & sign */
        words[0] = (u32x16)_mm512_unpacklo_epi8(low, high);
        words[1] = (u32x16)_mm512_unpackhi_epi8(low, high);
        return;
    }
#endif
    u16x32 pairs;
    memcpy(&pairs, from, sizeof pairs);
    u32x16 codes = (u32x16)__builtin_shufflevector(pairs, pairs, 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15,
                                                   16, 20, 17, 21, 18, 22, 19, 23, 24, 28, 25, 29, 26, 30, 27, 31);
    f32x16 inputs[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        u32x16 code = codes >> (8 * i);
        inputs[i] = __builtin_convertvector((i32x16)(code & 0x7f), f32x16);
        inputs[i] = (f32x16)((u32x16)inputs[i] | (code & 0x80) << 24);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        if (!is_bf16) words[i] = (u32x16)inputs[i];
        else if (i < 2) words[i] = pair_bf16(inputs[2 * i], inputs[2 * i + 1]);
    }
}

INLINE void unpack(int is_bf16, int kind, const unsigned char *from, u32x16 *words) {
    if (has_4_bits(kind)) unpack_4_bits(is_bf16, kind, from, words);
    else unpack_8_bits(is_bf16, from, words);
}

/* fp16 numbers, finite ones, as fp32. */
INLINE f32x16 load_scales(const unsigned char *from) {
    u16x16 half;
    memcpy(&half, from, sizeof half);
    u32x16 bits = __builtin_convertvector(half, u32x16);
    /* The exponent's bias is 112 less. A product, because that is right for numbers below the smallest normal one. */
    f32x16 magnitude = (f32x16)((bits & 0x7fff) << 13) * 0x1p112f;
    return (f32x16)((u32x16)magnitude | (bits & 0x8000) << 16);
}

/* sum + the sum of one group, scaled; minimum: what codes of 0 mean, times the sum of x. */
INLINE f32x16 add_group(int kind, f32x16 sum, f32x16 group, f32x16 scale, f32x16 minimum, float sum_of_x) {
    sum = multiply_add(sum, scale, group);
    return has_minima(kind) ? multiply_add(sum, minimum, splat(sum_of_x)) : sum;
}

static void store_panel(const struct quantised_linear *c, int64_t row, int64_t panel, const f32x16 *sums) {
    for (int half = 0; half < 2; half++) {
        int64_t column = panel * PANEL + half * LANES;
        f32x16 y = c->row_scales ? sums[half] * load_f32(c->row_scales + column) : sums[half];
        store_outputs(&c->target, row, column, y);
    }
}

INLINE const uint32_t *row_of_x(int is_bf16, const struct quantised_linear *c, int64_t row) {
    return (const uint32_t *)c->x + row * (is_bf16 ? c->num_inputs / 2 : c->num_inputs);
}

/* sums += x times the codes of `num_inputs` inputs, from `word` on in each row. */
INLINE void add_codes(int is_bf16, int kind, int rows, const uint32_t *const *x, int64_t word,
                      const unsigned char *codes, int64_t num_inputs, f32x16 (*sums)[2]) {
    int inputs = vector_inputs(kind), num_words = words_of(is_bf16, inputs);
    for (int64_t i = 0; i < num_inputs; i += inputs, word += num_words, codes += 2 * VECTOR) {
        u32x16 low[8], high[8];
        __builtin_prefetch(codes + PREFETCH_BYTES);
        __builtin_prefetch(codes + PREFETCH_BYTES + VECTOR);
        unpack(is_bf16, kind, codes, low);
        unpack(is_bf16, kind, codes + VECTOR, high);
#pragma GCC unroll 8
        for (int w = 0; w < num_words; w++) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                u32x16 from = splat_word(x[r][word + w]);
                sums[r][0] = multiply_add_words(is_bf16, sums[r][0], from, low[w]);
                sums[r][1] = multiply_add_words(is_bf16, sums[r][1], from, high[w]);
            }
        }
    }
}

/* Up to `rows` rows, known when compiled: the codes become words in registers. */
INLINE void multiply_tile(int is_bf16, int kind, int rows, const struct quantised_linear *c, int64_t row, int64_t end,
                         int64_t panel) {
    const unsigned char *weight = c->weight + panel * panel_bytes(kind, c->num_inputs);
    int64_t num_groups = c->num_inputs / GROUP;
    const uint32_t *x[MAX_ROWS];
    const float *of_x[MAX_ROWS];
    f32x16 totals[MAX_ROWS][2] = {};
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        int64_t from = row + r < end ? row + r : row; /* what is left of a tile computes a row once more */
        x[r] = row_of_x(is_bf16, c, from);
        of_x[r] = has_minima(kind) ? c->group_sums + from * num_groups : NULL;
    }
    if (!in_groups(kind)) {
        add_codes(is_bf16, kind, rows, x, 0, weight, c->num_inputs, totals);
    } else {
        for (int64_t group = 0; group < num_groups; group++) {
            const unsigned char *codes = weight + header_bytes(kind);
            f32x16 sums[MAX_ROWS][2] = {};
            add_codes(is_bf16, kind, rows, x, group * words_of(is_bf16, GROUP), codes, GROUP, sums);
            for (int half = 0; half < 2; half++) {
                f32x16 scale = load_scales(weight + 32 * half), minimum = {};
                if (has_minima(kind)) minimum = load_scales(weight + SCALES_BYTES + 32 * half);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    totals[r][half] = add_group(kind, totals[r][half], sums[r][half], scale, minimum,
                                                has_minima(kind) ? of_x[r][group] : 0);
            }
            weight = codes + codes_bytes(kind, GROUP);
        }
    }
    for (int r = 0; r < rows && row + r < end; r++) store_panel(c, row + r, panel, totals[r]);
}

typedef void (*multiply_rows)(const struct quantised_linear *c, int64_t row, int64_t end, int64_t panel);

/* A function for one kind and type of x: all rows of a block times one panel, in tiles. */
#define TILE(name, is_bf16, kind, rows)                                                                             \
    static void name##_##rows(const struct quantised_linear *c, int64_t row, int64_t end, int64_t panel) {          \
        multiply_tile(is_bf16, kind, rows, c, row, end, panel);                                                     \
    }
#define MULTIPLY(name, is_bf16, kind)                                                                               \
    TILE(name, is_bf16, kind, 1)                                                                                    \
    TILE(name, is_bf16, kind, 2)                                                                                    \
    TILE(name, is_bf16, kind, 4)                                                                                    \
    TILE(name, is_bf16, kind, 8)                                                                                    \
    static void name(const struct quantised_linear *c, int64_t row, int64_t end, int64_t panel) {                   \
        for (; row < end; row += MAX_ROWS) {                                                                        \
            if (row + 4 < end) name##_8(c, row, end, panel);                                                        \
            else if (row + 2 < end) name##_4(c, row, end, panel);                                                   \
            else if (row + 1 < end) name##_2(c, row, end, panel);                                                   \
            else name##_1(c, row, end, panel);                                                                      \
        }                                                                                                           \
    }
MULTIPLY(int8_rows_f32, 0, INT8_ROWS)
MULTIPLY(int8_rows_bf16, 1, INT8_ROWS)
MULTIPLY(int8_groups_f32, 0, INT8_GROUPS)
MULTIPLY(int8_groups_bf16, 1, INT8_GROUPS)
MULTIPLY(int4_groups_f32, 0, INT4_GROUPS)
MULTIPLY(int4_groups_bf16, 1, INT4_GROUPS)
MULTIPLY(int4_min_groups_f32, 0, INT4_MIN_GROUPS)
MULTIPLY(int4_min_groups_bf16, 1, INT4_MIN_GROUPS)

static const multiply_rows multiply[NUM_KINDS][2] = {
    {int8_rows_f32, int8_rows_bf16},
    {int8_groups_f32, int8_groups_bf16},
    {int4_groups_f32, int4_groups_bf16},
    {int4_min_groups_f32, int4_min_groups_bf16},
};

/* A call and how it is cut: a task is some panels for one block of rows. */
struct plan {
    const struct quantised_linear *call;
    int64_t block_rows, task_panels, num_panels, row_tasks;
};

static void run_task(const void *argument, int64_t task) {
    const struct plan *plan = argument;
    const struct quantised_linear *c = plan->call;
    int64_t row = task / plan->row_tasks * plan->block_rows, panel = task % plan->row_tasks * plan->task_panels;
    int64_t end = row + plan->block_rows, end_panel = panel + plan->task_panels;
    if (end > c->num_rows) end = c->num_rows;
    for (; panel < end_panel && panel < plan->num_panels; panel++)
        multiply[c->kind][c->target.is_bf16](c, row, end, panel);
}

/* Sums of x over the groups of some rows: a minimum counts so often. */
static void sum_groups(const void *argument, int64_t task) {
    const struct quantised_linear *c = argument;
    int64_t row = task * task_rows(c->num_inputs), end = row + task_rows(c->num_inputs);
    if (end > c->num_rows) end = c->num_rows;
    int is_bf16 = (int)c->target.is_bf16;
    for (int64_t at = row * c->num_inputs; at < end * c->num_inputs; at += GROUP)
        c->group_sums[at / GROUP] = sum_lanes(load(is_bf16, c->x, at) + load(is_bf16, c->x, at + LANES));
}

void octavo_quantised_linear(const struct quantised_linear *c) {
    int64_t row_bytes = c->num_inputs * (c->target.is_bf16 ? 2 : 4);
    int64_t num_panels = (c->target.num_outputs + PANEL - 1) / PANEL;
    struct plan plan = {c, ROWS_BYTES / row_bytes / MAX_ROWS * MAX_ROWS, 1, num_panels, 0};
    if (plan.block_rows < 4 * MAX_ROWS) plan.block_rows = 4 * MAX_ROWS;
    plan.task_panels += plan.num_panels / (c->num_threads * TASKS_PER_THREAD);
    plan.row_tasks = (plan.num_panels + plan.task_panels - 1) / plan.task_panels;
    int64_t num_blocks = (c->num_rows + plan.block_rows - 1) / plan.block_rows;
    if (has_minima((int)c->kind)) octavo_parallel(c->num_threads, num_tasks(c->num_rows, c->num_inputs), sum_groups, c);
    octavo_parallel(c->num_threads, num_blocks * plan.row_tasks, run_task, &plan);
}
