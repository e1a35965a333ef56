/* Per-head RMSNorm, rotation and KV-cache write: see rope_kv_write.py, and kv_layout.py for the layout of a block. */
#include "native.h"
#include "threads.h"

#define MAX_HEAD_DIM 256

struct rope_kv_write {
    void *query;              /* out: [T, num_heads, head_dim] */
    void *kv_cache;           /* out: [num_blocks, 2, num_kv_heads, block_size, head_dim] */
    const void *qkv;          /* [T, num_heads + 2 * num_kv_heads, head_dim] */
    const int64_t *positions; /* [T] */
    const int64_t *slots;     /* [T] */
    const float *table;       /* [max_position, 2, head_dim / 2] */
    const void *query_weight, *key_weight; /* [head_dim], or null: no norm */
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, block_size;
    int64_t is_bf16, num_threads;
    double eps;
};

INLINE float get(int is_bf16, const void *p, int64_t at) {
    return is_bf16 ? bf16_to_f32(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

INLINE void load_head(int is_bf16, float *head, const void *from, int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; d++) head[d] = get(is_bf16, from, d);
}

/* Rounds through the type, as the unfused norm does. */
INLINE float rounded(int is_bf16, float x) {
    return is_bf16 ? bf16_to_f32(to_bf16(splat(x))[0]) : x;
}

INLINE void norm_head(int is_bf16, float *head, const void *weight, int64_t head_dim, float eps) {
    float sum = 0;
    for (int64_t d = 0; d < head_dim; d++) sum += head[d] * head[d];
    float scale = 1.0f / sqrtf(sum / (float)head_dim + eps);
    for (int64_t d = 0; d < head_dim; d++)
        head[d] = rounded(is_bf16, rounded(is_bf16, head[d] * scale) * get(is_bf16, weight, d));
}

INLINE void rotate_head(float *head, const float *angles, int64_t head_dim) {
    int64_t half = head_dim / 2;
    for (int64_t d = 0; d < half; d++) {
        float x = head[d], y = head[d + half], cosine = angles[d], sine = angles[d + half];
        head[d] = x * cosine - y * sine;
        head[d + half] = y * cosine + x * sine;
    }
}

/* Rounds a head to the cache's type; head_dim is a multiple of 8, so the last store may be of half a vector. */
INLINE void store_head(int is_bf16, void *to, const float *head, int64_t head_dim) {
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES) store(is_bf16, to, d, load_f32(head + d));
    if (d < head_dim) store_some(is_bf16, to, d, load_f32(head + d), (int)(head_dim - d));
}

INLINE void write_key(int is_bf16, void *block, const void *key, int64_t head_dim, int64_t block_size, int64_t offset) {
    int64_t words = is_bf16 ? head_dim / 2 : head_dim;
    for (int64_t w = 0; w < words; w++) ((uint32_t *)block)[w * block_size + offset] = ((const uint32_t *)key)[w];
}

INLINE void write_value(int is_bf16, void *block, const void *value, int64_t head_dim, int64_t block_size,
                        int64_t offset) {
    if (!is_bf16 || block_size % 2) {
        int64_t size = head_dim * (is_bf16 ? 2 : 4);
        memcpy((char *)block + offset * size, value, (size_t)size);
        return;
    }
    uint16_t *to = (uint16_t *)block + offset / 2 * head_dim * 2 + offset % 2;
    for (int64_t d = 0; d < head_dim; d++) to[d * 2] = ((const uint16_t *)value)[d];
}

INLINE void run_token(int is_bf16, const struct rope_kv_write *c, int64_t token) {
    int64_t size = is_bf16 ? 2 : 4, head_bytes = c->head_dim * size;
    int64_t all_heads = c->num_heads + 2 * c->num_kv_heads, rotated_heads = c->num_heads + c->num_kv_heads;
    const float *angles = c->table + c->positions[token] * c->head_dim;
    const char *from = (const char *)c->qkv + token * all_heads * head_bytes;
    char *query = (char *)c->query + token * c->num_heads * head_bytes;
    int64_t block = c->slots[token] / c->block_size, offset = c->slots[token] % c->block_size;
    char *blocks = (char *)c->kv_cache + block * 2 * c->num_kv_heads * c->block_size * head_bytes;
    for (int64_t h = 0; h < all_heads; h++, from += head_bytes) {
        char *head_block = blocks + (h - c->num_heads) * c->block_size * head_bytes;
        if (h >= rotated_heads) {
            write_value(is_bf16, head_block, from, c->head_dim, c->block_size, offset);
            continue;
        }
        float head[MAX_HEAD_DIM + LANES];
        uint32_t key[MAX_HEAD_DIM];
        const void *weight = h < c->num_heads ? c->query_weight : c->key_weight;
        load_head(is_bf16, head, from, c->head_dim);
        if (weight) norm_head(is_bf16, head, weight, c->head_dim, (float)c->eps);
        rotate_head(head, angles, c->head_dim);
        store_head(is_bf16, h < c->num_heads ? (void *)(query + h * head_bytes) : (void *)key, head, c->head_dim);
        if (h >= c->num_heads) write_key(is_bf16, head_block, key, c->head_dim, c->block_size, offset);
    }
}

static void run_token_bf16(const struct rope_kv_write *c, int64_t token) { run_token(1, c, token); }
static void run_token_f32(const struct rope_kv_write *c, int64_t token) { run_token(0, c, token); }

static int64_t token_width(const struct rope_kv_write *c) { return (c->num_heads + 2 * c->num_kv_heads) * c->head_dim; }

static void run_task(const void *argument, int64_t task) {
    const struct rope_kv_write *c = argument;
    int64_t rows = task_rows(token_width(c)), end = (task + 1) * rows;
    for (int64_t token = task * rows; token < end && token < c->num_tokens; token++) {
        if (c->is_bf16) run_token_bf16(c, token);
        else run_token_f32(c, token);
    }
}

void octavo_rope_kv_write(const struct rope_kv_write *c) {
    octavo_parallel(c->num_threads, num_tasks(c->num_tokens, token_width(c)), run_task, c);
}
