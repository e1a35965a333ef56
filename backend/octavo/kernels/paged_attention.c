/* Paged attention: see paged_attention.py for what it computes, kv_layout.py for how a block is laid out.
 *
 * A task is one tile: up to MAX_ROWS query rows (a row is one token's query of one head) of one sequence that share a
 * key-value head. Keys are walked in chunks that start at multiples of CHUNK positions, whatever the batch: for each
 * chunk scores, running softmax, weighted values. A row takes part in exactly the chunks that hold a key it may see,
 * and a key it may not see weighs exactly 0, so the arithmetic of a row on finite values is the same in every tile. */
#include "attention_tile.h"
#include "threads.h"

#include <stdlib.h>

#define TASKS_PER_THREAD 4
/* A tile of no more rows waits for memory, and asks for what comes next; one of more computes, and finds it in a cache. */
#define FEW_ROWS 8

/* scores[row][16 * group ...] = query[row] . key, for `rows` rows, known when compiled, and QUAD groups. */
INLINE void score_rows(int is_bf16, int asks, int rows, struct tile *t, int row, const struct chunk *k, int group) {
    f32x16 sums[4][QUAD] = {};
    const struct group *g = k->groups + group, *ahead = k->ahead + group;
    for (int64_t w = 0; w < t->words; w++) {
        u32x16 keys[QUAD];
#pragma GCC unroll 4
        for (int n = 0; n < QUAD; n++) {
            keys[n] = load_words(g[n].keys + w * k->key_stride);
            if (asks) __builtin_prefetch(ahead[n].keys + w * k->key_stride);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            u32x16 query = splat_word(t->query[row + r][w]);
#pragma GCC unroll 4
            for (int n = 0; n < QUAD; n++) sums[r][n] = multiply_add_words(is_bf16, sums[r][n], query, keys[n]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < QUAD; n++) store_f32(&t->scores[row + r][(group + n) * LANES], sums[r][n]);
}

/* accumulated[row][16 * vector ...] = it * shrink[row] + weights[row] . values, over the chunk's groups. */
INLINE void weigh_rows(int is_bf16, int asks, int rows, int vectors, struct tile *t, int row, const struct chunk *k,
                       int vector) {
    int units = is_bf16 ? LANES / 2 : LANES;
    f32x16 sums[4][QUAD];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sums[r][v] = load_f32(&t->accumulated[row + r][(vector + v) * LANES]) * t->shrink[row + r];
    for (int group = k->first; group < k->end; group++)
        for (int u = 0; u < units; u++) {
            u32x16 values[QUAD];
            const struct group *g = k->groups + group, *ahead = k->ahead + group;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                values[v] = load_words(g->values + u * k->value_stride + (vector + v) * LANES);
                if (asks) __builtin_prefetch(ahead->values + u * k->value_stride + (vector + v) * LANES);
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                u32x16 weight = splat_word(t->weights[row + r][group * units + u]);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    sums[r][v] = multiply_add_words(is_bf16, sums[r][v], weight, values[v]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store_f32(&t->accumulated[row + r][(vector + v) * LANES], sums[r][v]);
}

/* `rows` rows, known when compiled: their scores, or their weighted values. */
INLINE void chunk_rows(int is_bf16, int asks, int rows, struct tile *t, int row, const struct chunk *k, int is_score) {
    if (is_score) {
        for (int group = k->first / QUAD * QUAD; group < k->end; group += QUAD)
            score_rows(is_bf16, asks, rows, t, row, k, group);
        return;
    }
    int vector = 0;
    for (; vector + QUAD <= t->width_vectors; vector += QUAD) weigh_rows(is_bf16, asks, rows, QUAD, t, row, k, vector);
    for (; vector < t->width_vectors; vector++) weigh_rows(is_bf16, asks, rows, 1, t, row, k, vector);
}

INLINE void some_rows(int is_bf16, int asks, struct tile *t, int row, int end_row, const struct chunk *k, int is_score) {
    for (; row + 4 <= end_row; row += 4) chunk_rows(is_bf16, asks, 4, t, row, k, is_score);
    switch (end_row - row) {
        case 1: chunk_rows(is_bf16, asks, 1, t, row, k, is_score); break;
        case 2: chunk_rows(is_bf16, asks, 2, t, row, k, is_score); break;
        case 3: chunk_rows(is_bf16, asks, 3, t, row, k, is_score); break;
        default: break;
    }
}

INLINE void each_rows(int is_bf16, struct tile *t, int row, int end_row, const struct chunk *k, int is_score) {
    if (t->num_rows <= FEW_ROWS) some_rows(is_bf16, 1, t, row, end_row, k, is_score);
    else some_rows(is_bf16, 0, t, row, end_row, k, is_score);
}

/* Turns a row's scores of one chunk into weights, and says what scales the earlier ones down to the new maximum.
 * first, end: known when compiled where the row sees every key. */
INLINE void soften_groups(int is_bf16, int sees_all, struct tile *t, int row, int64_t chunk, int first, int end) {
    static const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 scale = splat((float)(t->call->scale * 1.4426950408889634));
    int32_t low = (int32_t)max64(t->oldest[row] - chunk, 0);
    int32_t high = (int32_t)min64(t->positions[row] - chunk, CHUNK - 1);
    f32x16 scores[GROUPS], top = splat(-INFINITY), before = splat(t->maximum[row]);
#pragma GCC unroll 8
    for (int group = first; group < end; group++) {
        scores[group] = load_f32(&t->scores[row][group * LANES]);
        if (!sees_all) {
            i32x16 key = lane + group * LANES;
            scores[group] = choose((key >= low) & (key <= high), scores[group], splat(-INFINITY));
        }
        top = max_each(scores[group], top);
    }
    f32x16 maximum = max_each(max_lanes(top) * scale, before);
    f32x16 shrink = exp2_lanes(before - maximum), sum = t->sums[row] * shrink;
#pragma GCC unroll 8
    for (int group = first; group < end; group++) {
        f32x16 weight = exp2_lanes(multiply_add(-maximum, scores[group], scale));
        sum += weight;
        store(is_bf16, t->weights[row], group * LANES, weight);
    }
    t->sums[row] = sum;
    t->maximum[row] = maximum[0];
    t->shrink[row] = shrink[0];
}

INLINE void soften_row(int is_bf16, struct tile *t, int row, int64_t chunk, const struct chunk *k) {
    int sees_all = t->oldest[row] <= chunk && t->positions[row] >= chunk + CHUNK - 1;
    if (sees_all) soften_groups(is_bf16, 1, t, row, chunk, 0, GROUPS);
    else soften_groups(is_bf16, 0, t, row, chunk, k->first, k->end);
}

static void begin_tile(struct tile *t) {
    const struct paged_attention *c = t->call;
    int64_t first_token = c->cu_seqlens_q[t->sequence], num_tokens = c->cu_seqlens_q[t->sequence + 1] - first_token;
    for (int row = 0; row < t->num_rows; row++) {
        int64_t token = (t->first_row + row) / t->group_size, head = (t->first_row + row) % t->group_size;
        int64_t position = c->seq_lens[t->sequence] - (c->is_causal ? num_tokens - token : 1);
        t->positions[row] = position;
        t->oldest[row] = c->window ? max64(position - c->window + 1, 0) : 0;
        int64_t at = ((first_token + token) * c->num_heads + t->kv_head * t->group_size + head) * t->words;
        memcpy(t->query[row], (const uint32_t *)c->query + at, (size_t)t->words * 4);
        t->maximum[row] = -INFINITY;
        t->sums[row] = splat(0);
        memset(t->accumulated[row], 0, (size_t)t->width_vectors * LANES * 4);
    }
}

INLINE void end_tile(int is_bf16, struct tile *t) {
    const struct paged_attention *c = t->call;
    for (int row = 0; row < t->num_rows; row++) {
        int64_t token = c->cu_seqlens_q[t->sequence] + (t->first_row + row) / t->group_size;
        int64_t head = t->kv_head * t->group_size + (t->first_row + row) % t->group_size;
        int64_t at = (token * c->num_heads + head) * c->head_dim;
        float inverse = 1.0f / sum_lanes(t->sums[row]);
        for (int64_t d = 0; d < c->head_dim; d += LANES) {
            f32x16 x = load_f32(&t->accumulated[row][d]) * inverse;
            if (d + LANES <= c->head_dim) store(is_bf16, c->output, at + d, x);
            else store_some(is_bf16, c->output, at + d, x, (int)(c->head_dim - d));
        }
    }
}

INLINE void run_tile(int is_bf16, struct tile *t) {
    begin_tile(t);
    int64_t oldest = t->oldest[0], newest = t->positions[t->num_rows - 1];
    for (int64_t chunk = oldest / CHUNK * CHUNK; chunk <= newest; chunk += CHUNK) {
        struct chunk k;
        int row = 0, end_row = t->num_rows;
        while (t->positions[row] < chunk) row++;
        while (t->oldest[end_row - 1] >= chunk + CHUNK) end_row--;
        find_groups(is_bf16, t, &k, chunk);
        if (t->num_rows <= FEW_ROWS) look_ahead(is_bf16, t, &k, chunk);
        each_rows(is_bf16, t, row, end_row, &k, 1);
        for (int r = row; r < end_row; r++) soften_row(is_bf16, t, r, chunk, &k);
        each_rows(is_bf16, t, row, end_row, &k, 0);
    }
    end_tile(is_bf16, t);
}

static void run_bf16(struct tile *t) { run_tile(1, t); }
static void run_f32(struct tile *t) { run_tile(0, t); }

static int64_t num_tiles(const struct paged_attention *c, int64_t sequence) {
    int64_t tokens = c->cu_seqlens_q[sequence + 1] - c->cu_seqlens_q[sequence];
    int64_t rows = tokens * (c->num_heads / c->num_kv_heads);
    return (rows + MAX_ROWS - 1) / MAX_ROWS;
}

/* A call and where the tasks of each sequence end. */
struct plan {
    const struct paged_attention *call;
    int64_t *ends;           /* [num_rows] */
    int64_t heads_of_a_task; /* of a sequence that is one tile high; one head otherwise */
};

static int64_t heads_of_a_task(const struct plan *plan, int64_t tiles) { return tiles == 1 ? plan->heads_of_a_task : 1; }

/* Kept from call to call: fresh memory of this size would fault in page by page. */
static _Thread_local struct tile own_tile;

/* Tiles of one head follow each other, so that its keys stay in cache. */
static void run_task(const void *argument, int64_t task) {
    const struct plan *plan = argument;
    const struct paged_attention *c = plan->call;
    struct tile *t = &own_tile;
    int64_t sequence = 0, above = c->num_rows - 1;
    while (sequence < above) {
        int64_t middle = (sequence + above) / 2;
        if (plan->ends[middle] > task) above = middle;
        else sequence = middle + 1;
    }
    task -= sequence ? plan->ends[sequence - 1] : 0;
    t->call = c;
    t->group_size = (int)(c->num_heads / c->num_kv_heads);
    t->width_vectors = (int)((c->head_dim + LANES - 1) / LANES);
    t->words = (int)(c->head_dim / (c->is_bf16 ? 2 : 1));
    int64_t tiles = num_tiles(c, sequence), num_heads = heads_of_a_task(plan, tiles);
    int64_t rows = (int64_t)(c->cu_seqlens_q[sequence + 1] - c->cu_seqlens_q[sequence]) * t->group_size;
    t->sequence = sequence;
    t->first_row = task % tiles * MAX_ROWS;
    t->num_rows = (int)min64(MAX_ROWS, rows - t->first_row);
    t->kv_head = task / tiles * num_heads;
    t->end_head = min64(t->kv_head + num_heads, c->num_kv_heads);
    for (; t->kv_head < t->end_head; t->kv_head++) {
        if (c->is_bf16) run_bf16(t);
        else run_f32(t);
    }
}

/* 0, or -1 when there is no memory. */
int octavo_paged_attention(const struct paged_attention *c) {
    /* Each task's first chunk comes unasked for: fewer, larger ones where there are enough for all threads. */
    int64_t heads = c->num_rows >= TASKS_PER_THREAD * c->num_threads ? c->num_kv_heads : 1;
    struct plan plan = {c, malloc(sizeof(int64_t) * (size_t)(c->num_rows + 1)), heads};
    if (!plan.ends) return -1;
    int64_t num_tasks = 0;
    for (int64_t b = 0; b < c->num_rows; b++) {
        int64_t tiles = num_tiles(c, b), heads_of_one = heads_of_a_task(&plan, tiles);
        plan.ends[b] = num_tasks += tiles * ((c->num_kv_heads + heads_of_one - 1) / heads_of_one);
    }
    octavo_parallel(c->num_threads, num_tasks, run_task, &plan);
    free(plan.ends);
    return 0;
}
