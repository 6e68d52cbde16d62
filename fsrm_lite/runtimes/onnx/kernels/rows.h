/* Row-wise arithmetic of the fused operators. Every function writes whole rows (or heads) and reads nothing else, so
 * that callers may split rows over threads in any way without changing a bit of the result.
 *
 * "Quantized" means: divided by the row's largest magnitude and rounded to steps of 1/127 (uint8 values lie around
 * 128). The scales that are returned are the largest magnitudes, as in export/graph/linear.py.
 */
#ifndef FSRM_ROWS_H
#define FSRM_ROWS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef struct {
    size_t tokens, kv_heads, group, dim; /* heads = kv_heads * group, all of dim values */
} Shape;

/* A square matrix that mixes the parts of a row, an orthogonal one: part i becomes the sum of factor[i][j] times part j. */
typedef struct {
    const float *values;
    size_t parts;
} Factor;

/* What the rotations need of scratch, in values per value of a head. */
enum { SCRATCH_PER_DIM = 10 };

/* Rows [from, to) of: sum = residual + update * update_scale; its RMSNorm, spread and quantized. rest, where it is not NULL,
 * takes the second term: what rounding leaves behind, in steps of 1/254 of a step. scratch holds 2 * width values. */
void add_norm_quantize(size_t from, size_t to, size_t width, const float *residual, const float *update, const float *update_scale,
                       const float *weight, float epsilon, Factor factor, float *scratch, float *sum, uint8_t *quantized, float *largest, uint8_t *rest);

/* Rows [from, to) of: silu(gate * scale) * up, spread and quantized; largest includes the scale of up. scratch holds
 * 2 * width values, and factor.parts divides width. */
void gate_quantize(size_t from, size_t to, size_t width, const float *gate, const float *up, const float *scale, Factor factor,
                   float *scratch, uint8_t *quantized, float *largest, uint8_t *rest);

/* Tokens [from, to) of: RMSNorm per head (where weight), rotation, spreading, quantization of queries [tokens, heads * dim] to
 * [kv_heads, group * tokens, dim] and scales [kv_heads, group * tokens]; cos and sin are [tokens, dim / 2]. scratch holds
 * SCRATCH_PER_DIM * dim values. */
void rotate_queries(size_t from, size_t to, Shape shape, const float *queries, const float *weight, float epsilon, const float *cos,
                    const float *sin, Factor factor, float *scratch, uint8_t *quantized, float *largest, uint8_t *rest);

/* Key/value heads [from, to) of the same for keys [tokens, kv_heads * dim] to [kv_heads, dim, tokens] and [kv_heads, tokens], less a
 * mean [kv_heads, dim]. */
void rotate_keys(size_t from, size_t to, Shape shape, const float *keys, const float *weight, float epsilon, const float *cos,
                 const float *sin, Factor factor, const float *mean, float *scratch, uint8_t *quantized, float *largest);

/* Tokens [from, to) of: values [tokens, kv_heads * dim] * scale, one for all tokens or one each, quantized over all heads to
 * [kv_heads, tokens, dim]; largest [tokens] is at least 1e-6. */
void quantize_values(size_t from, size_t to, Shape shape, const float *values, const float *scale, int one_scale, uint8_t *quantized,
                     float *largest);

/* Tokens [from, to) of, for scores [heads, tokens, width]: p = softmax(scores * score_scale + bias), w = p * value_scale [width];
 * quantized = w in steps of 1/255 of its largest, which is returned; rest, where it is not NULL, what that leaves behind. bias is [tokens, width]; scratch holds width values. */
void softmax_quantize(size_t from, size_t to, size_t heads, size_t tokens, size_t width, const float *scores, const float *score_scale,
                      const float *bias, const float *value_scale, float *scratch, uint8_t *quantized, float *largest, uint8_t *rest);

/* Tokens [from, to) of: mixed [kv_heads, group * tokens, dim] * scale [kv_heads, group * tokens], spread and
 * quantized over all heads to [tokens, heads * dim]; scratch holds 2 * heads * dim values. */
void quantize_mixed(size_t from, size_t to, Shape shape, const float *mixed, const float *scale, Factor factor, float *scratch,
                    uint8_t *quantized, float *largest, uint8_t *rest);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
