/* y = x W^T + b: see linear.py. A number of y is one sum over the inputs in their order, from the first to the last,
 * whatever the number of rows: that is what makes rows independent, bit for bit. */
#include "linear.h"
#include "threads.h"

#define PREFETCH_WORDS 1024

struct linear {
    struct target target;
    const uint32_t *x;      /* [num_rows, words] */
    const uint32_t *weight; /* [ceil(num_outputs / PANEL), words, PANEL], 64-byte aligned */
    int64_t num_rows, words; /* words: one row of x, two bf16 or one fp32 number each */
    int64_t num_threads;
};

/* `rows` rows, known when compiled, times one panel. */
INLINE void multiply_panel(int is_bf16, int rows, const struct linear *c, int64_t row, int64_t panel) {
    const uint32_t *x = c->x + row * c->words, *weight = c->weight + panel * c->words * PANEL;
    f32x16 sums[MAX_ROWS][2] = {};
    for (int64_t k = 0; k < c->words; k++, weight += PANEL) {
        u32x16 low = load_words(weight), high = load_words(weight + LANES);
        __builtin_prefetch(weight + PREFETCH_WORDS);
        __builtin_prefetch(weight + PREFETCH_WORDS + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            u32x16 from = splat_word(x[r * c->words + k]);
            sums[r][0] = multiply_add_words(is_bf16, sums[r][0], from, low);
            sums[r][1] = multiply_add_words(is_bf16, sums[r][1], from, high);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        store_outputs(&c->target, row + r, panel * PANEL, sums[r][0]);
        store_outputs(&c->target, row + r, panel * PANEL + LANES, sums[r][1]);
    }
}

INLINE void multiply_rows(int is_bf16, const struct linear *c, int64_t row, int64_t end, int64_t panel) {
    for (; row + MAX_ROWS <= end; row += MAX_ROWS) multiply_panel(is_bf16, MAX_ROWS, c, row, panel);
    switch (end - row) {
        case 1: multiply_panel(is_bf16, 1, c, row, panel); break;
        case 2: multiply_panel(is_bf16, 2, c, row, panel); break;
        case 3: multiply_panel(is_bf16, 3, c, row, panel); break;
        case 4: multiply_panel(is_bf16, 4, c, row, panel); break;
        case 5: multiply_panel(is_bf16, 5, c, row, panel); break;
        case 6: multiply_panel(is_bf16, 6, c, row, panel); break;
        case 7: multiply_panel(is_bf16, 7, c, row, panel); break;
        default: break;
    }
}

static void multiply_rows_bf16(const struct linear *c, int64_t row, int64_t end, int64_t panel) {
    multiply_rows(1, c, row, end, panel);
}

static void multiply_rows_f32(const struct linear *c, int64_t row, int64_t end, int64_t panel) {
    multiply_rows(0, c, row, end, panel);
}

/* A call and how it is cut: a task is some panels for one block of rows. */
struct plan {
    const struct linear *call;
    int64_t block_rows, task_panels, num_panels, row_tasks;
};

static void run_task(const void *argument, int64_t task) {
    const struct plan *plan = argument;
    const struct linear *c = plan->call;
    int64_t row = task / plan->row_tasks * plan->block_rows, panel = task % plan->row_tasks * plan->task_panels;
    int64_t end = row + plan->block_rows, end_panel = panel + plan->task_panels;
    if (end > c->num_rows) end = c->num_rows;
    for (; panel < end_panel && panel < plan->num_panels; panel++) {
        if (c->target.is_bf16) multiply_rows_bf16(c, row, end, panel);
        else multiply_rows_f32(c, row, end, panel);
    }
}

void octavo_linear(const struct linear *c) {
    int64_t num_panels = (c->target.num_outputs + PANEL - 1) / PANEL;
    struct plan plan = {c, ROWS_BYTES / 4 / c->words / MAX_ROWS * MAX_ROWS, 1, num_panels, 0};
    if (plan.block_rows < 4 * MAX_ROWS) plan.block_rows = 4 * MAX_ROWS;
    plan.task_panels += plan.num_panels / (c->num_threads * TASKS_PER_THREAD);
    plan.row_tasks = (plan.num_panels + plan.task_panels - 1) / plan.task_panels;
    int64_t num_blocks = (c->num_rows + plan.block_rows - 1) / plan.block_rows;
    octavo_parallel(c->num_threads, num_blocks * plan.row_tasks, run_task, &plan);
}
