/* The fused operators, as custom operators of ONNX Runtime.
 *
 * The graph also defines each of them as a function of stock operators (export/graph/fused.py). ONNX Runtime runs that
 * function where this library is not registered. That file and rows.h say what the operators compute. This file checks
 * the shapes of their inputs, makes their outputs, and splits their rows over the threads of ONNX Runtime. A model file
 * may come from a stranger: whatever its shapes and attributes are, an operator computes or refuses.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <onnxruntime_c_api.h>

#include "rows.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT
#endif

/* The domain of the operators, also in export/graph/writer.py. Its number changes with the meaning of any operator: a
 * graph with another number finds no operator here and runs on its own functions. */
static const char DOMAIN[] = "fsrm.2";

enum {
    MAX_INPUTS = 13,
    MAX_OUTPUTS = 5,
    MAX_RANK = 4,
    MAX_HEADS = 1 << 16,
    /* So many values are work enough for one task, and so many fit into its scratch memory on the stack. */
    VALUES_PER_TASK = 1 << 14
};

/* ONNX Runtime's functions, set when the library is registered. */
static const OrtApi *api;

/* Returns from the calling function if the expression yields a status; no status means success. */
#define TRY(expression)                      \
    do {                                     \
        OrtStatusPtr status_ = (expression); \
        if (status_) return status_;         \
    } while (0)

typedef struct {
    void *data;
    size_t rank;
    int64_t shape[MAX_RANK];
} Tensor;

/* One call of an operator. Its work consists of units (tokens, rows or heads), which threads may take in any order. */
typedef struct Work Work;
struct Work {
    const char *label; /* the operator's name */
    Tensor in[MAX_INPUTS];
    size_t inputs, outputs;
    void *out[MAX_OUTPUTS]; /* those that the operator does not have stay NULL */
    Shape shape;
    Sight sight;
    Factor factor;
    float epsilon;
    size_t width;          /* values per unit */
    size_t units;          /* how many there are */
    size_t units_per_task; /* 0: as many as make VALUES_PER_TASK */
    size_t scratch_values; /* floats of scratch memory that run needs, however many units it is given */
    void (*run)(const Work *, size_t from, size_t to, float *scratch);
    _Atomic int out_of_memory; /* tasks set it, on several threads */
};

typedef struct {
    OrtCustomOp base;                                 /* what ONNX Runtime sees; it hands back a pointer to this */
    const char *label;                                /* the operator's name */
    ONNXTensorElementDataType inputs[MAX_INPUTS + 1]; /* ended by UNDEFINED, which is 0 */
    ONNXTensorElementDataType outputs[MAX_OUTPUTS + 1];
    const char *count; /* the attribute that counts heads, or NULL */
    int has_epsilon;   /* whether there is an attribute "epsilon" */
    /* Checks the inputs' shapes, makes the outputs and says how to fill them. */
    OrtStatusPtr (*prepare)(Work *work, OrtKernelContext *context, int64_t count);
} Operator;

_Static_assert(offsetof(Operator, base) == 0, "a pointer to an operator's base is a pointer to the operator");

/* An operator in one place of a graph, with the attributes it has there. */
typedef struct {
    const Operator *operator;
    float epsilon;
    int64_t count;
} Kernel;

static OrtStatusPtr refuse(const char *label, const char *why) {
    char message[128];
    snprintf(message, sizeof message, "%s:%s: %s", DOMAIN, label, why);
    return api->CreateStatus(ORT_INVALID_ARGUMENT, message);
}

static OrtStatusPtr misfit(const Work *work) {
    return refuse(work->label, "the shapes of its inputs do not fit together");
}

static OrtStatusPtr read_input(Work *work, const OrtKernelContext *context, size_t index) {
    Tensor *tensor = &work->in[index];
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    TRY(api->KernelContext_GetInput(context, index, &value));
    TRY(api->GetTensorMutableData((OrtValue *)value, &tensor->data)); /* there is no function for data that stays */
    TRY(api->GetTensorTypeAndShape(value, &info));
    OrtStatusPtr status = api->GetDimensionsCount(info, &tensor->rank);
    int usable = tensor->rank <= MAX_RANK;
    if (!status && usable) status = api->GetDimensions(info, tensor->shape, tensor->rank);
    api->ReleaseTensorTypeAndShapeInfo(info);
    TRY(status);
    /* Without empty inputs, every product of sizes below is at most the size of a tensor that is in memory. */
    for (size_t i = 0; usable && i < tensor->rank; i++) usable = tensor->shape[i] > 0;
    return usable ? NULL : misfit(work);
}

static OrtStatusPtr make_output(Work *work, OrtKernelContext *context, size_t index, const int64_t *shape,
                                size_t rank) {
    OrtValue *value = NULL;
    TRY(api->KernelContext_GetOutput(context, index, shape, rank, &value));
    return api->GetTensorMutableData(value, &work->out[index]);
}

static int fits(const Tensor *tensor, const int64_t *shape, size_t rank) {
    int same = tensor->rank == rank;
    for (size_t i = 0; same && i < rank; i++) same = tensor->shape[i] == shape[i];
    return same;
}

/* A shape and its rank, as two arguments. */
#define SHAPE(...) ((int64_t[]){__VA_ARGS__}), sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)
#define FITS(work, index, ...) fits(&(work)->in[index], SHAPE(__VA_ARGS__))
#define MAKE(work, context, index, ...) TRY(make_output(work, context, index, SHAPE(__VA_ARGS__)))

/* Scratch memory lies on the stack, 64 KiB of it, which every thread has. Rows too long for that take their scratch
 * memory from the heap: next to the work on such a row, an allocation costs nothing. */
static void run_task(void *data, size_t index) {
    Work *work = data;
    size_t from = index * work->units_per_task, to = from + work->units_per_task;
    float on_stack[VALUES_PER_TASK];
    int is_long = work->scratch_values > VALUES_PER_TASK;
    float *scratch = is_long ? malloc(work->scratch_values * sizeof *scratch) : on_stack;
    if (scratch)
        work->run(work, from, to < work->units ? to : work->units, scratch);
    else
        work->out_of_memory = 1;
    if (is_long) free(scratch);
}

static OrtStatusPtr ORT_API_CALL compute(void *opaque, OrtKernelContext *context) {
    const Kernel *kernel = opaque;
    const Operator *operator = kernel->operator;
    Work work = {.label = operator->label, .epsilon = kernel->epsilon};
    while (operator->outputs[work.outputs]) work.outputs++;
    for (; operator->inputs[work.inputs]; work.inputs++) TRY(read_input(&work, context, work.inputs));
    TRY(operator->prepare(&work, context, kernel->count));
    if (!work.units_per_task) work.units_per_task = VALUES_PER_TASK / work.width + 1;
    size_t tasks = (work.units + work.units_per_task - 1) / work.units_per_task;
    TRY(api->KernelContext_ParallelFor(context, run_task, tasks, 0, &work));
    return work.out_of_memory ? refuse(operator->label, "out of memory") : NULL;
}

/* In the shapes below: S tokens of this pass, T tokens that they may look at, H hidden values, I values of the gated
 * layer, kv heads of keys and values, group query heads for each of those, d values per head. */

/* Reads a factor, a square matrix that mixes the parts of a row of width values. A part has as many values as the
 * largest power of two that divides width, and their number divides the number of such parts in the row. */
static OrtStatusPtr read_factor(Work *work, size_t index, int64_t width) {
    int64_t parts = work->in[index].rank == 2 ? work->in[index].shape[0] : 0, size = width & -width;
    if (parts < 1 || !FITS(work, index, parts, parts) || parts > MAX_HEADS || width / size % parts) return misfit(work);
    work->factor = (Factor){work->in[index].data, parts};
    return NULL;
}

/* AddNormQuantize: residual [S, H], update [S, H], update scale [S, 1], weight [H], factor [F, F]
 * -> sum [S, H], quantized [S, H], largest [S, 1]
 * Operators whose name ends in Twice give the second term too, as the last of their outputs. */
static void run_add_norm(const Work *work, size_t from, size_t to, float *scratch) {
    add_norm_quantize(from, to, work->width, work->in[0].data, work->in[1].data, work->in[2].data, work->in[3].data,
                      work->epsilon, work->factor, scratch, work->out[0], work->out[1], work->out[2], work->out[3]);
}

static OrtStatusPtr prepare_add_norm(Work *work, OrtKernelContext *context, int64_t count) {
    (void)count;
    int64_t tokens = work->in[0].shape[0], width = work->in[0].shape[1];
    if (!FITS(work, 0, tokens, width) || !FITS(work, 1, tokens, width) || !FITS(work, 2, tokens, 1) ||
        !FITS(work, 3, width))
        return misfit(work);
    TRY(read_factor(work, 4, width));
    MAKE(work, context, 0, tokens, width);
    MAKE(work, context, 1, tokens, width);
    MAKE(work, context, 2, tokens, 1);
    if (work->outputs == 4) MAKE(work, context, 3, tokens, width);
    work->units = tokens;
    work->width = width;
    work->scratch_values = 2 * width;
    work->run = run_add_norm;
    return NULL;
}

/* GateQuantize: gate [S, I], up [S, I], scale [S, 1], factor [F, F] -> quantized [S, I], largest [S, 1] */
static void run_gate(const Work *work, size_t from, size_t to, float *scratch) {
    gate_quantize(from, to, work->width, work->in[0].data, work->in[1].data, work->in[2].data, work->factor, scratch,
                  work->out[0], work->out[1], work->out[2]);
}

static OrtStatusPtr prepare_gate(Work *work, OrtKernelContext *context, int64_t count) {
    (void)count;
    int64_t tokens = work->in[0].shape[0], width = work->in[0].shape[1];
    if (!FITS(work, 0, tokens, width) || !FITS(work, 1, tokens, width) || !FITS(work, 2, tokens, 1))
        return misfit(work);
    TRY(read_factor(work, 3, width));
    MAKE(work, context, 0, tokens, width);
    MAKE(work, context, 1, tokens, 1);
    if (work->outputs == 3) MAKE(work, context, 2, tokens, width);
    work->units = tokens;
    work->width = width;
    work->scratch_values = 2 * width;
    work->run = run_gate;
    return NULL;
}

/* Checks queries or keys [S, heads * d], their rotation, cos and sin [1, S, d / 2], the factor that spreads a head of d
 * values, and the norm's weight [d], which is the input with the number norm; 0 means that there is none. */
static OrtStatusPtr check_heads(Work *work, int64_t kv_heads, size_t norm) {
    int64_t tokens = work->in[0].shape[0], width = work->in[0].shape[1], half = work->in[1].shape[2];
    if (work->in[0].rank != 2 || !FITS(work, 1, 1, tokens, half) || !FITS(work, 2, 1, tokens, half) || half > width)
        return misfit(work);
    int64_t dim = 2 * half, group = width / dim / kv_heads;
    if (group < 1 || group * kv_heads * dim != width || (norm && !FITS(work, norm, dim))) return misfit(work);
    TRY(read_factor(work, 3, dim));
    work->shape = (Shape){tokens, kv_heads, group, dim};
    work->scratch_values = SCRATCH_PER_DIM * dim;
    return NULL;
}

/* NormRotateQueries: queries [S, heads * d], cos, sin, factor, weight -> [kv, group * S, d], [kv, group * S, 1];
 * RotateQueries: the same without weight */
static void run_queries(const Work *work, size_t from, size_t to, float *scratch) {
    rotate_queries(from, to, work->shape, work->in[0].data, work->in[4].data, work->epsilon, work->in[1].data,
                   work->in[2].data, work->factor, scratch, work->out[0], work->out[1], work->out[2]);
}

static OrtStatusPtr prepare_queries(Work *work, OrtKernelContext *context, int64_t kv_heads) {
    TRY(check_heads(work, kv_heads, work->inputs == 5 ? 4 : 0));
    Shape shape = work->shape;
    MAKE(work, context, 0, shape.kv_heads, shape.group * shape.tokens, shape.dim);
    MAKE(work, context, 1, shape.kv_heads, shape.group * shape.tokens, 1);
    if (work->outputs == 3) MAKE(work, context, 2, shape.kv_heads, shape.group * shape.tokens, shape.dim);
    work->units = shape.tokens;
    work->width = shape.kv_heads * shape.group * shape.dim;
    work->run = run_queries;
    return NULL;
}

/* NormRotateKeys: keys [S, kv * d], cos, sin, factor, mean [kv, d], weight -> [kv, d, S], [kv, 1, S]; RotateKeys: the
 * same without weight */
static void run_keys(const Work *work, size_t from, size_t to, float *scratch) {
    rotate_keys(from, to, work->shape, work->in[0].data, work->in[5].data, work->epsilon, work->in[1].data,
                work->in[2].data, work->factor, work->in[4].data, scratch, work->out[0], work->out[1]);
}

static OrtStatusPtr prepare_keys(Work *work, OrtKernelContext *context, int64_t kv_heads) {
    TRY(check_heads(work, kv_heads, work->inputs == 6 ? 5 : 0));
    Shape shape = work->shape;
    if (shape.group != 1 || !FITS(work, 4, shape.kv_heads, shape.dim)) return misfit(work);
    MAKE(work, context, 0, shape.kv_heads, shape.dim, shape.tokens);
    MAKE(work, context, 1, shape.kv_heads, 1, shape.tokens);
    work->units = shape.kv_heads;
    work->units_per_task = 1;
    work->run = run_keys;
    return NULL;
}

/* QuantizeValues: values [S, kv * d], scale [S, 1] or [1, 1] -> quantized [kv, S, d], largest [S, 1] */
static void run_values(const Work *work, size_t from, size_t to, float *scratch) {
    (void)scratch;
    int one_scale = work->in[1].shape[0] == 1;
    quantize_values(from, to, work->shape, work->in[0].data, work->in[1].data, one_scale, work->out[0], work->out[1]);
}

static OrtStatusPtr prepare_values(Work *work, OrtKernelContext *context, int64_t kv_heads) {
    int64_t tokens = work->in[0].shape[0], width = work->in[0].shape[1];
    if (!FITS(work, 0, tokens, width) || width % kv_heads || (!FITS(work, 1, tokens, 1) && !FITS(work, 1, 1, 1)))
        return misfit(work);
    work->shape = (Shape){tokens, kv_heads, 1, width / kv_heads};
    MAKE(work, context, 0, kv_heads, tokens, width / kv_heads);
    MAKE(work, context, 1, tokens, 1);
    work->units = tokens;
    work->width = width;
    work->run = run_values;
    return NULL;
}

/* SoftmaxQuantize: scores [kv, group * S, T], their scale [kv, group * S, 1], bias [S, T], value scale [T, 1]
 * -> quantized [kv, group * S, T], largest [kv, group * S, 1] */
static void run_softmax(const Work *work, size_t from, size_t to, float *scratch) {
    Shape shape = work->shape;
    softmax_quantize(from, to, shape.kv_heads * shape.group, shape.tokens, work->in[3].shape[0], work->in[0].data,
                     work->in[1].data, work->in[2].data, work->in[3].data, scratch, work->out[0], work->out[1],
                     work->out[2]);
}

static OrtStatusPtr prepare_softmax(Work *work, OrtKernelContext *context, int64_t count) {
    (void)count;
    int64_t kv_heads = work->in[0].shape[0], rows = work->in[0].shape[1], seen = work->in[0].shape[2];
    int64_t tokens = work->in[2].shape[0];
    if (!FITS(work, 0, kv_heads, rows, seen) || !FITS(work, 1, kv_heads, rows, 1) || !FITS(work, 2, tokens, seen) ||
        !FITS(work, 3, seen, 1) || rows % tokens)
        return misfit(work);
    MAKE(work, context, 0, kv_heads, rows, seen);
    MAKE(work, context, 1, kv_heads, rows, 1);
    if (work->outputs == 3) MAKE(work, context, 2, kv_heads, rows, seen);
    work->shape = (Shape){tokens, kv_heads, rows / tokens, 0};
    work->units = tokens;
    work->width = kv_heads * (rows / tokens) * seen;
    work->scratch_values = SOFTMAX_SCRATCH(seen);
    work->run = run_softmax;
    return NULL;
}

/* QuantizeMixed: mixed [kv, group * S, d], scale [kv, group * S, 1], factor [F, F] -> quantized [S, heads * d],
 * largest [S, 1] */
static void run_mixed(const Work *work, size_t from, size_t to, float *scratch) {
    quantize_mixed(from, to, work->shape, work->in[0].data, work->in[1].data, work->factor, scratch, work->out[0],
                   work->out[1], work->out[2]);
}

static OrtStatusPtr prepare_mixed(Work *work, OrtKernelContext *context, int64_t group) {
    int64_t kv_heads = work->in[0].shape[0], rows = work->in[0].shape[1], dim = work->in[0].shape[2];
    if (!FITS(work, 0, kv_heads, rows, dim) || !FITS(work, 1, kv_heads, rows, 1) || rows % group) return misfit(work);
    int64_t tokens = rows / group, width = kv_heads * group * dim;
    TRY(read_factor(work, 2, width));
    work->shape = (Shape){tokens, kv_heads, group, dim};
    MAKE(work, context, 0, tokens, width);
    MAKE(work, context, 1, tokens, 1);
    if (work->outputs == 3) MAKE(work, context, 2, tokens, width);
    work->units = tokens;
    work->width = width;
    work->scratch_values = 2 * width;
    work->run = run_mixed;
    return NULL;
}

/* Reads the cells [S] of new tokens and the segments [N, K, 2] that query tokens attend to, both int64, from the inputs
 * with the numbers cells and cells + 1. They must lie within a pool. Sets the sight. */
static OrtStatusPtr read_sight(Work *work, size_t cells, int64_t new_tokens, int64_t tokens, int64_t pool) {
    int64_t segments = work->in[cells + 1].rank == 3 ? work->in[cells + 1].shape[1] : 0;
    const int64_t *places = work->in[cells].data, *bounds = work->in[cells + 1].data;
    if (!FITS(work, cells, new_tokens) || segments < 1 || !FITS(work, cells + 1, tokens, segments, 2))
        return misfit(work);
    for (int64_t i = 0; i < new_tokens; i++)
        if (places[i] < 0 || places[i] >= pool) return refuse(work->label, "a cell lies outside the pool");
    for (int64_t token = 0; token < tokens; token++) {
        size_t own = 0;
        for (int64_t i = 0; i < segments; i++, bounds += 2) {
            if (bounds[0] < 0 || bounds[1] < bounds[0] || bounds[1] > pool)
                return refuse(work->label, "a segment lies outside the pool");
            own += bounds[1] - bounds[0];
        }
        if (own > (size_t)pool) return refuse(work->label, "a token's segments overlap");
    }
    work->sight = (Sight){pool, segments, work->in[cells + 1].data};
    return NULL;
}

/* Divides the work of attention; a block of tokens is work enough for a task. */
static void work_in_blocks(Work *work) {
    Shape shape = work->shape;
    work->units = (shape.tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE * shape.kv_heads;
    work->units_per_task = 1;
    work->scratch_values = ATTEND_SCRATCH(TOKENS_AT_ONCE * shape.group, shape.dim);
}

/* Puts new items into the cells of a pool of rows, each of which has as many items as the pool has cells. The pool is
 * an input, and with the new items an output. Where the caller has bound both to the same memory, nothing else is
 * copied. Steps, in bytes, lead from one new row and from one new item to the next. */
static void append(const Work *work, size_t pool, size_t output, size_t rows, size_t size, size_t new, size_t row_step,
                   size_t item_step, size_t places) {
    size_t cells = work->sight.cells, count = work->in[places].shape[0];
    const int64_t *place = work->in[places].data;
    const char *items = work->in[new].data;
    char *out = work->out[output];
    if (out != work->in[pool].data) memcpy(out, work->in[pool].data, rows * cells * size);
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < count; i++)
            memcpy(out + (row * cells + place[i]) * size, items + row * row_step + i * item_step, size);
}

/* Puts new keys [kv, d, S] into their pool. Its shape is [kv, d, C] as in a graph that reads, but it holds the bytes of
 * [kv, C, d], since a token's own cells are read one after another. */
static void append_keys(const Work *work, size_t kv_heads, size_t dim) {
    size_t cells = work->sight.cells, count = work->in[10].shape[0];
    const int64_t *place = work->in[10].data;
    const uint8_t *keys = work->in[2].data;
    uint8_t *out = work->out[0];
    if (out != work->in[6].data) memcpy(out, work->in[6].data, kv_heads * cells * dim);
    for (size_t head = 0; head < kv_heads; head++)
        for (size_t i = 0; i < count; i++)
            for (size_t k = 0; k < dim; k++)
                out[(head * cells + place[i]) * dim + k] = keys[(head * dim + k) * count + i];
}

/* AttendBytes: queries [kv, group * N, d], their scale [kv, group * N, 1], new keys [kv, d, S], key scale [kv, 1, S],
 * new values [kv, S, d], value scale [S, 1], a pool of C cells of each of these four, cells [S], segments [N, K, 2]
 * -> the four pools with the new items, mixed [kv, group * N, d]; AttendBytesTwice: with the queries' second term as
 * the last input */
static void run_attend_bytes(const Work *work, size_t from, size_t to, float *scratch) {
    attend_bytes(from, to, work->shape, work->sight, work->in[0].data, work->in[1].data,
                 work->inputs == 13 ? work->in[12].data : NULL, work->out[0], work->out[1], work->out[2], work->out[3],
                 scratch, work->out[4]);
}

static OrtStatusPtr prepare_attend_bytes(Work *work, OrtKernelContext *context, int64_t count) {
    (void)count;
    const Tensor *in = work->in;
    int64_t kv_heads = in[0].shape[0], rows = in[0].shape[1], dim = in[0].shape[2], fresh = in[10].shape[0];
    int64_t tokens = in[11].shape[0], cells = in[9].shape[0];
    if (!FITS(work, 0, kv_heads, rows, dim) || !FITS(work, 1, kv_heads, rows, 1) ||
        !FITS(work, 2, kv_heads, dim, fresh) || !FITS(work, 3, kv_heads, 1, fresh) ||
        !FITS(work, 4, kv_heads, fresh, dim) || !FITS(work, 5, fresh, 1) || !FITS(work, 6, kv_heads, dim, cells) ||
        !FITS(work, 7, kv_heads, 1, cells) || !FITS(work, 8, kv_heads, cells, dim) || !FITS(work, 9, cells, 1) ||
        tokens < 1 || rows % tokens || (work->inputs == 13 && !FITS(work, 12, kv_heads, rows, dim)))
        return misfit(work);
    TRY(read_sight(work, 10, fresh, tokens, cells));
    MAKE(work, context, 0, kv_heads, dim, cells);
    MAKE(work, context, 1, kv_heads, 1, cells);
    MAKE(work, context, 2, kv_heads, cells, dim);
    MAKE(work, context, 3, cells, 1);
    MAKE(work, context, 4, kv_heads, rows, dim);
    append_keys(work, kv_heads, dim);
    append(work, 7, 1, kv_heads, sizeof(float), 3, fresh * sizeof(float), sizeof(float), 10);
    append(work, 8, 2, kv_heads, dim, 4, fresh * dim, dim, 10);
    append(work, 9, 3, 1, sizeof(float), 5, 0, sizeof(float), 10);
    work->shape = (Shape){tokens, kv_heads, rows / tokens, dim};
    work_in_blocks(work);
    work->run = run_attend_bytes;
    return NULL;
}

/* AttendFloats: queries [1, N, heads * d], new keys [1, S, kv * d], new values [S, kv * d], a pool of C cells of keys
 * and of values [1, kv, C, d], cells [S], segments [N, K, 2] -> the two pools with the new items, mixed [N, heads * d]
 */
static void run_attend_floats(const Work *work, size_t from, size_t to, float *scratch) {
    attend_floats(from, to, work->shape, work->sight, work->in[0].data, work->out[0], work->out[1], scratch,
                  work->out[2]);
}

static OrtStatusPtr prepare_attend_floats(Work *work, OrtKernelContext *context, int64_t count) {
    (void)count;
    const Tensor *in = work->in;
    if (in[0].rank != 3 || in[3].rank != 4) return misfit(work);
    int64_t tokens = in[0].shape[1], width = in[0].shape[2], fresh = in[2].shape[0];
    int64_t kv_heads = in[3].shape[1], cells = in[3].shape[2], dim = in[3].shape[3];
    if (kv_heads < 1 || dim < 1) return misfit(work);
    int64_t group = width / dim / kv_heads;
    if (group < 1 || group * kv_heads * dim != width || !FITS(work, 0, 1, tokens, width) ||
        !FITS(work, 1, 1, fresh, kv_heads * dim) || !FITS(work, 2, fresh, kv_heads * dim) ||
        !FITS(work, 3, 1, kv_heads, cells, dim) || !FITS(work, 4, 1, kv_heads, cells, dim))
        return misfit(work);
    TRY(read_sight(work, 5, fresh, tokens, cells));
    MAKE(work, context, 0, 1, kv_heads, cells, dim);
    MAKE(work, context, 1, 1, kv_heads, cells, dim);
    MAKE(work, context, 2, tokens, width);
    size_t size = dim * sizeof(float);
    append(work, 3, 0, kv_heads, size, 1, size, kv_heads * size, 5);
    append(work, 4, 1, kv_heads, size, 2, size, kv_heads * size, 5);
    work->shape = (Shape){tokens, kv_heads, group, dim};
    work_in_blocks(work);
    work->run = run_attend_floats;
    return NULL;
}

/* The rest of the file describes the operators to ONNX Runtime. */

static size_t count_types(const ONNXTensorElementDataType *types) {
    size_t n = 0;
    while (types[n]) n++;
    return n;
}

static const Operator *operator_of(const OrtCustomOp *base) { return (const Operator *)base; }

static const char *ORT_API_CALL get_name(const OrtCustomOp *base) { return operator_of(base)->label; }

/* NULL stands for the processor. */
static const char *ORT_API_CALL get_provider(const OrtCustomOp *base) { return (void)base, NULL; }

static ONNXTensorElementDataType ORT_API_CALL get_input_type(const OrtCustomOp *base, size_t index) {
    return operator_of(base)->inputs[index];
}

static size_t ORT_API_CALL get_input_count(const OrtCustomOp *base) { return count_types(operator_of(base)->inputs); }

static ONNXTensorElementDataType ORT_API_CALL get_output_type(const OrtCustomOp *base, size_t index) {
    return operator_of(base)->outputs[index];
}

static size_t ORT_API_CALL get_output_count(const OrtCustomOp *base) { return count_types(operator_of(base)->outputs); }

static OrtCustomOpInputOutputCharacteristic ORT_API_CALL get_characteristic(const OrtCustomOp *base, size_t index) {
    return (void)base, (void)index, INPUT_OUTPUT_REQUIRED;
}

static OrtMemType ORT_API_CALL get_memory_type(const OrtCustomOp *base, size_t index) {
    return (void)base, (void)index, OrtMemTypeDefault;
}

static OrtStatusPtr ORT_API_CALL create_kernel(const OrtCustomOp *base, const OrtApi *its_api,
                                               const OrtKernelInfo *info, void **made) {
    (void)its_api; /* the one that is in api already */
    const Operator *operator = operator_of(base);
    Kernel kernel = {.operator = operator, .count = 1};
    if (operator->has_epsilon) TRY(api->KernelInfoGetAttribute_float(info, "epsilon", &kernel.epsilon));
    if (operator->count) TRY(api->KernelInfoGetAttribute_int64(info, operator->count, &kernel.count));
    if (kernel.count < 1 || kernel.count > MAX_HEADS)
        return refuse(operator->label, "a number of heads is out of range");
    Kernel *kept = malloc(sizeof *kept);
    if (!kept) return refuse(operator->label, "out of memory");
    *kept = kernel;
    *made = kept;
    return NULL;
}

static void ORT_API_CALL destroy_kernel(void *kernel) { free(kernel); }

#define OPERATOR                                            \
    .base = {.version = ORT_API_VERSION,                    \
             .GetName = get_name,                           \
             .GetExecutionProviderType = get_provider,      \
             .GetInputType = get_input_type,                \
             .GetInputTypeCount = get_input_count,          \
             .GetOutputType = get_output_type,              \
             .GetOutputTypeCount = get_output_count,        \
             .KernelDestroy = destroy_kernel,               \
             .GetInputCharacteristic = get_characteristic,  \
             .GetOutputCharacteristic = get_characteristic, \
             .GetInputMemoryType = get_memory_type,         \
             .CreateKernelV2 = create_kernel,               \
             .KernelComputeV2 = compute}

#define FLOAT ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
#define UINT8 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
#define INT64 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64

static const Operator operators[] = {
    {OPERATOR, .label = "AddNormQuantize", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT},
     .outputs = {FLOAT, UINT8, FLOAT}, .has_epsilon = 1, .prepare = prepare_add_norm},
    {OPERATOR, .label = "AddNormQuantizeTwice", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT},
     .outputs = {FLOAT, UINT8, FLOAT, UINT8}, .has_epsilon = 1, .prepare = prepare_add_norm},
    {OPERATOR, .label = "GateQuantize", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT},
     .prepare = prepare_gate},
    {OPERATOR, .label = "GateQuantizeTwice", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT, UINT8},
     .prepare = prepare_gate},
    {OPERATOR, .label = "RotateQueries", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT},
     .count = "kv_heads", .prepare = prepare_queries},
    {OPERATOR, .label = "NormRotateQueries", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT},
     .count = "kv_heads", .has_epsilon = 1, .prepare = prepare_queries},
    {OPERATOR, .label = "RotateQueriesTwice", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT, UINT8},
     .count = "kv_heads", .prepare = prepare_queries},
    {OPERATOR, .label = "NormRotateQueriesTwice", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT},
     .outputs = {UINT8, FLOAT, UINT8}, .count = "kv_heads", .has_epsilon = 1, .prepare = prepare_queries},
    {OPERATOR, .label = "RotateKeys", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT},
     .count = "kv_heads", .prepare = prepare_keys},
    {OPERATOR, .label = "NormRotateKeys", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT},
     .outputs = {UINT8, FLOAT}, .count = "kv_heads", .has_epsilon = 1, .prepare = prepare_keys},
    {OPERATOR, .label = "QuantizeValues", .inputs = {FLOAT, FLOAT}, .outputs = {UINT8, FLOAT}, .count = "kv_heads",
     .prepare = prepare_values},
    {OPERATOR, .label = "SoftmaxQuantize", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT},
     .prepare = prepare_softmax},
    {OPERATOR, .label = "SoftmaxQuantizeTwice", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT},
     .outputs = {UINT8, FLOAT, UINT8}, .prepare = prepare_softmax},
    {OPERATOR, .label = "QuantizeMixed", .inputs = {FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT}, .count = "group",
     .prepare = prepare_mixed},
    {OPERATOR, .label = "AttendBytes",
     .inputs = {UINT8, FLOAT, UINT8, FLOAT, UINT8, FLOAT, UINT8, FLOAT, UINT8, FLOAT, INT64, INT64},
     .outputs = {UINT8, FLOAT, UINT8, FLOAT, FLOAT}, .prepare = prepare_attend_bytes},
    {OPERATOR, .label = "AttendBytesTwice",
     .inputs = {UINT8, FLOAT, UINT8, FLOAT, UINT8, FLOAT, UINT8, FLOAT, UINT8, FLOAT, INT64, INT64, UINT8},
     .outputs = {UINT8, FLOAT, UINT8, FLOAT, FLOAT}, .prepare = prepare_attend_bytes},
    {OPERATOR, .label = "AttendFloats", .inputs = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, INT64, INT64},
     .outputs = {FLOAT, FLOAT, FLOAT}, .prepare = prepare_attend_floats},
    {OPERATOR, .label = "QuantizeMixedTwice", .inputs = {FLOAT, FLOAT, FLOAT}, .outputs = {UINT8, FLOAT, UINT8},
     .count = "group", .prepare = prepare_mixed},
};

static OrtStatusPtr make_domain(OrtCustomOpDomain **domain) {
    TRY(api->CreateCustomOpDomain(DOMAIN, domain));
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        TRY(api->CustomOpDomain_Add(*domain, &operators[i].base));
    return NULL;
}

/* ONNX Runtime finds this function by its name. It is called for the options of every session, one call at a time. The
 * domain lives as long as this library is loaded. */
EXPORT OrtStatusPtr ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtCustomOpDomain *domain = NULL;
    if (!domain) {
        api = base->GetApi(ORT_API_VERSION);
        if (!api) return NULL; /* The runtime is too old for this library. The graph's functions do the work. */
        OrtCustomOpDomain *made = NULL;
        OrtStatusPtr status = make_domain(&made);
        if (status) {
            if (made) api->ReleaseCustomOpDomain(made);
            return status;
        }
        domain = made;
    }
    return api->AddCustomOpDomain(options, domain);
}
