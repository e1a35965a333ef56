/* Rows of a table, by index: see gather_rows.py. */
#include "native.h"
#include "threads.h"

struct gather_rows {
    void *output;           /* [num_indices, row_bytes] */
    const void *table;      /* [num_rows, row_bytes] */
    const int64_t *indices; /* [num_indices] */
    int64_t num_indices, num_rows, row_bytes, num_threads;
};

/* A row is as much work as so many numbers. */
static int64_t row_width(const struct gather_rows *c) { return c->row_bytes / 4 + 1; }

static void run_task(const void *argument, int64_t task) {
    const struct gather_rows *c = argument;
    int64_t rows = task_rows(row_width(c)), end = (task + 1) * rows;
    for (int64_t i = task * rows; i < end && i < c->num_indices; i++)
        memcpy((char *)c->output + i * c->row_bytes, (const char *)c->table + c->indices[i] * c->row_bytes,
               (size_t)c->row_bytes);
}

/* Returns 0, or 1 when an index lies outside of the table: nothing is copied then. */
int octavo_gather_rows(const struct gather_rows *c) {
    for (int64_t i = 0; i < c->num_indices; i++)
        if (c->indices[i] < 0 || c->indices[i] >= c->num_rows) return 1;
    octavo_parallel(c->num_threads, num_tasks(c->num_indices, row_width(c)), run_task, c);
    return 0;
}
