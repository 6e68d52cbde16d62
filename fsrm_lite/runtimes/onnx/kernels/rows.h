/* The arithmetic of the fused operators, row by row.
 *
 * Every function fills the rows (or tokens, or heads) from `from` up to but not including `to`, and reads nothing that
 * another row's result depends on. So callers may split rows over threads in any way: no bit of the result changes.
 *
 * To quantize a row is to divide it by its largest magnitude and to round the quotients to steps of 1/127. What is
 * stored is the number of steps with 128 added, as uint8. The row's largest magnitude is returned too, so
 * that steps / 127 * largest is the value again, as in export/graph/linear.py.
 *
 * Two terms make a quantized row more precise: what rounding leaves behind is rounded too, to steps of 1/254 of a step,
 * and stored as a second row (rest) in the same way. Functions that can do so take rest; NULL means one term.
 *
 * To spread a row is to multiply it by an orthogonal matrix, so that no value of it stands out;
 * export/graph/rotation.py says which matrix, and why.
 *
 * A head is one part of a token's queries, keys or values; attention works on each head by itself. Several query heads,
 * a group, share one head of keys and values.
 *
 * scratch is memory that the caller lends; its contents mean nothing before and after the call.
 */
#ifndef FSRM_ROWS_H
#define FSRM_ROWS_H

#include <stddef.h>
#include <stdint.h>

/* No function here is for the users of the library. */
#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef struct {
    size_t tokens;
    size_t kv_heads; /* heads of keys and values */
    size_t group;    /* query heads for each of them; heads = kv_heads * group */
    size_t dim;      /* values per head */
} Shape;

/* An orthogonal matrix [parts, parts] that mixes the parts of a row: part i of the result is the sum over j of
 * values[i][j] times part j. */
typedef struct {
    const float *values;
    size_t parts;
} Factor;

/* Which cells of a pool of keys and values each token attends to: several segments per token, each from its first cell
 * up to but not including its last. */
typedef struct {
    size_t cells; /* of the pool */
    size_t segments;
    const int64_t *bounds; /* [tokens, segments, 2] */
} Sight;

/* Floats of scratch memory that the rotations need for each value of a head. */
enum { SCRATCH_PER_DIM = 10 };

/* sum = residual + update * update_scale [rows], all of them [rows, width]. Then the RMSNorm of sum with weight
 * [width] is spread by factor and quantized. scratch holds 2 * width floats. */
void add_norm_quantize(size_t from, size_t to, size_t width, const float *residual, const float *update,
                       const float *update_scale, const float *weight, float epsilon, Factor factor, float *scratch,
                       float *sum, uint8_t *quantized, float *largest, uint8_t *rest);

/* silu(gate * scale) * (up * scale), spread and quantized; gate and up are [rows, width], scale is [rows]. The second
 * scale is the same for the whole row, so that only largest need be multiplied by it. factor.parts divides width;
 * scratch holds 2 * width floats. */
void gate_quantize(size_t from, size_t to, size_t width, const float *gate, const float *up, const float *scale,
                   Factor factor, float *scratch, uint8_t *quantized, float *largest, uint8_t *rest);

/* Queries [tokens, heads * dim], for tokens in the given range: RMSNorm of each head with weight [dim], unless that is
 * NULL; rotation by the angles whose cos and sin are [tokens, dim / 2]; spreading by
 * factor and quantization of each head. The results are
 * quantized [kv_heads, group * tokens, dim] and largest [kv_heads, group * tokens]. scratch holds SCRATCH_PER_DIM * dim
 * floats. */
void rotate_queries(size_t from, size_t to, Shape shape, const float *queries, const float *weight, float epsilon,
                    const float *cos, const float *sin, Factor factor, float *scratch, uint8_t *quantized,
                    float *largest, uint8_t *rest);

/* The same for keys [tokens, kv_heads * dim], for heads in the given range, with mean [kv_heads, dim] taken off after
 * the spreading. The results are quantized [kv_heads, dim, tokens] and largest [kv_heads, tokens]. */
void rotate_keys(size_t from, size_t to, Shape shape, const float *keys, const float *weight, float epsilon,
                 const float *cos, const float *sin, Factor factor, const float *mean, float *scratch,
                 uint8_t *quantized, float *largest);

/* Values [tokens, kv_heads * dim], for tokens in the given range, multiplied by scale, which is [1] if one_scale and
 * [tokens] if not. All heads of a token are quantized together. The results are quantized [kv_heads, tokens, dim] and
 * largest [tokens], which is at least 1e-6. */
void quantize_values(size_t from, size_t to, Shape shape, const float *values, const float *scale, int one_scale,
                     uint8_t *quantized, float *largest);

/* Attention scores [heads, tokens, width], for tokens in the given range: softmax(scores * score_scale + bias) *
 * value_scale, where score_scale is [heads, tokens], bias is [tokens, width] and value_scale is [width]. The result is
 * never negative, so that it is stored as uint8 in steps of 1/255 of its largest, which is returned [heads, tokens].
 * rest, if not NULL, takes what that leaves behind, in steps of 1/254 of a step; 128 is its zero. Keys whose bias hides
 * them change nothing of the others, not even the order in which these are added.
 * scratch holds SOFTMAX_SCRATCH(width) floats. */
#define SOFTMAX_SCRATCH(width) (3 * (width) + 2)

void softmax_quantize(size_t from, size_t to, size_t heads, size_t tokens, size_t width, const float *scores,
                      const float *score_scale, const float *bias, const float *value_scale, float *scratch,
                      uint8_t *quantized, float *largest, uint8_t *rest);

/* What attention mixed, [kv_heads, group * tokens, dim], for tokens in the given range, multiplied by scale
 * [kv_heads, group * tokens]. All heads of a token are spread by factor and quantized together. The
 * results are quantized [tokens, heads * dim] and largest [tokens]. scratch holds 2 * heads * dim floats. */
void quantize_mixed(size_t from, size_t to, Shape shape, const float *mixed, const float *scale, Factor factor,
                    float *scratch, uint8_t *quantized, float *largest, uint8_t *rest);

/* So many tokens attend together; each such block of them is a unit of each head's work. */
enum { TOKENS_AT_ONCE = 8 };

/* Floats of scratch memory that attention needs, for rows of queries of dim values. */
#define ATTEND_SCRATCH(rows, dim) ((rows) * (2 * (dim) + 64 + 2))

/* Attention of queries [kv_heads, group * tokens, dim], quantized with query_scale [kv_heads, group * tokens], and rest
 * if not NULL, to keys [kv_heads, cells, dim] with key_scale [kv_heads, cells], and values [kv_heads, cells, dim] with
 * value_scale [cells]. There are kv_heads units for each TOKENS_AT_ONCE tokens. The result is mixed
 * [kv_heads, group * tokens, dim]; it is zero where a token sees no cell. scratch holds ATTEND_SCRATCH floats for the
 * rows of a unit, group * TOKENS_AT_ONCE. */
void attend_bytes(size_t from, size_t to, Shape shape, Sight sight, const uint8_t *queries, const float *query_scale,
                  const uint8_t *rest, const uint8_t *keys, const float *key_scale, const uint8_t *values,
                  const float *value_scale, float *scratch, float *mixed);

/* The same in float: queries and mixed are [tokens, kv_heads * group * dim], keys and values [kv_heads, cells, dim]. */
void attend_floats(size_t from, size_t to, Shape shape, Sight sight, const float *queries, const float *keys,
                   const float *values, float *scratch, float *mixed);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
