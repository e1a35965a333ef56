/* A tile of paged attention, and where the keys and values that it walks over lie: see paged_attention.c. */
#ifndef OCTAVO_ATTENTION_TILE_H
#define OCTAVO_ATTENTION_TILE_H

#include "native.h"

#define MAX_ROWS 32
#define CHUNK 128
#define GROUPS (CHUNK / LANES)
#define QUAD 4 /* groups, or vectors of a value, that are computed at a time */
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
    int64_t is_causal; /* 0: every query sees all keys of its sequence */
    int64_t is_bf16, num_threads;
    double scale;
};

/* One task: rows [first_row, first_row + num_rows) of sequence `sequence`, counted (token, head of the group). */
struct tile {
    const struct paged_attention *call;
    int64_t sequence, kv_head, end_head, first_row; /* this task's heads end before end_head */
    int num_rows, group_size, width_vectors, words; /* words: of one query row */
    int64_t positions[MAX_ROWS], oldest[MAX_ROWS];
    uint32_t query[MAX_ROWS][MAX_HEAD_DIM];
    float scores[MAX_ROWS][CHUNK];
    uint32_t weights[MAX_ROWS][CHUNK];
    float accumulated[MAX_ROWS][MAX_HEAD_DIM];
    float maximum[MAX_ROWS], shrink[MAX_ROWS];
    f32x16 sums[MAX_ROWS];
    uint32_t packed_keys[GROUPS][MAX_HEAD_DIM * LANES], packed_values[GROUPS][MAX_HEAD_DIM * LANES];
};

/* Where the 16 keys and values of a group begin. */
struct group {
    const uint32_t *keys, *values;
};

/* What a chunk is computed from: its groups, and those to be asked for meanwhile. */
struct chunk {
    struct group groups[GROUPS], ahead[GROUPS];
    int64_t key_stride, value_stride; /* words from one word of a key to the next, from one unit of values to the next */
    int first, end;                   /* groups that hold a key which a row of the tile may see */
};

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static const char *head_block(const struct tile *t, int64_t kv_head, int64_t position, int is_value) {
    const struct paged_attention *c = t->call;
    int64_t block = c->block_table[t->sequence * c->block_table_stride + position / c->block_size];
    int64_t size = c->block_size * c->head_dim * (c->is_bf16 ? 2 : 4);
    return (const char *)c->kv_cache + ((block * 2 + is_value) * c->num_kv_heads + kv_head) * size;
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
        const char *keys = head_block(t, t->kv_head, key, 0), *values = head_block(t, t->kv_head, key, 1);
        for (int64_t d = 0; d < t->call->head_dim; d++)
            pack_number(is_bf16, t, group, (int)(key - start), d, keys, values, key % t->call->block_size);
    }
}

static int has_whole_groups(const struct paged_attention *c) {
    return c->block_size % LANES == 0 && c->head_dim % LANES == 0;
}

/* A group that lies whole in its block, where it is. */
static struct group in_place(int is_bf16, const struct tile *t, int64_t kv_head, int64_t start) {
    const struct paged_attention *c = t->call;
    int64_t offset = start % c->block_size;
    const uint32_t *keys = (const uint32_t *)head_block(t, kv_head, start, 0) + offset;
    const uint32_t *values = (const uint32_t *)head_block(t, kv_head, start, 1) + offset / (is_bf16 ? 2 : 1) * c->head_dim;
    return (struct group){keys, values};
}

/* Copies a group's values that lie in [first, end); the others become 0: 0 x NaN is NaN. */
static const uint32_t *visible_values(int is_bf16, struct tile *t, int group, const uint32_t *values, int64_t first,
                                      int64_t end) {
    int64_t head_dim = t->call->head_dim, keys = is_bf16 ? 2 : 1;
    uint32_t *to = t->packed_values[group];
    for (int64_t key = 0; key < LANES; key += keys, to += head_dim, values += head_dim) {
        uint32_t low = key >= first && key < end ? (is_bf16 ? 0xffffu : 0xffffffffu) : 0;
        uint32_t high = is_bf16 && key + 1 >= first && key + 1 < end ? 0xffff0000u : 0;
        for (int64_t d = 0; d < head_dim; d++) to[d] = values[d] & (low | high);
    }
    return t->packed_values[group];
}

static struct group find_group(int is_bf16, struct tile *t, int group, int64_t start, int64_t first, int64_t end) {
    if (!has_whole_groups(t->call)) {
        pack_group(is_bf16, t, group, start, first, end);
        return (struct group){t->packed_keys[group], t->packed_values[group]};
    }
    struct group found = in_place(is_bf16, t, t->kv_head, start);
    if (start < first || start + LANES > end)
        found.values = visible_values(is_bf16, t, group, found.values, first - start, end - start);
    return found;
}

/* The groups of the chunk at `chunk`. Those outside of [first, end) are computed with the others and never looked at. */
static void find_groups(int is_bf16, struct tile *t, struct chunk *k, int64_t chunk) {
    int64_t oldest = t->oldest[0], newest = t->positions[t->num_rows - 1];
    k->first = (int)(max64(oldest - chunk, 0) / LANES);
    k->end = (int)(min64(newest - chunk, CHUNK - 1) / LANES) + 1;
    k->key_stride = has_whole_groups(t->call) ? t->call->block_size : LANES;
    k->value_stride = t->width_vectors * LANES;
    for (int g = k->first; g < k->end; g++)
        k->groups[g] = find_group(is_bf16, t, g, chunk + g * LANES, oldest, newest + 1);
    for (int g = 0; g < k->first; g++) k->groups[g] = k->groups[k->first];
    for (int g = k->end; g < GROUPS; g++) k->groups[g] = k->groups[k->first];
}

/* Where what is read next lies: the chunk behind this one, or the first one of the head that this task does next.
 * Blocks lie scattered, so no hardware prefetcher finds them. Without anything to come: what is being read. */
static void look_ahead(int is_bf16, const struct tile *t, struct chunk *k, int64_t chunk) {
    int64_t newest = t->positions[t->num_rows - 1], kv_head = t->kv_head, start = chunk + CHUNK;
    if (start > newest) {
        kv_head++;
        start = t->oldest[0] / CHUNK * CHUNK;
    }
    for (int g = 0; g < GROUPS; g++, start += LANES) {
        int is_there = kv_head < t->end_head && start + LANES > t->oldest[0] && start <= newest;
        k->ahead[g] = is_there && has_whole_groups(t->call) ? in_place(is_bf16, t, kv_head, start) : k->groups[g];
    }
}

#endif
