#include "rows.h"

#include <math.h>
#include <string.h>

/* VECTORIZED functions are compiled once for each of three instruction sets; which copy runs is chosen when the library
 * is loaded. What they call must be INLINE to be compiled with them. Compilers that cannot do this compile one copy,
 * for every machine of the kind. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define VECTORIZED __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define INLINE static inline __attribute__((always_inline))
#else
#define VECTORIZED
#define INLINE static inline
#endif

/* So many keys are quantized before they are transposed, while they are still in the cache. */
enum { KEY_BLOCK = 32 };

/* The scratch memory of a rotation: a rotated head, a normed head, and a block of quantized keys. */
_Static_assert(SCRATCH_PER_DIM * sizeof(float) >= 2 * sizeof(float) + KEY_BLOCK * sizeof(uint8_t),
               "scratch memory is too small for the rotations");

/* Largest magnitudes are at least this, so that rows of zeros can be divided by theirs. */
static const float SMALLEST = 1e-30f;

/* The same for values, as export/graph/fused.py has it. */
static const float SMALLEST_VALUE_SCALE = 1e-6f;

/* A bias below this hides a key from a token. */
static const float UNSEEN = -1e8f;

/* exp(x) of anything lower is almost the smallest float, 1e-38, and counts as this one. */
static const float LOWEST_EXPONENT = -87.0f;

/* 1.5 * 2^23. A float of this size has no bits for fractions: adding it to a number below 2^22 rounds that number to
 * the nearest integer, ties to even, and leaves the integer in the low bits of the sum. */
static const float ROUNDER = 12582912.0f;

/* The rounded number is in the low bits; the low 8 of them are its int8. */
INLINE uint32_t rounded_bits(float x) {
    uint32_t bits;
    x += ROUNDER;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* exp(x) with a relative error of 1e-5, for x from -87 to 87. It is 2^t for t = x / ln 2. A polynomial gives 2^r for
 * the part r of t that is left when t is rounded; adding to the exponent bits multiplies that by 2^whole. */
INLINE float exponential(float x) {
    float t = x * 1.44269504f;
    int32_t whole = (int32_t)(rounded_bits(t) - 0x4B400000u);
    uint32_t bits;
    float r = t - (float)whole;
    float p = 1.33335581e-3f;
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
    memcpy(&bits, &p, sizeof bits);
    bits += (uint32_t)whole << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

INLINE float at_least(float x, float floor) { return x < floor ? floor : x; }

INLINE float largest_magnitude(const float *x, size_t n, float floor) {
    float top = floor;
    for (size_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        top = a > top ? a : top;
    }
    return top;
}

INLINE float sum_of_squares(const float *x, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

INLINE void to_uint8(const float *x, size_t n, float by, uint8_t *out) {
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(rounded_bits(x[i] * by) + 128u);
}

/* Both terms of 8 bits: x * by is nearly (out - 128) + (rest - 128) / 254. */
INLINE void to_two_uint8(const float *x, size_t n, float by, uint8_t *out, uint8_t *rest) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = rounded_bits(x[i] * by);
        float left = x[i] * by - (float)(int32_t)(bits - 0x4B400000u);
        out[i] = (uint8_t)(bits + 128u);
        rest[i] = (uint8_t)(rounded_bits(left * 254.0f) + 128u);
    }
}

INLINE void quantize_row(const float *x, size_t n, float by, uint8_t *out, uint8_t *rest) {
    if (rest)
        to_two_uint8(x, n, by, out, rest);
    else
        to_uint8(x, n, by, out);
}

/* Multiplies the parts of size values of a row by the factor, from x to out. */
INLINE void mix_parts(const float *restrict x, size_t size, Factor factor, float *restrict out) {
    for (size_t i = 0; i < factor.parts; i++) {
        float *restrict sum = out + i * size;
        const float *by = factor.values + i * factor.parts;
        for (size_t k = 0; k < size; k++) sum[k] = by[0] * x[k];
        for (size_t j = 1; j < factor.parts; j++)
            for (size_t k = 0; k < size; k++) sum[k] += by[j] * x[j * size + k];
    }
}

/* One pass of additions and subtractions over size values: neighbours at a distance of step. */
INLINE void butterflies(float *x, size_t size, size_t step) {
    for (size_t start = 0; start < size; start += 2 * step)
        for (size_t i = start; i < start + step; i++) {
            float a = x[i], b = x[i + step];
            x[i] = a + b;
            x[i + step] = a - b;
        }
}

/* Multiplies size values, a power of two, by the Hadamard matrix; their root-mean-square grows by the root of size. */
INLINE void hadamard(float *x, size_t size) {
    size_t step = size / 2;
    for (; step >= 8; step /= 2) butterflies(x, size, step);
    if (step == 4) {
        for (float *y = x; y < x + size; y += 8) {
            float a0 = y[0] + y[4], a1 = y[1] + y[5], a2 = y[2] + y[6], a3 = y[3] + y[7];
            float a4 = y[0] - y[4], a5 = y[1] - y[5], a6 = y[2] - y[6], a7 = y[3] - y[7];
            float b0 = a0 + a2, b1 = a1 + a3, b2 = a0 - a2, b3 = a1 - a3;
            float b4 = a4 + a6, b5 = a5 + a7, b6 = a4 - a6, b7 = a5 - a7;
            y[0] = b0 + b1, y[1] = b0 - b1, y[2] = b2 + b3, y[3] = b2 - b3;
            y[4] = b4 + b5, y[5] = b4 - b5, y[6] = b6 + b7, y[7] = b6 - b7;
        }
        return;
    }
    for (; step; step /= 2) butterflies(x, size, step);
}

/* Spreads a row as export/graph/rotation.py says, but for the root of the power of two, which it returns the reciprocal
 * of. The row's values are where the returned pointer says: in x or in other, which has room for as many. */
INLINE float *spread(float *x, size_t width, Factor factor, float *other, float *unit) {
    size_t size = width & (~width + 1);
    *unit = 1.0f / sqrtf((float)size);
    if (factor.parts > 1) {
        for (size_t start = 0; start < width; start += factor.parts * size)
            mix_parts(x + start, size, factor, other + start);
        x = other;
    }
    for (size_t start = 0; start < width; start += size) hadamard(x + start, size);
    return x;
}

VECTORIZED void add_norm_quantize(size_t from, size_t to, size_t width, const float *restrict residual,
                                  const float *restrict update, const float *restrict update_scale,
                                  const float *restrict weight, float epsilon, Factor factor, float *restrict scratch,
                                  float *restrict sum, uint8_t *restrict quantized, float *restrict largest,
                                  uint8_t *restrict rest) {
    for (size_t row = from; row < to; row++) {
        const float *r = residual + row * width, *u = update + row * width;
        float *s = sum + row * width, scale = update_scale[row], squares = 0.0f, unit;
        for (size_t i = 0; i < width; i++) {
            float x = r[i] + u[i] * scale;
            s[i] = x;
            squares += x * x;
            scratch[i] = x * weight[i];
        }
        float *x = spread(scratch, width, factor, scratch + width, &unit), top = largest_magnitude(x, width, SMALLEST);
        quantize_row(x, width, 127.0f / top, quantized + row * width, rest ? rest + row * width : NULL);
        top *= unit / sqrtf(squares / (float)width + epsilon);
        largest[row] = top > SMALLEST ? top : SMALLEST;
    }
}

VECTORIZED void gate_quantize(size_t from, size_t to, size_t width, const float *restrict gate,
                              const float *restrict up, const float *restrict scale, Factor factor,
                              float *restrict scratch, uint8_t *restrict quantized, float *restrict largest,
                              uint8_t *restrict rest) {
    for (size_t row = from; row < to; row++) {
        const float *g = gate + row * width, *u = up + row * width;
        float s = scale[row];
        for (size_t i = 0; i < width; i++) {
            float x = g[i] * s, limited = at_least(x, LOWEST_EXPONENT);
            scratch[i] = x * u[i] / (1.0f + exponential(-(limited > -LOWEST_EXPONENT ? -LOWEST_EXPONENT : limited)));
        }
        float unit, *x = spread(scratch, width, factor, scratch + width, &unit),
                    top = largest_magnitude(x, width, SMALLEST);
        quantize_row(x, width, 127.0f / top, quantized + row * width, rest ? rest + row * width : NULL);
        largest[row] = top * unit * s;
    }
}

/* One head of dim values: RMSNorm if there is a weight, then rotation, then spreading. Value i of the first half and
 * value i of the second half are the coordinates of a point, which the rotation turns by angle i. scratch has room for
 * 2 * dim values. The result is where the returned pointer says; it is yet to be multiplied by unit. */
INLINE float *rotate(const float *x, size_t dim, const float *weight, float epsilon, const float *cos, const float *sin,
                     Factor factor, float *scratch, float *unit) {
    float *restrict out = scratch;
    size_t half = dim / 2;
    if (weight) {
        float inverse = 1.0f / sqrtf(sum_of_squares(x, dim) / (float)dim + epsilon), *restrict normed = out + dim;
        for (size_t i = 0; i < dim; i++) normed[i] = x[i] * inverse * weight[i];
        x = normed;
    }
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        out[i] = a * cos[i] - b * sin[i];
        out[half + i] = b * cos[i] + a * sin[i];
    }
    return spread(out, dim, factor, scratch + dim, unit);
}

VECTORIZED void rotate_queries(size_t from, size_t to, Shape shape, const float *restrict queries,
                               const float *restrict weight, float epsilon, const float *restrict cos,
                               const float *restrict sin, Factor factor, float *restrict scratch,
                               uint8_t *restrict quantized, float *restrict largest, uint8_t *restrict rest) {
    size_t heads = shape.kv_heads * shape.group, dim = shape.dim;
    for (size_t token = from; token < to; token++)
        for (size_t head = 0; head < heads; head++) {
            size_t row = head * shape.tokens + token;
            const float *query = queries + (token * heads + head) * dim;
            float unit, *x = rotate(query, dim, weight, epsilon, cos + token * (dim / 2), sin + token * (dim / 2),
                                    factor, scratch, &unit);
            float top = largest_magnitude(x, dim, SMALLEST);
            quantize_row(x, dim, 127.0f / top, quantized + row * dim, rest ? rest + row * dim : NULL);
            largest[row] = top * unit;
        }
}

VECTORIZED void rotate_keys(size_t from, size_t to, Shape shape, const float *restrict keys,
                            const float *restrict weight, float epsilon, const float *restrict cos,
                            const float *restrict sin, Factor factor, const float *restrict mean,
                            float *restrict scratch, uint8_t *restrict quantized, float *restrict largest) {
    size_t dim = shape.dim;
    uint8_t *block = (uint8_t *)(scratch + 2 * dim); /* [KEY_BLOCK, dim] */
    for (size_t head = from; head < to; head++)
        for (size_t start = 0; start < shape.tokens; start += KEY_BLOCK) {
            size_t count = shape.tokens - start < KEY_BLOCK ? shape.tokens - start : KEY_BLOCK;
            for (size_t i = 0; i < count; i++) {
                size_t token = start + i;
                const float *key = keys + (token * shape.kv_heads + head) * dim;
                float unit, *x = rotate(key, dim, weight, epsilon, cos + token * (dim / 2), sin + token * (dim / 2),
                                        factor, scratch, &unit);
                for (size_t d = 0; d < dim; d++) x[d] = x[d] * unit - mean[head * dim + d];
                float top = largest_magnitude(x, dim, SMALLEST);
                to_uint8(x, dim, 127.0f / top, block + i * dim);
                largest[head * shape.tokens + token] = top;
            }
            for (size_t d = 0; d < dim; d++)
                for (size_t i = 0; i < count; i++)
                    quantized[(head * dim + d) * shape.tokens + start + i] = block[i * dim + d];
        }
}

VECTORIZED void quantize_values(size_t from, size_t to, Shape shape, const float *restrict values,
                                const float *restrict scale, int one_scale, uint8_t *restrict quantized,
                                float *restrict largest) {
    size_t dim = shape.dim, width = shape.kv_heads * dim;
    for (size_t token = from; token < to; token++) {
        float top = largest_magnitude(values + token * width, width, SMALLEST);
        for (size_t head = 0; head < shape.kv_heads; head++)
            to_uint8(values + token * width + head * dim, dim, 127.0f / top,
                     quantized + (head * shape.tokens + token) * dim);
        top *= scale[one_scale ? 0 : token];
        largest[token] = top > SMALLEST_VALUE_SCALE ? top : SMALLEST_VALUE_SCALE;
    }
}

VECTORIZED void softmax_quantize(size_t from, size_t to, size_t heads, size_t tokens, size_t width,
                                 const float *restrict scores, const float *restrict score_scale,
                                 const float *restrict bias, const float *restrict value_scale, float *restrict scratch,
                                 uint8_t *restrict quantized, float *restrict largest, uint8_t *restrict rest) {
    for (size_t token = from; token < to; token++) {
        const float *b = bias + token * width;
        /* Keys that the token does not see lie mostly at the ends. They are left out there; their weight is zero. */
        size_t first = 0, last = width;
        while (last > 0 && b[last - 1] < UNSEEN) last--;
        while (first < last && b[first] < UNSEEN) first++;
        for (size_t head = 0; head < heads; head++) {
            size_t row = head * tokens + token;
            const float *x = scores + row * width;
            uint8_t *q = quantized + row * width;
            float scale = score_scale[row], peak = -3.0e38f, sum = 0.0f, top = SMALLEST;
            for (size_t i = first; i < last; i++) {
                float s = x[i] * scale + b[i];
                scratch[i] = s;
                peak = s > peak ? s : peak;
            }
            for (size_t i = first; i < last; i++) {
                float e = exponential(at_least(scratch[i] - peak, LOWEST_EXPONENT));
                sum += e;
                e *= value_scale[i];
                scratch[i] = e;
                top = e > top ? e : top;
            }
            float by = 255.0f / top;
            memset(q, 0, first);
            for (size_t i = first; i < last; i++) q[i] = (uint8_t)rounded_bits(scratch[i] * by);
            memset(q + last, 0, width - last);
            if (rest) {
                uint8_t *r = rest + row * width;
                memset(r, 128, width);
                for (size_t i = first; i < last; i++)
                    r[i] = (uint8_t)(rounded_bits((scratch[i] * by - (float)q[i]) * 254.0f) + 128u);
            }
            largest[row] = sum > 0.0f ? top / sum : 0.0f;
        }
    }
}

VECTORIZED void quantize_mixed(size_t from, size_t to, Shape shape, const float *restrict mixed,
                               const float *restrict scale, Factor factor, float *restrict scratch,
                               uint8_t *restrict quantized, float *restrict largest, uint8_t *restrict rest) {
    size_t heads = shape.kv_heads * shape.group, dim = shape.dim, width = heads * dim;
    for (size_t token = from; token < to; token++) {
        for (size_t head = 0; head < heads; head++) {
            size_t row = head * shape.tokens + token;
            for (size_t i = 0; i < dim; i++) scratch[head * dim + i] = mixed[row * dim + i] * scale[row];
        }
        float unit, *x = spread(scratch, width, factor, scratch + width, &unit);
        float top = largest_magnitude(x, width, SMALLEST);
        quantize_row(x, width, 127.0f / top, quantized + token * width, rest ? rest + token * width : NULL);
        largest[token] = top * unit;
    }
}

/* How many cells a token attends to. */
INLINE size_t seen_by(Sight sight, size_t token) {
    const int64_t *bounds = sight.bounds + token * sight.segments * 2;
    size_t seen = 0;
    for (size_t i = 0; i < sight.segments; i++) seen += (size_t)(bounds[2 * i + 1] - bounds[2 * i]);
    return seen;
}

/* Turns scores into weights, which add up to one. */
INLINE void softmax(float *x, size_t n) {
    float peak = -3.0e38f, sum = 0.0f;
    for (size_t i = 0; i < n; i++) peak = x[i] > peak ? x[i] : peak;
    for (size_t i = 0; i < n; i++) {
        x[i] = exponential(at_least(x[i] - peak, LOWEST_EXPONENT));
        sum += x[i];
    }
    float by = 1.0f / sum;
    for (size_t i = 0; i < n; i++) x[i] *= by;
}

/* So many columns, and rows, of a product are computed at a time: their sums fit into registers. */
enum { COLUMNS_AT_ONCE = 32, ROWS_AT_ONCE = 4 };

/* Adds to sums [rows, n] the product of a [rows, count] and bytes b [count, n]. Rows of a, of b and of sums lie so many
 * values apart as their steps say. rows is at most ROWS_AT_ONCE, and known when this is compiled. */
INLINE void add_product(size_t rows, size_t count, size_t n, const float *a, size_t a_step, const uint8_t *b,
                        size_t b_step, float *sums, size_t sums_step) {
    size_t column = 0;
    for (; column + COLUMNS_AT_ONCE <= n; column += COLUMNS_AT_ONCE) {
        float block[ROWS_AT_ONCE][COLUMNS_AT_ONCE] = {{0}};
        for (size_t k = 0; k < count; k++)
            for (size_t row = 0; row < rows; row++)
                for (size_t j = 0; j < COLUMNS_AT_ONCE; j++)
                    block[row][j] += a[row * a_step + k] * (float)b[k * b_step + column + j];
        for (size_t row = 0; row < rows; row++)
            for (size_t j = 0; j < COLUMNS_AT_ONCE; j++) sums[row * sums_step + column + j] += block[row][j];
    }
    for (size_t row = 0; row < rows && column < n; row++)
        for (size_t k = 0; k < count; k++)
            for (size_t j = column; j < n; j++)
                sums[row * sums_step + j] += a[row * a_step + k] * (float)b[k * b_step + j];
}

/* The same for any number of rows. */
INLINE void add_products(size_t rows, size_t count, size_t n, const float *a, size_t a_step, const uint8_t *b,
                         size_t b_step, float *sums, size_t sums_step) {
    for (; rows >= ROWS_AT_ONCE; rows -= ROWS_AT_ONCE) {
        add_product(ROWS_AT_ONCE, count, n, a, a_step, b, b_step, sums, sums_step);
        a += ROWS_AT_ONCE * a_step;
        sums += ROWS_AT_ONCE * sums_step;
    }
    if (rows == 3) add_product(3, count, n, a, a_step, b, b_step, sums, sums_step);
    if (rows == 2) add_product(2, count, n, a, a_step, b, b_step, sums, sums_step);
    if (rows == 1) add_product(1, count, n, a, a_step, b, b_step, sums, sums_step);
}

VECTORIZED void attend_bytes(size_t from, size_t to, Shape shape, Sight sight, const uint8_t *restrict queries,
                             const float *restrict query_scale, const uint8_t *restrict rest,
                             const uint8_t *restrict keys, const float *restrict key_scale,
                             const uint8_t *restrict values, const float *restrict value_scale, float *restrict scratch,
                             float *restrict mixed) {
    size_t dim = shape.dim, cells = sight.cells, group = shape.group;
    float unit = 1.0f / (127.0f * 127.0f * sqrtf((float)dim));
    for (size_t at = from; at < to; at++) {
        size_t token = at / shape.kv_heads, head = at % shape.kv_heads, seen = seen_by(sight, token), before = 0;
        const int64_t *bounds = sight.bounds + token * sight.segments * 2;
        float *query = scratch, *weights = scratch + group * dim, *out = query;
        for (size_t g = 0; g < group; g++) {
            size_t row = (head * group + g) * shape.tokens + token;
            for (size_t i = 0; i < dim; i++) {
                float x = (float)queries[row * dim + i] - 128.0f;
                if (rest) x += ((float)rest[row * dim + i] - 128.0f) * (1.0f / 254.0f);
                query[g * dim + i] = x * query_scale[row] * unit;
            }
        }
        memset(weights, 0, group * seen * sizeof *weights);
        for (size_t s = 0; s < sight.segments; s++) {
            size_t first = (size_t)bounds[2 * s], n = (size_t)bounds[2 * s + 1] - first;
            const float *scale = key_scale + head * cells + first;
            add_products(group, dim, n, query, dim, keys + head * dim * cells + first, cells, weights + before, seen);
            for (size_t g = 0; g < group; g++) {
                float sum = 0.0f, *w = weights + g * seen + before;
                for (size_t i = 0; i < dim; i++) sum += query[g * dim + i];
                for (size_t j = 0; j < n; j++) w[j] = (w[j] - 128.0f * sum) * scale[j];
            }
            before += n;
        }
        for (size_t g = 0; g < group; g++) softmax(weights + g * seen, seen);
        memset(out, 0, group * dim * sizeof *out); /* the queries are not needed any more */
        before = 0;
        for (size_t s = 0; s < sight.segments; s++) {
            size_t first = (size_t)bounds[2 * s], n = (size_t)bounds[2 * s + 1] - first;
            for (size_t g = 0; g < group; g++) {
                float *w = weights + g * seen + before;
                for (size_t j = 0; j < n; j++) w[j] *= value_scale[first + j] * (1.0f / 127.0f);
            }
            add_products(group, n, dim, weights + before, seen, values + (head * cells + first) * dim, dim, out, dim);
            before += n;
        }
        for (size_t g = 0; g < group; g++) {
            float total = 0.0f, *y = mixed + ((head * group + g) * shape.tokens + token) * dim;
            for (size_t j = 0; j < seen; j++) total += weights[g * seen + j];
            for (size_t i = 0; i < dim; i++) y[i] = out[g * dim + i] - 128.0f * total;
        }
    }
}

VECTORIZED void attend_floats(size_t from, size_t to, Shape shape, Sight sight, const float *restrict queries,
                              const float *restrict keys, const float *restrict values, float *restrict scratch,
                              float *restrict mixed) {
    size_t dim = shape.dim, cells = sight.cells;
    float unit = 1.0f / sqrtf((float)dim);
    for (size_t at = from; at < to; at++) {
        size_t token = at / shape.kv_heads, head = at % shape.kv_heads, seen = seen_by(sight, token);
        const int64_t *bounds = sight.bounds + token * sight.segments * 2;
        for (size_t g = 0; g < shape.group; g++) {
            size_t row = token * shape.kv_heads * shape.group + head * shape.group + g;
            const float *query = queries + row * dim;
            float *out = mixed + row * dim, *w = scratch;
            for (size_t s = 0; s < sight.segments; s++)
                for (size_t cell = (size_t)bounds[2 * s]; cell < (size_t)bounds[2 * s + 1]; cell++) {
                    const float *key = keys + (head * cells + cell) * dim;
                    float sum = 0.0f;
                    for (size_t i = 0; i < dim; i++) sum += query[i] * key[i];
                    *w++ = sum * unit;
                }
            softmax(scratch, seen);
            memset(out, 0, dim * sizeof *out);
            w = scratch;
            for (size_t s = 0; s < sight.segments; s++)
                for (size_t cell = (size_t)bounds[2 * s]; cell < (size_t)bounds[2 * s + 1]; cell++) {
                    const float *value = values + (head * cells + cell) * dim;
                    float by = *w++;
                    for (size_t i = 0; i < dim; i++) out[i] += by * value[i];
                }
        }
    }
}
