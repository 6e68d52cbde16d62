/* Calls every function of rows.h with random shapes and values. `make sanitize` compiles it with sanitizers.
 *
 *     fuzz_rows SEED SECONDS
 *
 * Every buffer lies on the heap by itself and is exactly as large as rows.h says, so that a step outside is caught.
 * Each case is computed twice: in one call for all rows, and in calls for spans of them, in mixed order. What is in
 * the outputs and the scratch memory beforehand differs, yet both must give the same bits. So all of the output is
 * written, and no row depends on how rows are split, on what was in memory, or on where a buffer lies. What the numbers
 * mean is for tests/test_kernels.py to check; here they must lie in their ranges.
 *
 * Case n of seed s is case 0 of seed s + n, so that a finding can be repeated at once.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rows.h"

enum {
    MOST_VALUES = 1 << 14, /* in one tensor: many small cases find more than a few large ones */
    MOST_HEADS = 512,
    MOST_BUFFERS = 20,
    MOST_PARTS = 24, /* that a factor mixes */
    MOST_SPANS = 8
};

/* The case at hand. */
static struct {
    unsigned long long seed;
    char what[128];
    void *buffers[MOST_BUFFERS];
    size_t count;
} now;

/* Says which case it was when a check or a sanitizer ends the process. */
static void tell(int signal) {
    (void)signal;
    fprintf(stderr, "\nfound in %s; SEED=%llu begins with this case\n", now.what, now.seed);
}

static void check(int holds, const char *expected) {
    if (holds) return;
    fprintf(stderr, "expected %s", expected);
    abort();
}

/* Random numbers: splitmix64. */
static uint64_t state;

static uint64_t random_bits(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static size_t below(size_t n) { return random_bits() % n; }

/* From 1 to most. Many are next to a power of two, where vectors end; 1 and most are among them. */
static size_t size_up_to(size_t most) {
    size_t n = below(2) ? 1 + below(most) : ((size_t)1 << below(12)) + below(3) - 1;
    return n < 1 ? 1 : n > most ? most : n;
}

static void *block(size_t bytes) {
    void *memory = malloc(bytes);
    check(memory && now.count < MOST_BUFFERS, "memory");
    now.buffers[now.count++] = memory;
    return memset(memory, (int)below(256), bytes);
}

static void free_blocks(void) {
    while (now.count) free(now.buffers[--now.count]);
}

/* What the values of a case are like: such that nothing overflows, or huge ones too, or infinities and NaNs too. */
typedef enum { ORDINARY, FINITE, ANY } Kind;

static float with_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float value(Kind kind) {
    enum { EXPONENT = 0x7F800000 }; /* all of its bits set: an infinity or a NaN */
    uint32_t bits = (uint32_t)random_bits(), sign = bits & 0x80000000u;
    float ordinary = (float)(int32_t)bits / 2147483648.0f;
    switch (below(16)) {
        case 0:
            return with_bits(sign); /* zero */
        case 1:
            return with_bits(bits & ~(uint32_t)EXPONENT); /* too small to be normal */
        case 2:
            return ordinary * 1e-20f;
        case 3:
            return ordinary * 1e3f;
        case 4:
            return kind == ORDINARY ? ordinary : ordinary * 3e38f;
        case 5:
            return kind == ANY ? with_bits(bits) : ordinary;
        case 6:
            return kind == ANY ? with_bits(sign | EXPONENT) : ordinary;
        default:
            return ordinary * 4.0f;
    }
}

static float *floats(size_t n, Kind kind) {
    float *x = block(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = value(kind);
    return x;
}

/* Scales, which are largest magnitudes. */
static float *scales(size_t n, Kind kind) {
    float *x = floats(n, kind);
    for (size_t i = 0; i < n; i++) x[i] = fabsf(x[i]);
    return x;
}

typedef struct {
    size_t from, to;
} Span;

/* All units in one span in the first pass; random spans in mixed order in the second. Returns how many. */
static size_t split(size_t units, int pass, Span *spans) {
    spans[0] = (Span){0, units};
    size_t count = 1;
    for (size_t wanted = pass ? 1 + below(MOST_SPANS) : 1; count < wanted; count++) {
        Span *whole = &spans[below(count)];
        size_t middle = whole->from + below(whole->to - whole->from + 1);
        spans[count] = (Span){whole->from, middle};
        whole->from = middle;
    }
    return count;
}

/* A call of one of the functions. What its parts mean is up to the function. */
typedef struct Call Call;
struct Call {
    void (*run)(const Call *, size_t from, size_t to, void *const *out, float *scratch);
    size_t units;
    const void *in[7];
    Shape shape;
    Sight sight;
    Factor factor;
    size_t width;
    float epsilon;
    int one_scale;
    size_t scratch_values;
    size_t out_bytes[4];
};

enum { OUTPUTS = sizeof((Call *)0)->out_bytes / sizeof(size_t) };

/* Computes the outputs in both passes, compares them, and leaves them in out. */
static void run_twice(const Call *call, void **out) {
    void *again[OUTPUTS] = {NULL};
    for (int pass = 0; pass < 2; pass++) {
        void **outputs = pass ? again : out;
        for (size_t i = 0; i < OUTPUTS; i++) outputs[i] = call->out_bytes[i] ? block(call->out_bytes[i]) : NULL;
        float *scratch = call->scratch_values ? block(call->scratch_values * sizeof *scratch) : NULL;
        Span spans[MOST_SPANS];
        size_t count = split(call->units, pass, spans);
        for (size_t i = 0; i < count; i++) call->run(call, spans[i].from, spans[i].to, outputs, scratch);
    }
    for (size_t i = 0; i < OUTPUTS; i++)
        check(!call->out_bytes[i] || !memcmp(out[i], again[i], call->out_bytes[i]), "the same bits from every split");
}

/* A factor for rows of width values: parts of the largest power of two that divides width, any number of them that
 * divides the number in a row. */
static Factor random_factor(size_t width, Kind kind) {
    size_t blocks = width / (width & (~width + 1)), parts = 1 + below(MOST_PARTS);
    while (blocks % parts) parts--;
    return (Factor){floats(parts * parts, kind), parts};
}

/* Bytes of the second term of n values, which some calls ask for. */
static size_t perhaps(size_t n) { return below(2) ? n : 0; }

static void check_uint8(const uint8_t *quantized, size_t n) {
    for (size_t i = 0; i < n; i++) check(quantized[i] >= 1, "uint8 from 1 to 255");
}

static void check_largest(const float *largest, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &largest[i], sizeof bits);
        check(bits < 0x7F800000u, "largest magnitudes that are finite and not negative");
    }
}

static void run_add_norm(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    add_norm_quantize(from, to, c->width, c->in[0], c->in[1], c->in[2], c->in[3], c->epsilon, c->factor, scratch,
                      out[0], out[1], out[2], out[3]);
}

static void fuzz_add_norm(Kind kind) {
    size_t width = size_up_to(MOST_VALUES), rows = size_up_to(MOST_VALUES / width), n = rows * width;
    snprintf(now.what, sizeof now.what, "add_norm_quantize, %zu rows of %zu", rows, width);
    Call call = {run_add_norm,
                 rows,
                 {floats(n, kind), floats(n, kind), scales(rows, kind), floats(width, kind)},
                 .factor = random_factor(width, kind),
                 .width = width,
                 .epsilon = 1e-6f,
                 .scratch_values = 2 * width,
                 .out_bytes = {n * sizeof(float), n, rows * sizeof(float), perhaps(n)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    check_uint8(out[1], n);
    if (out[3]) check_uint8(out[3], n);
    check_largest(out[2], rows);
}

static void run_gate(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    gate_quantize(from, to, c->width, c->in[0], c->in[1], c->in[2], c->factor, scratch, out[0], out[1], out[2]);
}

static void fuzz_gate(Kind kind) {
    size_t width = size_up_to(MOST_VALUES), rows = size_up_to(MOST_VALUES / width), n = rows * width;
    snprintf(now.what, sizeof now.what, "gate_quantize, %zu rows of %zu", rows, width);
    Call call = {run_gate,
                 rows,
                 {floats(n, kind), floats(n, kind), scales(rows, kind)},
                 .factor = random_factor(width, kind),
                 .width = width,
                 .scratch_values = 2 * width,
                 .out_bytes = {n, rows * sizeof(float), perhaps(n)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    check_uint8(out[0], n);
    if (out[2]) check_uint8(out[2], n);
    check_largest(out[1], rows);
}

/* Heads of an even size, if they are to be rotated, or of any size. */
static Shape random_shape(size_t most_in_group, int even) {
    size_t left = MOST_VALUES;
    Shape shape;
    left /= shape.kv_heads = below(8) ? 1 + below(4) : size_up_to(MOST_HEADS);
    left /= shape.group = most_in_group == 1 || left < most_in_group ? 1 : 1 + below(most_in_group);
    left /= shape.dim = even ? 2 * size_up_to(left / 2) : size_up_to(left);
    shape.tokens = size_up_to(left);
    return shape;
}

static void run_queries(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    rotate_queries(from, to, c->shape, c->in[0], c->in[1], c->epsilon, c->in[2], c->in[3], c->factor, scratch, out[0],
                   out[1], out[2]);
}

static void run_keys(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    rotate_keys(from, to, c->shape, c->in[0], c->in[1], c->epsilon, c->in[2], c->in[3], c->factor, c->in[4], scratch,
                out[0], out[1]);
}

static void fuzz_rotation(Kind kind, int of_keys) {
    Shape shape = random_shape(of_keys ? 1 : 8, 1);
    size_t rows = shape.kv_heads * shape.group * shape.tokens, n = rows * shape.dim,
           angles = shape.tokens * (shape.dim / 2);
    int normed = (int)below(2);
    snprintf(now.what, sizeof now.what, "rotate_%s, %zu tokens of %zu x %zu heads of %zu, %s norm",
             of_keys ? "keys" : "queries", shape.tokens, shape.kv_heads, shape.group, shape.dim,
             normed ? "with" : "without");
    Call call = {of_keys ? run_keys : run_queries,
                 of_keys ? shape.kv_heads : shape.tokens,
                 {floats(n, kind), normed ? floats(shape.dim, kind) : NULL, floats(angles, kind), floats(angles, kind),
                  of_keys ? floats(shape.kv_heads * shape.dim, kind) : NULL},
                 .shape = shape,
                 .factor = random_factor(shape.dim, kind),
                 .epsilon = 1e-6f,
                 .scratch_values = SCRATCH_PER_DIM * shape.dim,
                 .out_bytes = {n, rows * sizeof(float), of_keys ? 0 : perhaps(n)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    check_uint8(out[0], n);
    if (out[2]) check_uint8(out[2], n);
    check_largest(out[1], rows);
}

static void fuzz_queries(Kind kind) { fuzz_rotation(kind, 0); }

static void fuzz_keys(Kind kind) { fuzz_rotation(kind, 1); }

static void run_values(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    (void)scratch;
    quantize_values(from, to, c->shape, c->in[0], c->in[1], c->one_scale, out[0], out[1]);
}

static void fuzz_values(Kind kind) {
    Shape shape = random_shape(1, 0);
    size_t n = shape.tokens * shape.kv_heads * shape.dim;
    int one_scale = (int)below(2);
    snprintf(now.what, sizeof now.what, "quantize_values, %zu tokens of %zu heads of %zu, %s", shape.tokens,
             shape.kv_heads, shape.dim, one_scale ? "one scale" : "a scale each");
    Call call = {run_values,     shape.tokens,           {floats(n, kind), scales(one_scale ? 1 : shape.tokens, kind)},
                 .shape = shape, .one_scale = one_scale, .out_bytes = {n, shape.tokens * sizeof(float)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    check_uint8(out[0], n);
    check_largest(out[1], shape.tokens);
}

static void run_softmax(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    softmax_quantize(from, to, c->shape.kv_heads, c->shape.tokens, c->width, c->in[0], c->in[1], c->in[2], c->in[3],
                     scratch, out[0], out[1], out[2]);
}

static void fuzz_softmax(Kind kind) {
    Shape shape = random_shape(1, 0);
    size_t heads = shape.kv_heads, tokens = shape.tokens, width = shape.dim, rows = heads * tokens, n = rows * width;
    snprintf(now.what, sizeof now.what, "softmax_quantize, %zu heads, %zu tokens, %zu keys", heads, tokens, width);
    /* Keys are hidden from tokens at the ends, in the middle, and from some tokens altogether. */
    float *bias = floats(tokens * width, kind);
    for (size_t token = 0; token < tokens; token++) {
        size_t first = below(width + 1), last = below(width + 1);
        for (size_t i = 0; i < width; i++)
            if (i < first || i > last || !below(5)) bias[token * width + i] = -1e9f;
    }
    Call call = {run_softmax,
                 tokens,
                 {floats(n, kind), scales(rows, kind), bias, scales(width, kind)},
                 .shape = shape,
                 .width = width,
                 .scratch_values = SOFTMAX_SCRATCH(width),
                 .out_bytes = {n, rows * sizeof(float), perhaps(n)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    const uint8_t *quantized = out[0];
    for (size_t i = 0; i < n; i++)
        check(bias[i / width % tokens * width + i % width] > -1e9f || quantized[i] == 0, "no weight on hidden keys");
    check_largest(out[1], rows);
    if (out[2]) check_uint8(out[2], n);
}

static void run_mixed(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    quantize_mixed(from, to, c->shape, c->in[0], c->in[1], c->factor, scratch, out[0], out[1], out[2]);
}

static void fuzz_mixed(Kind kind) {
    Shape shape = random_shape(8, 0);
    size_t heads = shape.kv_heads * shape.group, rows = heads * shape.tokens, n = rows * shape.dim;
    snprintf(now.what, sizeof now.what, "quantize_mixed, %zu tokens of %zu x %zu heads of %zu", shape.tokens,
             shape.kv_heads, shape.group, shape.dim);
    Call call = {run_mixed,
                 shape.tokens,
                 {floats(n, kind), scales(rows, kind)},
                 .shape = shape,
                 .factor = random_factor(heads * shape.dim, kind),
                 .scratch_values = 2 * heads * shape.dim,
                 .out_bytes = {n, shape.tokens * sizeof(float), perhaps(n)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    check_uint8(out[0], n);
    if (out[2]) check_uint8(out[2], n);
    check_largest(out[1], shape.tokens);
}

/* Segments of a pool, in any order; they may overlap and be empty. Tokens may have their first ones in common. */
static Sight random_sight(size_t tokens, size_t cells) {
    size_t segments = 1 + below(4), shared = below(segments + 1);
    int64_t *bounds = block(tokens * segments * 2 * sizeof *bounds);
    for (size_t token = 0; token < tokens; token++)
        for (size_t i = 0; i < segments; i++) {
            int64_t *own = bounds + 2 * (token * segments + i);
            size_t first = below(cells + 1), n = below(4) ? below(cells - first + 1) : 0;
            own[0] = token && i < shared ? bounds[2 * i] : (int64_t)first;
            own[1] = token && i < shared ? bounds[2 * i + 1] : (int64_t)(first + n);
        }
    return (Sight){cells, segments, bounds};
}

static size_t attention_units(Shape shape) {
    return (shape.tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE * shape.kv_heads;
}

static uint8_t *bytes(size_t n) {
    uint8_t *x = block(n);
    for (size_t i = 0; i < n; i++) x[i] = (uint8_t)random_bits();
    return x;
}

static void run_attend_bytes(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    attend_bytes(from, to, c->shape, c->sight, c->in[0], c->in[1], c->in[2], c->in[3], c->in[4], c->in[5], c->in[6],
                 scratch, out[0]);
}

static void fuzz_attend_bytes(Kind kind) {
    Shape shape = random_shape(8, 0);
    size_t cells = size_up_to(MOST_VALUES / (shape.kv_heads * shape.dim)), rows = shape.group * shape.tokens;
    size_t pool = shape.kv_heads * shape.dim * cells, queries = shape.kv_heads * rows * shape.dim;
    Sight sight = random_sight(shape.tokens, cells);
    snprintf(now.what, sizeof now.what, "attend_bytes, %zu tokens of %zu x %zu heads of %zu, %zu cells", shape.tokens,
             shape.kv_heads, shape.group, shape.dim, cells);
    Call call = {run_attend_bytes,
                 attention_units(shape),
                 {bytes(queries), scales(shape.kv_heads * rows, kind), below(2) ? bytes(queries) : NULL, bytes(pool),
                  scales(shape.kv_heads * cells, kind), bytes(pool), scales(cells, kind)},
                 .shape = shape,
                 .sight = sight,
                 .scratch_values = ATTEND_SCRATCH(TOKENS_AT_ONCE * shape.group, shape.dim),
                 .out_bytes = {queries * sizeof(float)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
}

static void run_attend_floats(const Call *c, size_t from, size_t to, void *const *out, float *scratch) {
    attend_floats(from, to, c->shape, c->sight, c->in[0], c->in[1], c->in[2], scratch, out[0]);
}

static void fuzz_attend_floats(Kind kind) {
    Shape shape = random_shape(8, 0);
    size_t cells = size_up_to(MOST_VALUES / (shape.kv_heads * shape.dim));
    size_t pool = shape.kv_heads * shape.dim * cells;
    size_t queries = shape.kv_heads * shape.group * shape.tokens * shape.dim;
    Sight sight = random_sight(shape.tokens, cells);
    snprintf(now.what, sizeof now.what, "attend_floats, %zu tokens of %zu x %zu heads of %zu, %zu cells", shape.tokens,
             shape.kv_heads, shape.group, shape.dim, cells);
    float *values = floats(pool, kind), largest = 0.0f;
    for (size_t i = 0; i < pool; i++) largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
    Call call = {run_attend_floats,
                 attention_units(shape),
                 {floats(queries, kind), floats(pool, kind), values},
                 .shape = shape,
                 .sight = sight,
                 .scratch_values = ATTEND_SCRATCH(TOKENS_AT_ONCE * shape.group, shape.dim),
                 .out_bytes = {queries * sizeof(float)}};
    void *out[OUTPUTS];
    run_twice(&call, out);
    if (kind != ORDINARY) return;
    const float *mixed = out[0];
    for (size_t i = 0; i < queries; i++) check(fabsf(mixed[i]) <= largest * 1.001f, "a mean of the values");
}

int main(int count, char **arguments) {
    void (*const functions[])(Kind) = {fuzz_add_norm, fuzz_gate,  fuzz_queries,      fuzz_keys,         fuzz_values,
                                       fuzz_softmax,  fuzz_mixed, fuzz_attend_bytes, fuzz_attend_floats};
    if (count != 3) return fprintf(stderr, "usage: %s SEED SECONDS\n", arguments[0]), 2;
    unsigned long long seed = strtoull(arguments[1], NULL, 10);
    time_t end = time(NULL) + strtol(arguments[2], NULL, 10);
    printf("SEED=%llu\n", seed);
    fflush(stdout); /* before anything is found */
    signal(SIGABRT, tell);
    for (now.seed = seed; time(NULL) < end; now.seed++) {
        state = now.seed;
        Kind kind = (Kind)below(3);
        functions[below(sizeof functions / sizeof *functions)](kind);
        free_blocks();
    }
    printf("%llu cases, nothing found\n", now.seed - seed);
    return now.seed == seed; /* no case is no check */
}
