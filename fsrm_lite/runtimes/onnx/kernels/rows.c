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

/* Finds the runs of keys that a token sees, and writes where each starts and stops as floats, which hold such numbers
 * exactly; returns how many runs. Most blocks of keys are seen as a whole, or not at all. */
INLINE size_t find_seen(const float *bias, size_t width, float *edges) {
    size_t runs = 0;
    for (size_t start = 0; start < width; start += KEY_BLOCK) {
        size_t stop = width - start < KEY_BLOCK ? width : start + KEY_BLOCK, hidden = 0;
        for (size_t i = start; i < stop; i++) hidden += bias[i] < UNSEEN;
        if (hidden == stop - start) continue;
        size_t step = hidden ? 1 : stop - start;
        for (size_t i = start; i < stop; i += step) {
            if (bias[i] < UNSEEN) continue;
            if (!runs || edges[2 * runs - 1] != (float)i) edges[2 * runs++] = (float)i;
            edges[2 * runs - 1] = (float)(i + step);
        }
    }
    return runs;
}

VECTORIZED void softmax_quantize(size_t from, size_t to, size_t heads, size_t tokens, size_t width,
                                 const float *restrict scores, const float *restrict score_scale,
                                 const float *restrict bias, const float *restrict value_scale, float *restrict scratch,
                                 uint8_t *restrict quantized, float *restrict largest, uint8_t *restrict rest) {
    float *restrict weights = scratch, *restrict values = scratch + width, *restrict edges = scratch + 2 * width;
    for (size_t token = from; token < to; token++) {
        const float *b = bias + token * width;
        /* The keys that the token sees are moved together, so that sums add the same numbers in the same order wherever
         * in the row its sequence lies. The weight of all other keys is zero. */
        size_t runs = find_seen(b, width, edges), seen = 0;
        for (size_t run = 0; run < runs; run++)
            for (size_t i = (size_t)edges[2 * run]; i < (size_t)edges[2 * run + 1]; i++)
                values[seen++] = value_scale[i];
        for (size_t head = 0; head < heads; head++) {
            size_t row = head * tokens + token, at = 0, end = 0;
            const float *x = scores + row * width;
            uint8_t *q = quantized + row * width, *r = rest ? rest + row * width : NULL;
            float scale = score_scale[row], peak = -3.0e38f, sum = 0.0f, top = SMALLEST;
            for (size_t run = 0; run < runs; run++) {
                size_t first = (size_t)edges[2 * run], count = (size_t)edges[2 * run + 1] - first;
                for (size_t i = 0; i < count; i++) {
                    float s = x[first + i] * scale + b[first + i];
                    weights[at + i] = s;
                    peak = s > peak ? s : peak;
                }
                at += count;
            }
            for (size_t i = 0; i < seen; i++) {
                float e = exponential(at_least(weights[i] - peak, LOWEST_EXPONENT));
                sum += e;
                e *= values[i];
                weights[i] = e;
                top = e > top ? e : top;
            }
            float by = 255.0f / top;
            at = 0;
            for (size_t run = 0; run < runs; run++) {
                size_t first = (size_t)edges[2 * run], count = (size_t)edges[2 * run + 1] - first;
                memset(q + end, 0, first - end);
                for (size_t i = 0; i < count; i++) q[first + i] = (uint8_t)rounded_bits(weights[at + i] * by);
                if (r) {
                    memset(r + end, 128, first - end);
                    for (size_t i = 0; i < count; i++)
                        r[first + i] =
                            (uint8_t)(rounded_bits((weights[at + i] * by - (float)q[first + i]) * 254.0f) + 128u);
                }
                at += count;
                end = first + count;
            }
            memset(q + end, 0, width - end);
            if (r) memset(r + end, 128, width - end);
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

/* Attention goes through the cells in tiles of so many, and keeps for every row of queries the sum of the weights so
 * far, the mixed values so far, and the peak: the largest score, by which all weights are divided (FlashAttention,
 * arXiv 2205.14135). A row is one head of one token. Tokens that see the same segment, a prompt that they have in
 * common, go through it together: what is read for one of them serves them all. What comes out for a row does not
 * depend on the others. */
enum { CELLS_AT_ONCE = 64 };

/* Eight floats in one register; elsewhere in two. A product keeps eight of them, of several rows and several cells or
 * columns, as its sums: as many as it takes to have one ready whenever the next can begin. */
enum { LANES = 8, SUMS = 8 };
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t WholeLanes __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef int8_t ByteLanes __attribute__((vector_size(LANES)));

/* Takes lanes of two vectors, those of the second one counted from LANES on. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (WholeLanes){__VA_ARGS__})
#endif

/* Keys, or values, of neighbouring cells: bytes around 128, or floats. Which of the two is known when this is compiled.
 */
typedef struct {
    const void *data;
    int are_bytes;
} Items;

INLINE Items items_from(Items all, size_t first) {
    size_t size = all.are_bytes ? sizeof(uint8_t) : sizeof(float);
    return (Items){(const char *)all.data + first * size, all.are_bytes};
}

INLINE float item(Items items, size_t i) {
    if (items.are_bytes) return (float)(((const uint8_t *)items.data)[i] - 128);
    return ((const float *)items.data)[i];
}

INLINE Lanes load(const float *x) {
    Lanes lanes;
    memcpy(&lanes, x, sizeof lanes);
    return lanes;
}

INLINE void store(float *x, Lanes lanes) { memcpy(x, &lanes, sizeof lanes); }

INLINE Lanes items_at(Items items, size_t i) {
    if (!items.are_bytes) return load((const float *)items.data + i);
    ByteLanes bytes;
    memcpy(&bytes, (const uint8_t *)items.data + i, sizeof bytes);
    bytes ^= (ByteLanes){-128, -128, -128, -128, -128, -128, -128, -128};
    return __builtin_convertvector(__builtin_convertvector(bytes, WholeLanes), Lanes);
}

/* Adds up the lanes of each of eight sums, side by side. */
INLINE Lanes add_lanes(const Lanes *x) {
    Lanes pairs[4], fours[2];
    for (size_t i = 0; i < 4; i++) {
        Lanes a = x[2 * i], b = x[2 * i + 1];
        pairs[i] = SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (size_t i = 0; i < 2; i++) {
        Lanes a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* Rows of queries on their way through the cells. */
typedef struct {
    const float *queries; /* [rows, dim] */
    float *peak, *sum;    /* [rows] */
    float *mixed;         /* [rows, dim] */
    float *weights;       /* [rows, CELLS_AT_ONCE], of the tile */
} Rows;

INLINE Rows rows_from(Rows all, size_t first, size_t dim) {
    return (Rows){all.queries + first * dim, all.peak + first, all.sum + first, all.mixed + first * dim,
                  all.weights + first * CELLS_AT_ONCE};
}

/* Scores of rows, so many that their number is known when this is compiled and divides SUMS, towards a tile's keys. */
INLINE void score(size_t rows, size_t cells, size_t dim, Rows by, Items keys) {
    size_t at_once = SUMS / rows;
    for (size_t first = 0; first < cells; first += at_once) {
        Lanes sums[SUMS] = {{0}};
        size_t i = 0;
        for (; i + LANES <= dim; i += LANES)
            for (size_t cell = 0; cell < at_once; cell++) {
                /* Behind the last cell it stands in for those that are not there. */
                Lanes key = items_at(keys, (first + cell < cells ? first + cell : cells - 1) * dim + i);
                for (size_t row = 0; row < rows; row++)
                    sums[row * at_once + cell] += load(by.queries + row * dim + i) * key;
            }
        float scores[SUMS];
        store(scores, add_lanes(sums));
        for (size_t row = 0; row < rows; row++)
            for (size_t cell = 0; cell < at_once && first + cell < cells; cell++) {
                float left = 0.0f;
                for (size_t k = i; k < dim; k++)
                    left += by.queries[row * dim + k] * item(keys, (first + cell) * dim + k);
                by.weights[row * CELLS_AT_ONCE + first + cell] = scores[row * at_once + cell] + left;
            }
    }
}

/* Turns a row of scores of a tile into weights, divided by the peak as the ones before are. */
INLINE void weigh(size_t cells, size_t dim, Rows by, const float *key_scale, const float *value_scale) {
    float *w = by.weights, peak = *by.peak, sum = 0.0f;
    for (size_t j = 0; j < cells; j++) {
        if (key_scale) w[j] *= key_scale[j];
        peak = w[j] > peak ? w[j] : peak;
    }
    if (peak > *by.peak) {
        float less = exponential(at_least(*by.peak - peak, LOWEST_EXPONENT));
        for (size_t i = 0; i < dim; i++) by.mixed[i] *= less;
        *by.sum *= less;
        *by.peak = peak;
    }
    for (size_t j = 0; j < cells; j++) {
        w[j] = exponential(at_least(w[j] - peak, LOWEST_EXPONENT));
        sum += w[j];
        if (value_scale) w[j] *= value_scale[j] * (1.0f / 127.0f);
    }
    *by.sum += sum;
}

/* Adds a tile's values, by their weights, to what rows have mixed so far, in so many lanes from a column on. */
INLINE void mix_columns(size_t rows, size_t vectors, size_t cells, size_t dim, size_t column, Rows by, Items values) {
    Lanes sums[SUMS];
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < vectors; j++) sums[row * vectors + j] = load(by.mixed + row * dim + column + j * LANES);
    for (size_t cell = 0; cell < cells; cell++)
        for (size_t j = 0; j < vectors; j++) {
            Lanes value = items_at(values, cell * dim + column + j * LANES);
            for (size_t row = 0; row < rows; row++)
                sums[row * vectors + j] += by.weights[row * CELLS_AT_ONCE + cell] * value;
        }
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < vectors; j++) store(by.mixed + row * dim + column + j * LANES, sums[row * vectors + j]);
}

INLINE void mix(size_t rows, size_t cells, size_t dim, Rows by, Items values) {
    size_t column = 0, vectors = SUMS / rows;
    for (; column + vectors * LANES <= dim; column += vectors * LANES)
        mix_columns(rows, vectors, cells, dim, column, by, values);
    for (; column + LANES <= dim; column += LANES) mix_columns(rows, 1, cells, dim, column, by, values);
    for (; column < dim; column++)
        for (size_t row = 0; row < rows; row++)
            for (size_t cell = 0; cell < cells; cell++)
                by.mixed[row * dim + column] +=
                    by.weights[row * CELLS_AT_ONCE + cell] * item(values, cell * dim + column);
}

INLINE void attend_tile(size_t rows, size_t cells, size_t dim, Rows by, Items keys, const float *key_scale,
                        Items values, const float *value_scale) {
    score(rows, cells, dim, by, keys);
    for (size_t row = 0; row < rows; row++) weigh(cells, dim, rows_from(by, row, dim), key_scale, value_scale);
    mix(rows, cells, dim, by, values);
}

/* Lets rows attend to the cells of a segment, n of them. */
INLINE void attend_segment(size_t rows, size_t n, size_t dim, Rows by, Items keys, const float *key_scale, Items values,
                           const float *value_scale) {
    for (size_t first = 0; first < n; first += CELLS_AT_ONCE) {
        size_t cells = n - first < CELLS_AT_ONCE ? n - first : CELLS_AT_ONCE, row = 0;
        Items key = items_from(keys, first * dim), value = items_from(values, first * dim);
        const float *key_by = key_scale ? key_scale + first : NULL,
                    *value_by = value_scale ? value_scale + first : NULL;
        for (; row + 4 <= rows; row += 4)
            attend_tile(4, cells, dim, rows_from(by, row, dim), key, key_by, value, value_by);
        for (; row + 2 <= rows; row += 2)
            attend_tile(2, cells, dim, rows_from(by, row, dim), key, key_by, value, value_by);
        if (row < rows) attend_tile(1, cells, dim, rows_from(by, row, dim), key, key_by, value, value_by);
    }
}

/* Lets the rows of some tokens, group for each, attend to what they see of one head's keys and values. */
INLINE void attend_block(size_t tokens, size_t group, size_t dim, Rows by, Sight sight, size_t token, Items keys,
                         const float *key_scale, Items values, const float *value_scale) {
    size_t step = 2 * sight.segments, shared = 0;
    const int64_t *bounds = sight.bounds + token * step;
    for (; shared < sight.segments; shared++) {
        size_t i = 1;
        while (i < tokens && !memcmp(bounds + i * step + 2 * shared, bounds + 2 * shared, 2 * sizeof *bounds)) i++;
        if (i < tokens) break;
    }
    for (size_t i = 0; i <= tokens; i++) /* all of them together, then each alone */
        for (size_t s = i ? shared : 0; s < (i ? sight.segments : shared); s++) {
            const int64_t *ends = bounds + (i ? i - 1 : 0) * step + 2 * s;
            size_t first = (size_t)ends[0], n = (size_t)ends[1] - first;
            Items key = items_from(keys, first * dim), value = items_from(values, first * dim);
            attend_segment(i ? group : tokens * group, n, dim, rows_from(by, i ? (i - 1) * group : 0, dim), key,
                           key_scale ? key_scale + first : NULL, value, value_scale ? value_scale + first : NULL);
        }
}

/* Lays out scratch memory for so many rows; attention to nothing so far. */
INLINE Rows empty_rows(size_t rows, size_t dim, float *scratch) {
    Rows made = {.queries = scratch, .mixed = scratch + rows * dim, .weights = scratch + 2 * rows * dim};
    made.peak = made.weights + rows * CELLS_AT_ONCE;
    made.sum = made.peak + rows;
    memset(made.mixed, 0, rows * dim * sizeof *made.mixed);
    for (size_t row = 0; row < rows; row++) made.peak[row] = -3.0e38f, made.sum[row] = 0.0f;
    return made;
}

_Static_assert(ATTEND_SCRATCH(1, 0) == CELLS_AT_ONCE + 2, "scratch memory does not fit the rows");

VECTORIZED void attend_bytes(size_t from, size_t to, Shape shape, Sight sight, const uint8_t *restrict queries,
                             const float *restrict query_scale, const uint8_t *restrict rest,
                             const uint8_t *restrict keys, const float *restrict key_scale,
                             const uint8_t *restrict values, const float *restrict value_scale, float *restrict scratch,
                             float *restrict mixed) {
    size_t dim = shape.dim, cells = sight.cells, group = shape.group;
    float unit = 1.0f / (127.0f * 127.0f * sqrtf((float)dim));
    for (size_t at = from; at < to; at++) {
        size_t token = at / shape.kv_heads * TOKENS_AT_ONCE, head = at % shape.kv_heads;
        size_t tokens = shape.tokens - token < TOKENS_AT_ONCE ? shape.tokens - token : TOKENS_AT_ONCE;
        Rows by = empty_rows(tokens * group, dim, scratch);
        float *query = scratch;
        for (size_t i = 0; i < tokens * group; i++, query += dim) {
            size_t row = (head * group + i % group) * shape.tokens + token + i / group;
            for (size_t k = 0; k < dim; k++) {
                float x = (float)queries[row * dim + k] - 128.0f;
                if (rest) x += ((float)rest[row * dim + k] - 128.0f) * (1.0f / 254.0f);
                query[k] = x * query_scale[row] * unit;
            }
        }
        attend_block(tokens, group, dim, by, sight, token, (Items){keys + head * cells * dim, 1},
                     key_scale + head * cells, (Items){values + head * cells * dim, 1}, value_scale);
        for (size_t i = 0; i < tokens * group; i++) {
            float *y = mixed + ((head * group + i % group) * shape.tokens + token + i / group) * dim;
            float once = by.sum[i] > 0.0f ? 1.0f / by.sum[i] : 0.0f;
            for (size_t k = 0; k < dim; k++) y[k] = by.mixed[i * dim + k] * once;
        }
    }
}

VECTORIZED void attend_floats(size_t from, size_t to, Shape shape, Sight sight, const float *restrict queries,
                              const float *restrict keys, const float *restrict values, float *restrict scratch,
                              float *restrict mixed) {
    size_t dim = shape.dim, cells = sight.cells, group = shape.group, width = shape.kv_heads * group * dim;
    float unit = 1.0f / sqrtf((float)dim);
    for (size_t at = from; at < to; at++) {
        size_t token = at / shape.kv_heads * TOKENS_AT_ONCE, head = at % shape.kv_heads;
        size_t tokens = shape.tokens - token < TOKENS_AT_ONCE ? shape.tokens - token : TOKENS_AT_ONCE;
        Rows by = empty_rows(tokens * group, dim, scratch);
        for (size_t i = 0; i < tokens * group; i++) {
            const float *query = queries + (token + i / group) * width + (head * group + i % group) * dim;
            for (size_t k = 0; k < dim; k++) scratch[i * dim + k] = query[k] * unit;
        }
        attend_block(tokens, group, dim, by, sight, token, (Items){keys + head * cells * dim, 0}, NULL,
                     (Items){values + head * cells * dim, 0}, NULL);
        for (size_t i = 0; i < tokens * group; i++) {
            float *y = mixed + (token + i / group) * width + (head * group + i % group) * dim;
            float once = by.sum[i] > 0.0f ? 1.0f / by.sum[i] : 0.0f;
            for (size_t k = 0; k < dim; k++) y[k] = by.mixed[i * dim + k] * once;
        }
    }
}
