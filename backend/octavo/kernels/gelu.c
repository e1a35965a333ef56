/* GELU: see gelu.py. */
#include "native.h"
#include "threads.h"

struct gelu {
    void *output;  /* [T, n] */
    const void *x; /* [T, n] */
    int64_t num_rows, width, is_bf16, num_threads;
};

/* x * Phi(x) = max(x, 0) - |x| / 2 * erfc(|x| / sqrt(2)). erfc to 1.5e-7: Abramowitz and Stegun, 7.1.26. */
INLINE f32x16 gelu(f32x16 x) {
    f32x16 size = max_each(x, -x);
    f32x16 t = 1.0f / (1.0f + 0.23164190f * size);
    f32x16 y = splat(1.061405429f);
    y = multiply_add(splat(-1.453152027f), y, t);
    y = multiply_add(splat(1.421413741f), y, t);
    y = multiply_add(splat(-0.284496736f), y, t);
    y = multiply_add(splat(0.254829592f), y, t);
    f32x16 tail = y * t * exp2_lanes(x * x * -0.72134752f);
    return max_each(x, splat(0)) - 0.5f * size * tail;
}

INLINE void run_row(int is_bf16, const struct gelu *c, int64_t row) {
    int64_t at = row * c->width, i = 0;
    for (; i + LANES <= c->width; i += LANES) store(is_bf16, c->output, at + i, gelu(load(is_bf16, c->x, at + i)));
    int left = (int)(c->width - i);
    if (left > 0) store_some(is_bf16, c->output, at + i, gelu(load_some(is_bf16, c->x, at + i, left)), left);
}

static void run_row_bf16(const struct gelu *c, int64_t row) { run_row(1, c, row); }
static void run_row_f32(const struct gelu *c, int64_t row) { run_row(0, c, row); }

static void run_task(const void *argument, int64_t task) {
    const struct gelu *c = argument;
    int64_t rows = task_rows(c->width), end = (task + 1) * rows;
    for (int64_t row = task * rows; row < end && row < c->num_rows; row++) {
        if (c->is_bf16) run_row_bf16(c, row);
        else run_row_f32(c, row);
    }
}

void octavo_gelu(const struct gelu *c) {
    octavo_parallel(c->num_threads, num_tasks(c->num_rows, c->width), run_task, c);
}
