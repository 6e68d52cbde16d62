/* The fused operators as ONNX Runtime custom operators.
 *
 * The graph defines each of them as a function of stock operators too (export/graph/fused.py), which ONNX Runtime uses
 * where this library is not registered. What they compute is said there and in rows.h; this file checks shapes, makes
 * outputs and splits rows over ONNX Runtime's own threads. Model files may come from strangers: whatever their shapes and
 * attributes, an operator computes or refuses.
 */
#include <stdio.h>
#include <stdlib.h>

#include "onnxruntime_abi.h"
#include "rows.h"

/* Also in export/graph/writer.py. A number that changes with the meaning of any operator: a graph of another number finds
 * no operator here and runs on its own functions. */
static const char DOMAIN[] = "fsrm.2";

enum { MAX_INPUTS = 6, MAX_OUTPUTS = 4, MAX_RANK = 3, MAX_HEADS = 1 << 16, VALUES_PER_TASK = 16384 };

static const OrtPlace *ort;

#define ORT(type, place) ((type)ort[place])

#define TRY(expression)                       \
    do {                                      \
        OrtStatus *status_ = (expression);    \
        if (status_) return status_;          \
    } while (0)

typedef struct {
    void *data;
    size_t rank;
    int64_t shape[MAX_RANK];
} Tensor;

/* Work whose units (rows, tokens or heads) any thread may take. */
typedef struct Work Work;
struct Work {
    const char *label;
    Tensor in[MAX_INPUTS];
    size_t inputs, outputs;
    void *out[MAX_OUTPUTS]; /* those that the operator does not have stay NULL */
    Shape shape;
    Factor factor;
    float epsilon;
    size_t width, units, per_task, scratch;
    void (*run)(const Work *, size_t from, size_t to, float *scratch);
    volatile int failed; /* any task that finds no memory sets it */
};

typedef struct {
    OrtCustomOp base; /* first: this is what ONNX Runtime hands back */
    const char *label;
    int inputs[MAX_INPUTS + 1], outputs[MAX_OUTPUTS + 1]; /* element types, ended by 0 */
    const char *count;                                    /* the attribute that counts heads, if there is one */
    int normed;                                           /* whether there is an attribute "epsilon" */
    /* Makes the outputs and says how to fill them. */
    OrtStatus *(*prepare)(Work *work, void *context, int64_t count);
} Operator;

typedef struct {
    const Operator *operator;
    float epsilon;
    int64_t count;
} Kernel;

static OrtStatus *refuse(const char *label, const char *why) {
    char message[128];
    snprintf(message, sizeof message, "%s:%s: %s", DOMAIN, label, why);
    return ORT(OrtCreateStatus, ORT_CREATE_STATUS)(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *misfit(const Work *work) { return refuse(work->label, "the shapes of its inputs do not fit together"); }

static OrtStatus *read_input(Work *work, void *context, size_t index) {
    Tensor *tensor = &work->in[index];
    const void *value = NULL;
    void *info = NULL;
    TRY(ORT(OrtKernelInput, ORT_KERNEL_INPUT)(context, index, &value));
    TRY(ORT(OrtTensorData, ORT_TENSOR_DATA)((void *)value, &tensor->data));
    TRY(ORT(OrtTypeAndShape, ORT_TENSOR_TYPE_AND_SHAPE)(value, &info));
    OrtStatus *status = ORT(OrtDimensionsCount, ORT_DIMENSIONS_COUNT)(info, &tensor->rank);
    int fits = tensor->rank <= MAX_RANK;
    if (!status && fits) status = ORT(OrtDimensions, ORT_DIMENSIONS)(info, tensor->shape, tensor->rank);
    ORT(OrtReleaseTypeAndShape, ORT_RELEASE_TENSOR_TYPE_AND_SHAPE)(info);
    TRY(status);
    /* With no empty inputs every product of sizes below is bounded by a tensor that is in memory. */
    for (size_t i = 0; fits && i < tensor->rank; i++) fits = tensor->shape[i] > 0;
    return fits ? NULL : misfit(work);
}

static OrtStatus *make_output(Work *work, void *context, size_t index, const int64_t *shape, size_t rank) {
    void *value = NULL;
    TRY(ORT(OrtKernelOutput, ORT_KERNEL_OUTPUT)(context, index, shape, rank, &value));
    return ORT(OrtTensorData, ORT_TENSOR_DATA)(value, &work->out[index]);
}

static int fits(const Tensor *tensor, const int64_t *shape, size_t rank) {
    int same = tensor->rank == rank;
    for (size_t i = 0; same && i < rank; i++) same = tensor->shape[i] == shape[i];
    return same;
}

#define SHAPE(...) ((int64_t[]){__VA_ARGS__}), sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)
#define FITS(work, index, ...) fits(&(work)->in[index], SHAPE(__VA_ARGS__))
#define MAKE(work, context, index, ...) TRY(make_output(work, context, index, SHAPE(__VA_ARGS__)))

static void run_task(void *data, size_t index) {
    Work *work = data;
    size_t from = index * work->per_task, to = from + work->per_task;
    float *scratch = work->scratch ? malloc(work->scratch * sizeof *scratch) : NULL;
    if (work->scratch && !scratch)
        work->failed = 1;
    else
        work->run(work, from, to < work->units ? to : work->units, scratch);
    free(scratch);
}

static OrtStatus *compute(void *opaque, void *context) {
    const Kernel *kernel = opaque;
    const Operator *operator = kernel->operator;
    Work work = {.label = operator->label, .epsilon = kernel->epsilon};
    while (operator->outputs[work.outputs]) work.outputs++;
    for (; operator->inputs[work.inputs]; work.inputs++) TRY(read_input(&work, context, work.inputs));
    TRY(operator->prepare(&work, context, kernel->count));
    if (!work.per_task) work.per_task = VALUES_PER_TASK / work.width + 1;
    size_t tasks = (work.units + work.per_task - 1) / work.per_task;
    TRY(ORT(OrtParallelFor, ORT_PARALLEL_FOR)(context, run_task, tasks, 0, &work));
    return work.failed ? refuse(operator->label, "out of memory") : NULL;
}

/* Reads a factor matrix, a square one, that mixes parts of a row of width values: parts of a power of two that divides it. */
static OrtStatus *read_factor(Work *w, size_t index, int64_t width) {
    int64_t parts = w->in[index].rank == 2 ? w->in[index].shape[0] : 0, size = width & -width;
    if (parts < 1 || !FITS(w, index, parts, parts) || parts > MAX_HEADS || width / size % parts) return misfit(w);
    w->factor = (Factor){w->in[index].data, parts};
    return NULL;
}

/* AddNormQuantize: residual [S, H], update [S, H], update scale [S, 1], weight [H], factor [F, F] -> sum [S, H], quantized [S, H], largest [S, 1];
 * AddNormQuantizeTwice: the second term too, as all operators of such a name, the last of their outputs */
static void run_add_norm(const Work *w, size_t from, size_t to, float *scratch) {
    add_norm_quantize(from, to, w->width, w->in[0].data, w->in[1].data, w->in[2].data, w->in[3].data, w->epsilon, w->factor, scratch,
                      w->out[0], w->out[1], w->out[2], w->out[3]);
}

static OrtStatus *prepare_add_norm(Work *w, void *context, int64_t count) {
    (void)count;
    int64_t rows = w->in[0].shape[0], width = w->in[0].shape[1];
    if (!FITS(w, 0, rows, width) || !FITS(w, 1, rows, width) || !FITS(w, 2, rows, 1) || !FITS(w, 3, width)) return misfit(w);
    TRY(read_factor(w, 4, width));
    MAKE(w, context, 0, rows, width);
    MAKE(w, context, 1, rows, width);
    MAKE(w, context, 2, rows, 1);
    if (w->outputs == 4) MAKE(w, context, 3, rows, width);
    w->units = rows, w->width = width, w->scratch = 2 * width, w->run = run_add_norm;
    return NULL;
}

/* GateQuantize: gate [S, I], up [S, I], scale [S, 1], factor [F, F] -> quantized [S, I], largest [S, 1] */
static void run_gate(const Work *w, size_t from, size_t to, float *scratch) {
    gate_quantize(from, to, w->width, w->in[0].data, w->in[1].data, w->in[2].data, w->factor, scratch, w->out[0], w->out[1], w->out[2]);
}

static OrtStatus *prepare_gate(Work *w, void *context, int64_t count) {
    (void)count;
    int64_t rows = w->in[0].shape[0], width = w->in[0].shape[1];
    if (!FITS(w, 0, rows, width) || !FITS(w, 1, rows, width) || !FITS(w, 2, rows, 1)) return misfit(w);
    TRY(read_factor(w, 3, width));
    MAKE(w, context, 0, rows, width);
    MAKE(w, context, 1, rows, 1);
    if (w->outputs == 3) MAKE(w, context, 2, rows, width);
    w->units = rows, w->width = width, w->scratch = 2 * width, w->run = run_gate;
    return NULL;
}

/* Reads queries or keys [S, heads * d] with their rotation, cos and sin [1, S, d / 2], the factor that spreads d values, and, where
 * there is one, the norm's weight [d], which is the input number norm. */
static OrtStatus *read_heads(Work *w, int64_t kv_heads, size_t norm) {
    int64_t tokens = w->in[0].shape[0], width = w->in[0].shape[1], half = w->in[1].shape[2];
    if (w->in[0].rank != 2 || !FITS(w, 1, 1, tokens, half) || !FITS(w, 2, 1, tokens, half) || half > width) return misfit(w);
    int64_t dim = 2 * half, group = width / dim / kv_heads;
    if (group < 1 || group * kv_heads * dim != width || (norm && !FITS(w, norm, dim))) return misfit(w);
    TRY(read_factor(w, 3, dim));
    w->shape = (Shape){tokens, kv_heads, group, dim};
    w->scratch = SCRATCH_PER_DIM * dim;
    return NULL;
}

/* NormRotateQueries: queries [S, heads * d], cos, sin, factor, weight -> [kv, group * S, d], [kv, group * S, 1]; RotateQueries: without weight */
static void run_queries(const Work *w, size_t from, size_t to, float *scratch) {
    rotate_queries(from, to, w->shape, w->in[0].data, w->in[4].data, w->epsilon, w->in[1].data, w->in[2].data, w->factor, scratch, w->out[0],
                   w->out[1], w->out[2]);
}

static OrtStatus *prepare_queries(Work *w, void *context, int64_t kv_heads) {
    TRY(read_heads(w, kv_heads, w->inputs == 5 ? 4 : 0));
    Shape s = w->shape;
    MAKE(w, context, 0, s.kv_heads, s.group * s.tokens, s.dim);
    MAKE(w, context, 1, s.kv_heads, s.group * s.tokens, 1);
    if (w->outputs == 3) MAKE(w, context, 2, s.kv_heads, s.group * s.tokens, s.dim);
    w->units = s.tokens, w->width = s.kv_heads * s.group * s.dim, w->run = run_queries;
    return NULL;
}

/* NormRotateKeys: keys [S, kv * d], cos, sin, factor, mean [kv, d], weight -> [kv, d, S], [kv, 1, S]; RotateKeys: without weight */
static void run_keys(const Work *w, size_t from, size_t to, float *scratch) {
    rotate_keys(from, to, w->shape, w->in[0].data, w->in[5].data, w->epsilon, w->in[1].data, w->in[2].data, w->factor, w->in[4].data,
                scratch, w->out[0], w->out[1]);
}

static OrtStatus *prepare_keys(Work *w, void *context, int64_t kv_heads) {
    TRY(read_heads(w, kv_heads, w->inputs == 6 ? 5 : 0));
    Shape s = w->shape;
    if (s.group != 1 || !FITS(w, 4, s.kv_heads, s.dim)) return misfit(w);
    MAKE(w, context, 0, s.kv_heads, s.dim, s.tokens);
    MAKE(w, context, 1, s.kv_heads, 1, s.tokens);
    w->units = s.kv_heads, w->per_task = 1, w->run = run_keys;
    return NULL;
}

/* QuantizeValues: values [S, kv * d], scale [S, 1] or [1, 1] -> [kv, S, d], [S, 1] */
static void run_values(const Work *w, size_t from, size_t to, float *scratch) {
    (void)scratch;
    quantize_values(from, to, w->shape, w->in[0].data, w->in[1].data, w->in[1].shape[0] == 1, w->out[0], w->out[1]);
}

static OrtStatus *prepare_values(Work *w, void *context, int64_t kv_heads) {
    int64_t tokens = w->in[0].shape[0], width = w->in[0].shape[1];
    if (!FITS(w, 0, tokens, width) || width % kv_heads || (!FITS(w, 1, tokens, 1) && !FITS(w, 1, 1, 1))) return misfit(w);
    w->shape = (Shape){tokens, kv_heads, 1, width / kv_heads};
    MAKE(w, context, 0, kv_heads, tokens, width / kv_heads);
    MAKE(w, context, 1, tokens, 1);
    w->units = tokens, w->width = width, w->run = run_values;
    return NULL;
}

/* SoftmaxQuantize: scores [kv, group * S, T], their scale [kv, group * S, 1], bias [S, T], value scale [T, 1]
 * -> quantized [kv, group * S, T], largest [kv, group * S, 1] */
static void run_softmax(const Work *w, size_t from, size_t to, float *scratch) {
    softmax_quantize(from, to, w->shape.kv_heads * w->shape.group, w->shape.tokens, w->scratch, w->in[0].data, w->in[1].data, w->in[2].data,
                     w->in[3].data, scratch, w->out[0], w->out[1], w->out[2]);
}

static OrtStatus *prepare_softmax(Work *w, void *context, int64_t count) {
    (void)count;
    int64_t kv_heads = w->in[0].shape[0], rows = w->in[0].shape[1], width = w->in[0].shape[2], tokens = w->in[2].shape[0];
    if (!FITS(w, 0, kv_heads, rows, width) || !FITS(w, 1, kv_heads, rows, 1) || !FITS(w, 2, tokens, width) || !FITS(w, 3, width, 1) ||
        rows % tokens)
        return misfit(w);
    MAKE(w, context, 0, kv_heads, rows, width);
    MAKE(w, context, 1, kv_heads, rows, 1);
    if (w->outputs == 3) MAKE(w, context, 2, kv_heads, rows, width);
    w->shape = (Shape){tokens, kv_heads, rows / tokens, 0};
    w->units = tokens, w->width = kv_heads * (rows / tokens) * width, w->scratch = width, w->run = run_softmax;
    return NULL;
}

/* QuantizeMixed: mixed [kv, group * S, d], scale [kv, group * S, 1], factor [F, F] -> [S, heads * d], [S, 1] */
static void run_mixed(const Work *w, size_t from, size_t to, float *scratch) {
    quantize_mixed(from, to, w->shape, w->in[0].data, w->in[1].data, w->factor, scratch, w->out[0], w->out[1], w->out[2]);
}

static OrtStatus *prepare_mixed(Work *w, void *context, int64_t group) {
    int64_t kv_heads = w->in[0].shape[0], rows = w->in[0].shape[1], dim = w->in[0].shape[2];
    if (!FITS(w, 0, kv_heads, rows, dim) || !FITS(w, 1, kv_heads, rows, 1) || rows % group) return misfit(w);
    int64_t tokens = rows / group, width = kv_heads * group * dim;
    TRY(read_factor(w, 2, width));
    w->shape = (Shape){tokens, kv_heads, group, dim};
    MAKE(w, context, 0, tokens, width);
    MAKE(w, context, 1, tokens, 1);
    if (w->outputs == 3) MAKE(w, context, 2, tokens, width);
    w->units = tokens, w->width = width, w->scratch = 2 * width, w->run = run_mixed;
    return NULL;
}

#define FLOATS_2 {ORT_FLOAT, ORT_FLOAT}
#define FLOATS_3 {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}
#define FLOATS_4 {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}
#define FLOATS_5 {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}
#define FLOATS_6 {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}
#define AS_UINT8 {ORT_UINT8, ORT_FLOAT}
#define AS_UINT8_TWICE {ORT_UINT8, ORT_FLOAT, ORT_UINT8}

static Operator operators[] = {
    {.label = "AddNormQuantize", .inputs = FLOATS_5, .outputs = {ORT_FLOAT, ORT_UINT8, ORT_FLOAT}, .normed = 1, .prepare = prepare_add_norm},
    {.label = "AddNormQuantizeTwice",
     .inputs = FLOATS_5,
     .outputs = {ORT_FLOAT, ORT_UINT8, ORT_FLOAT, ORT_UINT8},
     .normed = 1,
     .prepare = prepare_add_norm},
    {.label = "GateQuantize", .inputs = FLOATS_4, .outputs = AS_UINT8, .prepare = prepare_gate},
    {.label = "GateQuantizeTwice", .inputs = FLOATS_4, .outputs = AS_UINT8_TWICE, .prepare = prepare_gate},
    {.label = "RotateQueries", .inputs = FLOATS_4, .outputs = AS_UINT8, .count = "kv_heads", .prepare = prepare_queries},
    {.label = "NormRotateQueries", .inputs = FLOATS_5, .outputs = AS_UINT8, .count = "kv_heads", .normed = 1, .prepare = prepare_queries},
    {.label = "RotateQueriesTwice", .inputs = FLOATS_4, .outputs = AS_UINT8_TWICE, .count = "kv_heads", .prepare = prepare_queries},
    {.label = "NormRotateQueriesTwice",
     .inputs = FLOATS_5,
     .outputs = AS_UINT8_TWICE,
     .count = "kv_heads",
     .normed = 1,
     .prepare = prepare_queries},
    {.label = "RotateKeys", .inputs = FLOATS_5, .outputs = AS_UINT8, .count = "kv_heads", .prepare = prepare_keys},
    {.label = "NormRotateKeys", .inputs = FLOATS_6, .outputs = AS_UINT8, .count = "kv_heads", .normed = 1, .prepare = prepare_keys},
    {.label = "QuantizeValues", .inputs = FLOATS_2, .outputs = AS_UINT8, .count = "kv_heads", .prepare = prepare_values},
    {.label = "SoftmaxQuantize", .inputs = FLOATS_4, .outputs = AS_UINT8, .prepare = prepare_softmax},
    {.label = "SoftmaxQuantizeTwice", .inputs = FLOATS_4, .outputs = AS_UINT8_TWICE, .prepare = prepare_softmax},
    {.label = "QuantizeMixed", .inputs = FLOATS_3, .outputs = AS_UINT8, .count = "group", .prepare = prepare_mixed},
    {.label = "QuantizeMixedTwice", .inputs = FLOATS_3, .outputs = AS_UINT8_TWICE, .count = "group", .prepare = prepare_mixed},
};

enum { OPERATORS = sizeof operators / sizeof *operators };

static size_t count_types(const int *types) {
    size_t n = 0;
    while (types[n]) n++;
    return n;
}

static const char *name(const OrtCustomOp *op) { return ((const Operator *)op)->label; }
static const char *provider(const OrtCustomOp *op) { return (void)op, NULL; } /* NULL is the processor */
static int input_type(const OrtCustomOp *op, size_t index) { return ((const Operator *)op)->inputs[index]; }
static size_t input_count(const OrtCustomOp *op) { return count_types(((const Operator *)op)->inputs); }
static int output_type(const OrtCustomOp *op, size_t index) { return ((const Operator *)op)->outputs[index]; }
static size_t output_count(const OrtCustomOp *op) { return count_types(((const Operator *)op)->outputs); }
/* Every input and output is required, and in the processor's memory. */
static int zero(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }

static OrtStatus *create_kernel(const OrtCustomOp *op, const void *interface, const void *info, void **made) {
    (void)interface;
    const Operator *operator = (const Operator *)op;
    Kernel kernel = {.operator = operator, .count = 1};
    if (operator->normed) TRY(ORT(OrtAttributeFloat, ORT_ATTRIBUTE_FLOAT)(info, "epsilon", &kernel.epsilon));
    if (operator->count) TRY(ORT(OrtAttributeInt, ORT_ATTRIBUTE_INT)(info, operator->count, &kernel.count));
    if (kernel.count < 1 || kernel.count > MAX_HEADS) return refuse(operator->label, "a number of heads is out of range");
    Kernel *kept = malloc(sizeof *kept);
    if (!kept) return refuse(operator->label, "out of memory");
    *kept = kernel;
    *made = kept;
    return NULL;
}

/* Called for every session's options, one call at a time; the domain lives as long as this library is loaded. */
ORT_EXPORT OrtStatus *RegisterCustomOps(void *options, const OrtBase *base) {
    static void *domain = NULL;
    if (!domain) {
        void *made = NULL;
        ort = base->get_interface(ORT_INTERFACE_VERSION);
        if (!ort) return NULL; /* too old a runtime: the functions do the work */
        TRY(ORT(OrtCreateDomain, ORT_CREATE_CUSTOM_OP_DOMAIN)(DOMAIN, &made));
        for (size_t i = 0; i < OPERATORS; i++) {
            operators[i].base = (OrtCustomOp){.version = ORT_CUSTOM_OP_VERSION,
                                              .name = name,
                                              .provider = provider,
                                              .input_type = input_type,
                                              .input_count = input_count,
                                              .output_type = output_type,
                                              .output_count = output_count,
                                              .destroy_kernel = free,
                                              .input_characteristic = zero,
                                              .output_characteristic = zero,
                                              .input_memory = zero,
                                              .create_kernel_2 = create_kernel,
                                              .compute_2 = compute};
            TRY(ORT(OrtDomainAdd, ORT_CUSTOM_OP_DOMAIN_ADD)(made, &operators[i]));
        }
        domain = made;
    }
    return ORT(OrtAddDomain, ORT_ADD_CUSTOM_OP_DOMAIN)(options, domain);
}
