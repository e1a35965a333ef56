/* Paged attention: see paged_attention.py for what it computes, kv_layout.py for how a block is laid out.
 *
 * A task is one tile: up to MAX_ROWS query rows (a row is one token's query of one head) of one sequence that share a
 * key-value head. Keys are walked in chunks that start at multiples of CHUNK positions, whatever the batch: for each
 * chunk scores, running softmax, weighted values. A row takes part in exactly the chunks that hold a key it may see,
 * and a key it may not see weighs exactly 0, so the arithmetic of a row is the same in every tile. */
#include "native.h"
#include "threads.h"

#include <stdlib.h>

#define MAX_ROWS 32
#define CHUNK 64
#define GROUPS (CHUNK / LANES)
#define MAX_HEAD_DIM 256
#define MAX_WIDTH_VECTORS (MAX_HEAD_DIM / LANES)

struct paged_attention {
    void *output;                /* [T, num_heads, head_dim] */
    const void *query;           /* [T, num_heads, head_dim] */
    const void *kv_cache;        /* [num_blocks, 2, num_kv_heads, block_size, head_dim] */
    const int32_t *cu_seqlens_q; /* [num_rows + 1] */
    const int32_t *seq_lens;     /* [num_rows] */
    const int32_t *block_table;  /* [num_rows, ...] */
    int64_t block_table_stride;
    int64_t num_rows, num_heads, num_kv_heads, head_dim, block_size;
    int64_t window; /* positions seen, its own included; 0: all */
    int64_t is_bf16, num_threads;
    double scale;
};

/* One task: rows [first_row, first_row + num_rows) of sequence `sequence`, counted (token, head of the group). */
struct tile {
    const struct paged_attention *call;
    int64_t sequence, kv_head, first_row;
    int num_rows, group_size, width_vectors, words; /* words: of one query row */
    int64_t positions[MAX_ROWS], oldest[MAX_ROWS];
    uint32_t query[MAX_ROWS][MAX_HEAD_DIM];
    float scores[MAX_ROWS][CHUNK];
    uint32_t weights[MAX_ROWS][CHUNK];
    float accumulated[MAX_ROWS][MAX_HEAD_DIM];
    float maximum[MAX_ROWS];
    f32x16 sums[MAX_ROWS];
    uint32_t packed_keys[GROUPS][MAX_HEAD_DIM * LANES], packed_values[GROUPS][MAX_HEAD_DIM * LANES];
};

/* Where the 16 keys and values of a group begin, and the words from one dimension (key) or key (value) to the next. */
struct group {
    const uint32_t *keys, *values;
    int64_t key_stride, value_stride;
};

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static const char *head_block(const struct tile *t, int64_t position, int is_value) {
    const struct paged_attention *c = t->call;
    int64_t block = c->block_table[t->sequence * c->block_table_stride + position / c->block_size];
    int64_t size = c->block_size * c->head_dim * (c->is_bf16 ? 2 : 4);
    return (const char *)c->kv_cache + ((block * 2 + is_value) * c->num_kv_heads + t->kv_head) * size;
}

/* Copies number `d` of a position's key and value to where a whole group would have them. */
INLINE void pack_number(int is_bf16, struct tile *t, int group, int lane, int64_t d, const char *keys,
                        const char *values, int64_t offset) {
    int64_t block_size = t->call->block_size, head_dim = t->call->head_dim;
    if (!is_bf16) {
        t->packed_keys[group][d * LANES + lane] = ((const uint32_t *)keys)[d * block_size + offset];
        t->packed_values[group][lane * t->width_vectors * LANES + d] =
            ((const uint32_t *)values)[offset * head_dim + d];
        return;
    }
    int64_t pair = block_size % 2 == 0 ? 2 : 1;
    int64_t from = (offset / pair * head_dim + d) * pair + offset % pair;
    int64_t to = (lane / 2 * t->width_vectors * LANES + d) * 2 + lane % 2;
    ((uint16_t *)t->packed_keys[group])[(d / 2 * LANES + lane) * 2 + d % 2] =
        ((const uint16_t *)keys)[(d / 2 * block_size + offset) * 2 + d % 2];
    ((uint16_t *)t->packed_values[group])[to] = ((const uint16_t *)values)[from];
}

/* Gathers a group's keys that lie in [first, end); the others, which may be anything, become 0. */
static void pack_group(int is_bf16, struct tile *t, int group, int64_t start, int64_t first, int64_t end) {
    memset(t->packed_keys[group], 0, (size_t)t->words * LANES * 4);
    memset(t->packed_values[group], 0, (size_t)t->width_vectors * LANES * LANES * (is_bf16 ? 2 : 4));
    for (int64_t key = max64(start, first); key < min64(start + LANES, end); key++) {
        const char *keys = head_block(t, key, 0), *values = head_block(t, key, 1);
        for (int64_t d = 0; d < t->call->head_dim; d++)
            pack_number(is_bf16, t, group, (int)(key - start), d, keys, values, key % t->call->block_size);
    }
}

static struct group find_group(int is_bf16, struct tile *t, int group, int64_t start, int64_t first, int64_t end) {
    const struct paged_attention *c = t->call;
    int whole = start >= first && start + LANES <= end;
    if (!whole || c->block_size % LANES || c->head_dim % LANES) {
        pack_group(is_bf16, t, group, start, first, end);
        return (struct group){t->packed_keys[group], t->packed_values[group], LANES, t->width_vectors * LANES};
    }
    int64_t offset = start % c->block_size;
    const uint32_t *keys = (const uint32_t *)head_block(t, start, 0) + offset;
    const uint32_t *values = (const uint32_t *)head_block(t, start, 1) + offset / (is_bf16 ? 2 : 1) * c->head_dim;
    return (struct group){keys, values, c->block_size, c->head_dim};
}

/* Asks for the keys or values of the chunk at `start`: blocks lie scattered, so no hardware prefetcher finds them. */
INLINE void prefetch_chunk(const struct tile *t, int64_t start, int64_t end, int is_value) {
    const struct paged_attention *c = t->call;
    if (c->block_size % LANES) return;
    int64_t key_bytes = c->head_dim * (c->is_bf16 ? 2 : 4);
    for (int64_t key = start; key < min64(start + CHUNK, end); key += LANES) {
        int64_t offset = key % c->block_size;
        const char *block = head_block(t, key, is_value);
        if (is_value)
            for (int64_t at = 0; at < LANES * key_bytes; at += 64) __builtin_prefetch(block + offset * key_bytes + at);
        else
            for (int64_t w = 0; w < t->words; w++) __builtin_prefetch(block + (w * c->block_size + offset) * 4);
    }
}

/* scores[row][16 * group ...] = query[row] . key, for `rows` rows and `groups` groups, both known when compiled. */
INLINE void score_rows(int is_bf16, int rows, int groups, struct tile *t, int row, const struct group *g, int group) {
    f32x16 sums[4][GROUPS] = {};
    for (int64_t w = 0; w < t->words; w++) {
        u32x16 keys[GROUPS];
#pragma GCC unroll 4
        for (int n = 0; n < groups; n++) keys[n] = load_words(g[group + n].keys + w * g[group + n].key_stride);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            u32x16 query = splat_word(t->query[row + r][w]);
#pragma GCC unroll 4
            for (int n = 0; n < groups; n++) sums[r][n] = multiply_add_words(is_bf16, sums[r][n], query, keys[n]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < groups; n++) store_f32(&t->scores[row + r][(group + n) * LANES], sums[r][n]);
}

/* accumulated[row][16 * vector ...] += weights[row] . values, over the groups [first, end). */
INLINE void weigh_rows(int is_bf16, int rows, int vectors, struct tile *t, int row, const struct group *g, int first,
                       int end, int vector) {
    int units = is_bf16 ? LANES / 2 : LANES;
    f32x16 sums[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = load_f32(&t->accumulated[row + r][(vector + v) * LANES]);
    for (int group = first; group < end; group++)
        for (int u = 0; u < units; u++) {
            u32x16 values[4];
            const uint32_t *from = g[group].values + u * g[group].value_stride + vector * LANES;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) values[v] = load_words(from + v * LANES);
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

/* Four rows at a time, or as many as are left; four groups or vectors at a time, or one by one. */
INLINE void chunk_rows(int is_bf16, int rows, struct tile *t, int row, const struct group *g, int first, int end,
                       int is_score) {
    if (is_score) {
        if (end - first == GROUPS) score_rows(is_bf16, rows, GROUPS, t, row, g, 0);
        else for (int group = first; group < end; group++) score_rows(is_bf16, rows, 1, t, row, g, group);
        return;
    }
    int vector = 0;
    for (; vector + 4 <= t->width_vectors; vector += 4) weigh_rows(is_bf16, rows, 4, t, row, g, first, end, vector);
    for (; vector < t->width_vectors; vector++) weigh_rows(is_bf16, rows, 1, t, row, g, first, end, vector);
}

INLINE void each_rows(int is_bf16, struct tile *t, int row, int end_row, const struct group *g, int first, int end,
                      int is_score) {
    for (; row + 4 <= end_row; row += 4) chunk_rows(is_bf16, 4, t, row, g, first, end, is_score);
    switch (end_row - row) {
        case 1: chunk_rows(is_bf16, 1, t, row, g, first, end, is_score); break;
        case 2: chunk_rows(is_bf16, 2, t, row, g, first, end, is_score); break;
        case 3: chunk_rows(is_bf16, 3, t, row, g, first, end, is_score); break;
        default: break;
    }
}

/* Turns a row's scores of one chunk into weights, and scales what was accumulated down to the new maximum. */
INLINE void soften_row(int is_bf16, struct tile *t, int row, int64_t chunk, int first, int end) {
    static const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 scale = splat((float)(t->call->scale * 1.4426950408889634));
    int32_t low = (int32_t)max64(t->oldest[row] - chunk, 0);
    int32_t high = (int32_t)min64(t->positions[row] - chunk, CHUNK - 1);
    f32x16 scores[GROUPS], top = splat(t->maximum[row]);
    for (int group = first; group < end; group++) {
        scores[group] = load_f32(&t->scores[row][group * LANES]) * scale;
        if (low > group * LANES || high < group * LANES + LANES - 1) {
            i32x16 key = lane + group * LANES;
            scores[group] = choose((key >= low) & (key <= high), scores[group], splat(-INFINITY));
        }
        top = max_each(scores[group], top);
    }
    f32x16 maximum = max_lanes(top);
    f32x16 shrink = exp2_lanes(t->maximum[row] - maximum);
    f32x16 sum = t->sums[row] * shrink;
    for (int group = first; group < end; group++) {
        f32x16 weight = exp2_lanes(scores[group] - maximum);
        sum += weight;
        store(is_bf16, t->weights[row], group * LANES, weight);
    }
    t->sums[row] = sum;
    if (t->maximum[row] == maximum[0]) return;
    t->maximum[row] = maximum[0];
    for (int v = 0; v < t->width_vectors; v++) {
        float *at = &t->accumulated[row][v * LANES];
        store_f32(at, load_f32(at) * shrink);
    }
}

INLINE void begin_tile(int is_bf16, struct tile *t) {
    const struct paged_attention *c = t->call;
    int64_t first_token = c->cu_seqlens_q[t->sequence], num_tokens = c->cu_seqlens_q[t->sequence + 1] - first_token;
    for (int row = 0; row < t->num_rows; row++) {
        int64_t token = (t->first_row + row) / t->group_size, head = (t->first_row + row) % t->group_size;
        int64_t position = c->seq_lens[t->sequence] - num_tokens + token;
        t->positions[row] = position;
        t->oldest[row] = c->window ? max64(position - c->window + 1, 0) : 0;
        int64_t at = ((first_token + token) * c->num_heads + t->kv_head * t->group_size + head) * t->words;
        memcpy(t->query[row], (const uint32_t *)c->query + at, (size_t)t->words * 4);
        t->maximum[row] = -INFINITY;
        t->sums[row] = splat(0);
        memset(t->accumulated[row], 0, (size_t)t->width_vectors * LANES * 4);
    }
    (void)is_bf16;
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
    begin_tile(is_bf16, t);
    int64_t oldest = t->oldest[0], newest = t->positions[t->num_rows - 1];
    for (int64_t chunk = oldest / CHUNK * CHUNK; chunk <= newest; chunk += CHUNK) {
        int first = (int)(max64(oldest - chunk, 0) / LANES);
        int end = (int)(min64(newest - chunk, CHUNK - 1) / LANES) + 1;
        int row = 0, end_row = t->num_rows;
        while (t->positions[row] < chunk) row++;
        while (t->oldest[end_row - 1] >= chunk + CHUNK) end_row--;
        struct group groups[GROUPS];
        for (int g = first; g < end; g++) groups[g] = find_group(is_bf16, t, g, chunk + g * LANES, oldest, newest + 1);
        prefetch_chunk(t, chunk + CHUNK, newest + 1, 0);
        each_rows(is_bf16, t, row, end_row, groups, first, end, 1);
        prefetch_chunk(t, chunk + CHUNK, newest + 1, 1);
        for (int r = row; r < end_row; r++) soften_row(is_bf16, t, r, chunk, first, end);
        each_rows(is_bf16, t, row, end_row, groups, first, end, 0);
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
    int64_t *ends; /* [num_rows] */
};

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
    int64_t tiles = num_tiles(c, sequence);
    int64_t rows = (int64_t)(c->cu_seqlens_q[sequence + 1] - c->cu_seqlens_q[sequence]) * t->group_size;
    t->sequence = sequence;
    t->kv_head = task / tiles;
    t->first_row = task % tiles * MAX_ROWS;
    t->num_rows = (int)min64(MAX_ROWS, rows - t->first_row);
    if (c->is_bf16) run_bf16(t);
    else run_f32(t);
}

/* 0, or -1 when there is no memory. */
int octavo_paged_attention(const struct paged_attention *c) {
    struct plan plan = {c, malloc(sizeof(int64_t) * (size_t)(c->num_rows + 1))};
    if (!plan.ends) return -1;
    int64_t num_tasks = 0;
    for (int64_t b = 0; b < c->num_rows; b++) plan.ends[b] = num_tasks += num_tiles(c, b) * c->num_kv_heads;
    octavo_parallel(c->num_threads, num_tasks, run_task, &plan);
    free(plan.ends);
    return 0;
}
