/* silu(gate) * up: see silu_and_mul.py. */
#include "native.h"
#include "threads.h"

struct silu_and_mul {
    void *output;        /* [T, n] */
    const void *gate_up; /* [T, 2 * n] */
    int64_t num_rows, width, is_bf16, num_threads;
};

INLINE f32x16 silu_times(f32x16 gate, f32x16 up) {
    return gate / (1.0f + exp2_lanes(gate * -1.4426950408889634f)) * up;
}

INLINE void run_row(int is_bf16, const struct silu_and_mul *c, int64_t row) {
    int64_t gate = row * 2 * c->width, up = gate + c->width, to = row * c->width, i = 0;
    for (; i + LANES <= c->width; i += LANES)
        store(is_bf16, c->output, to + i,
              silu_times(load(is_bf16, c->gate_up, gate + i), load(is_bf16, c->gate_up, up + i)));
    int left = (int)(c->width - i);
    if (left > 0) {
        f32x16 last_gate = load_some(is_bf16, c->gate_up, gate + i, left);
        f32x16 last_up = load_some(is_bf16, c->gate_up, up + i, left);
        store_some(is_bf16, c->output, to + i, silu_times(last_gate, last_up), left);
    }
}

static void run_row_bf16(const struct silu_and_mul *c, int64_t row) { run_row(1, c, row); }
static void run_row_f32(const struct silu_and_mul *c, int64_t row) { run_row(0, c, row); }

static void run_task(const void *argument, int64_t task) {
    const struct silu_and_mul *c = argument;
    int64_t rows = task_rows(c->width), end = (task + 1) * rows;
    for (int64_t row = task * rows; row < end && row < c->num_rows; row++) {
        if (c->is_bf16) run_row_bf16(c, row);
        else run_row_f32(c, row);
    }
}

void octavo_silu_and_mul(const struct silu_and_mul *c) {
    octavo_parallel(c->num_threads, num_tasks(c->num_rows, c->width), run_task, c);
}
