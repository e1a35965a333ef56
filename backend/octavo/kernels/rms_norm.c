/* RMSNorm with an optional residual addition: see rms_norm.py. */
#include "native.h"
#include "threads.h"

struct rms_norm {
    void *output;       /* [T, n] */
    void *residual;     /* [T, n], gets x added; or null */
    const void *x;      /* [T, n] */
    const void *weight; /* [n] */
    int64_t num_rows, width, is_bf16, num_threads;
    double eps;
};

/* Rounded to the type and back: what the addition and the norm would have left in memory. */
INLINE f32x16 rounded(int is_bf16, f32x16 x) {
    return is_bf16 ? (f32x16)(__builtin_convertvector(to_bf16(x), u32x16) << 16) : x;
}

INLINE f32x16 load_part(int is_bf16, const void *p, int64_t at, int64_t left) {
    return left >= LANES ? load(is_bf16, p, at) : load_some(is_bf16, p, at, (int)left);
}

INLINE void store_part(int is_bf16, void *p, int64_t at, f32x16 x, int64_t left) {
    if (left >= LANES) store(is_bf16, p, at, x);
    else store_some(is_bf16, p, at, x, (int)left);
}

INLINE void run_row(int is_bf16, const struct rms_norm *c, int64_t row) {
    int64_t begin = row * c->width;
    f32x16 squares = {};
    for (int64_t i = 0; i < c->width; i += LANES) {
        f32x16 x = load_part(is_bf16, c->x, begin + i, c->width - i);
        if (c->residual) {
            x = rounded(is_bf16, x + load_part(is_bf16, c->residual, begin + i, c->width - i));
            store_part(is_bf16, c->residual, begin + i, x, c->width - i);
        }
        squares = multiply_add(squares, x, x);
    }
    const void *from = c->residual ? c->residual : c->x;
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)c->width + (float)c->eps);
    for (int64_t i = 0; i < c->width; i += LANES) {
        f32x16 x = rounded(is_bf16, load_part(is_bf16, from, begin + i, c->width - i) * scale);
        f32x16 weight = load_part(is_bf16, c->weight, i, c->width - i);
        store_part(is_bf16, c->output, begin + i, x * weight, c->width - i);
    }
}

static void run_row_bf16(const struct rms_norm *c, int64_t row) { run_row(1, c, row); }
static void run_row_f32(const struct rms_norm *c, int64_t row) { run_row(0, c, row); }

static void run_task(const void *argument, int64_t task) {
    const struct rms_norm *c = argument;
    int64_t rows = task_rows(c->width), end = (task + 1) * rows;
    for (int64_t row = task * rows; row < end && row < c->num_rows; row++) {
        if (c->is_bf16) run_row_bf16(c, row);
        else run_row_f32(c, row);
    }
}

void octavo_rms_norm(const struct rms_norm *c) {
    octavo_parallel(c->num_threads, num_tasks(c->num_rows, c->width), run_task, c);
}
