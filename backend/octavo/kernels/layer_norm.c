/* LayerNorm of a sum: see layer_norm.py. */
#include "native.h"
#include "threads.h"

struct layer_norm {
    void *output;               /* [T, n] */
    const void *x, *residual;   /* [T, n]; residual may be null */
    const void *weight, *bias;  /* [n] */
    int64_t num_rows, width, is_bf16, num_threads;
    double eps;
};

/* Numbers [i, i + 16) of a row of x + residual; zeros behind its end. */
INLINE f32x16 sum_at(int is_bf16, const struct layer_norm *c, int64_t row, int64_t i) {
    int64_t at = row * c->width + i;
    int left = (int)(c->width - i);
    f32x16 x = left < LANES ? load_some(is_bf16, c->x, at, left) : load(is_bf16, c->x, at);
    if (!c->residual) return x;
    return x + (left < LANES ? load_some(is_bf16, c->residual, at, left) : load(is_bf16, c->residual, at));
}

INLINE void run_row(int is_bf16, const struct layer_norm *c, int64_t row) {
    static const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32x16 sum = {}, squares = {};
    for (int64_t i = 0; i < c->width; i += LANES) sum += sum_at(is_bf16, c, row, i);
    float mean = sum_lanes(sum) / (float)c->width;
    for (int64_t i = 0; i < c->width; i += LANES) {
        f32x16 x = sum_at(is_bf16, c, row, i) - mean;
        x = choose(lane < (int32_t)(c->width - i), x, splat(0));
        squares = multiply_add(squares, x, x);
    }
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)c->width + (float)c->eps);
    for (int64_t i = 0; i < c->width; i += LANES) {
        int left = (int)(c->width - i);
        f32x16 x = (sum_at(is_bf16, c, row, i) - mean) * scale;
        if (left >= LANES) {
            x = multiply_add(load(is_bf16, c->bias, i), x, load(is_bf16, c->weight, i));
            store(is_bf16, c->output, row * c->width + i, x);
        } else {
            x = multiply_add(load_some(is_bf16, c->bias, i, left), x, load_some(is_bf16, c->weight, i, left));
            store_some(is_bf16, c->output, row * c->width + i, x, left);
        }
    }
}

static void run_row_bf16(const struct layer_norm *c, int64_t row) { run_row(1, c, row); }
static void run_row_f32(const struct layer_norm *c, int64_t row) { run_row(0, c, row); }

static void run_task(const void *argument, int64_t task) {
    const struct layer_norm *c = argument;
    int64_t rows = task_rows(c->width), end = (task + 1) * rows;
    for (int64_t row = task * rows; row < end && row < c->num_rows; row++) {
        if (c->is_bf16) run_row_bf16(c, row);
        else run_row_f32(c, row);
    }
}

void octavo_layer_norm(const struct layer_norm *c) {
    octavo_parallel(c->num_threads, num_tasks(c->num_rows, c->width), run_task, c);
}
