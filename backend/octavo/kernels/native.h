/* What the C kernels share: vectors of 16 numbers, bf16, the multiply-add that both cache types are built on.
 *
 * Everything is written with the compiler's generic vectors, so it runs on any CPU; intrinsics stand only where one
 * instruction does what generic code cannot say. Every function's order of additions is fixed. */
#ifndef OCTAVO_NATIVE_H
#define OCTAVO_NATIVE_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
/* Numbers that a task of a small operation should have: less is not worth another thread's while. */
#define TASK_NUMBERS 16384
#define INLINE static inline __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

INLINE f32x16 load_f32(const float *p) { f32x16 x; memcpy(&x, p, sizeof x); return x; }
INLINE void store_f32(float *p, f32x16 x) { memcpy(p, &x, sizeof x); }
INLINE u32x16 load_words(const uint32_t *p) { u32x16 x; memcpy(&x, p, sizeof x); return x; }
INLINE f32x16 splat(float x) { return x - (f32x16){}; }
INLINE u32x16 splat_word(uint32_t x) { return x - (u32x16){}; }
INLINE f32x16 choose(i32x16 mask, f32x16 yes, f32x16 no) {
    return (f32x16)(((i32x16)yes & mask) | ((i32x16)no & ~mask));
}

INLINE float bf16_to_f32(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

INLINE f32x16 load_bf16(const uint16_t *p) {
    u16x16 x;
    memcpy(&x, p, sizeof x);
    return (f32x16)(__builtin_convertvector(x, u32x16) << 16);
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
INLINE u16x16 to_bf16(f32x16 x) {
#ifdef __AVX512BF16__
    return (u16x16)_mm512_cvtneps_pbh((__m512)x);
#else
    u32x16 bits = (u32x16)x;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u32x16 is_nan = (u32x16)(x != x);
    return __builtin_convertvector((rounded & ~is_nan) | ((bits >> 16 | 0x40) & is_nan), u16x16);
#endif
}

INLINE void store_bf16(uint16_t *p, f32x16 x) { u16x16 y = to_bf16(x); memcpy(p, &y, sizeof y); }

/* Numbers of either type, by element index. */
INLINE f32x16 load(int is_bf16, const void *p, int64_t at) {
    return is_bf16 ? load_bf16((const uint16_t *)p + at) : load_f32((const float *)p + at);
}

INLINE void store(int is_bf16, void *p, int64_t at, f32x16 x) {
    if (is_bf16) store_bf16((uint16_t *)p + at, x);
    else store_f32((float *)p + at, x);
}

/* The first n < 16 numbers; the rest are 0. */
INLINE f32x16 load_some(int is_bf16, const void *p, int64_t at, int n) {
    unsigned char buffer[64] = {0};
    int size = is_bf16 ? 2 : 4;
    memcpy(buffer, (const char *)p + at * size, (size_t)(n * size));
    return load(is_bf16, buffer, 0);
}

INLINE void store_some(int is_bf16, void *p, int64_t at, f32x16 x, int n) {
    unsigned char buffer[64];
    int size = is_bf16 ? 2 : 4;
    store(is_bf16, buffer, 0, x);
    memcpy((char *)p + at * size, buffer, (size_t)(n * size));
}

INLINE f32x16 multiply_add(f32x16 sum, f32x16 a, f32x16 b) {
#ifdef __AVX512F__
    return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    return sum + a * b;
#endif
}

/* A word is what one lane holds: an fp32 number, or two bf16 numbers. sum + a * b, or sum + a.high * b.high +
 * a.low * b.low. */
INLINE f32x16 multiply_add_words(int is_bf16, f32x16 sum, u32x16 a, u32x16 b) {
    if (!is_bf16) return multiply_add(sum, (f32x16)a, (f32x16)b);
#ifdef __AVX512BF16__
    return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum = multiply_add(sum, (f32x16)(a & 0xffff0000u), (f32x16)(b & 0xffff0000u));
    return multiply_add(sum, (f32x16)(a << 16), (f32x16)(b << 16));
#endif
}

/* Rows of `width` numbers that make up one task, and the number of tasks. */
INLINE int64_t task_rows(int64_t width) { return width < TASK_NUMBERS ? TASK_NUMBERS / width : 1; }
INLINE int64_t num_tasks(int64_t num_rows, int64_t width) {
    return (num_rows + task_rows(width) - 1) / task_rows(width);
}

/* The larger of each pair; b where a is NaN. */
INLINE f32x16 max_each(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return choose(a > b, a, b);
#endif
}

/* x with lane i in the place of lane i ^ distance. */
#define SWAP_8(x) __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP_4(x) __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP_2(x) __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define SWAP_1(x) __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)

INLINE float sum_lanes(f32x16 x) {
    x += SWAP_8(x);
    x += SWAP_4(x);
    x += SWAP_2(x);
    x += SWAP_1(x);
    return x[0];
}

/* The largest lane, in every lane. */
INLINE f32x16 max_lanes(f32x16 x) {
    x = max_each(x, SWAP_8(x));
    x = max_each(x, SWAP_4(x));
    x = max_each(x, SWAP_2(x));
    return max_each(x, SWAP_1(x));
}

/* 2^f for f in [0, 1], to 2 units in the last place; 1 and 2 at the ends. */
INLINE f32x16 exp2_fraction(f32x16 f) {
    f32x16 y = splat(1.8793186e-3f);
    y = multiply_add(splat(8.9909951e-3f), y, f);
    y = multiply_add(splat(5.5818676e-2f), y, f);
    y = multiply_add(splat(2.4015927e-1f), y, f);
    y = multiply_add(splat(6.9315174e-1f), y, f);
    return multiply_add(splat(1.0f), y, f);
}

/* 2^x; exactly 0 below -160, infinite above 128; NaN stays NaN. */
INLINE f32x16 exp2_lanes(f32x16 x) {
#ifdef __AVX512DQ__
    /* What is left of x beyond the integer below it; scalef takes that integer by itself. */
    f32x16 f = (f32x16)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return (f32x16)_mm512_scalef_ps((__m512)exp2_fraction(f), (__m512)x);
#else
    x = choose(x < -127.0f, splat(-127.0f), choose(x > 128.0f, splat(128.0f), x));
    /* Adding 1.5 * 2^23 leaves the rounded integer in the low bits. */
    f32x16 shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
    i32x16 is_above = f < 0.0f, exponent = (i32x16)shifted - 0x4b400000 + is_above;
    return exp2_fraction(f + choose(is_above, splat(1.0f), splat(0.0f))) * (f32x16)((exponent + 127) << 23);
#endif
}

#endif
