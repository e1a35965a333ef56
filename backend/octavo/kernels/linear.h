/* What the products with packed weights share: panels of outputs, and how a finished vector of them is stored. */
#ifndef OCTAVO_LINEAR_H
#define OCTAVO_LINEAR_H

#include "native.h"

#define PANEL 32 /* outputs side by side in the packed weight: two vectors */
#define MAX_ROWS 8
/* Rows of x that stay in the second-level cache while all panels pass by. */
#define ROWS_BYTES (512 * 1024)
/* Tasks enough that a thread which comes late, or is taken away, leaves little undone. */
#define TASKS_PER_THREAD 8

/* Where the product goes, and what is added to it. */
struct target {
    void *output;     /* [num_rows, num_outputs] */
    const void *bias; /* [num_outputs], the type of x; or null */
    int64_t num_outputs, is_bf16, output_is_bf16; /* is_bf16: of x */
};

/* Adds the bias to LANES outputs of a row, those beyond the last one left out. */
INLINE void store_outputs(const struct target *c, int64_t row, int64_t column, f32x16 y) {
    int64_t left = c->num_outputs - column, at = row * c->num_outputs + column;
    if (left <= 0) return;
    if (c->bias) {
        if (left >= LANES) y += c->is_bf16 ? load(1, c->bias, column) : load(0, c->bias, column);
        else y += c->is_bf16 ? load_some(1, c->bias, column, (int)left) : load_some(0, c->bias, column, (int)left);
    }
    if (left >= LANES) {
        if (c->output_is_bf16) store(1, c->output, at, y);
        else store(0, c->output, at, y);
    } else {
        if (c->output_is_bf16) store_some(1, c->output, at, y, (int)left);
        else store_some(0, c->output, at, y, (int)left);
    }
}

#endif
