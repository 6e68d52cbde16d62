/* The fused operators as ONNX Runtime custom operators of the domain "fsrm".
 *
 * The graph defines each of them as a function of stock operators too (export/graph_fused.py), which ONNX Runtime uses
 * where this library is not registered. What they compute is said there and in rows.h; this file reads shapes, makes
 * outputs and splits rows over ONNX Runtime's own threads.
 */
#include <stdio.h>
#include <stdlib.h>

#include "onnxruntime_abi.h"
#include "rows.h"

enum { MAX_INPUTS = 6, MAX_OUTPUTS = 3, MAX_RANK = 4, VALUES_PER_TASK = 16384 };

static const OrtPlace *ort;

#define ORT(type, place) ((type)ort[place])

typedef struct {
    void *data;
    size_t rank;
    int64_t shape[MAX_RANK];
} Tensor;

/* Attributes, 1 where an operator has none. */
typedef struct {
    int64_t kv_heads, group;
} Heads;

/* Work whose units (rows, tokens or heads) any thread may take. */
typedef struct Work Work;
struct Work {
    Tensor in[MAX_INPUTS];
    void *out[MAX_OUTPUTS];
    Shape shape;
    float epsilon;
    size_t width, units, per_task, scratch;
    void (*run)(const Work *, size_t from, size_t to, float *scratch);
};

typedef struct {
    OrtCustomOp base; /* first: this is what ONNX Runtime hands back */
    const char *label;
    int inputs[MAX_INPUTS + 1], outputs[MAX_OUTPUTS + 1]; /* element types, ended by 0 */
    /* Makes the outputs and says how to fill them; 0 where the inputs' shapes do not fit together. */
    int (*prepare)(Work *work, void *context, const Heads *heads);
} Operator;

typedef struct {
    const Operator *operator;
    float epsilon;
    Heads heads;
} Kernel;

static Tensor read_input(void *context, size_t index) {
    Tensor tensor = {0};
    const void *value = NULL;
    void *info = NULL;
    ORT(OrtKernelInput, ORT_KERNEL_INPUT)(context, index, &value);
    ORT(OrtTensorData, ORT_TENSOR_DATA)((void *)value, &tensor.data);
    ORT(OrtTypeAndShape, ORT_TENSOR_TYPE_AND_SHAPE)(value, &info);
    ORT(OrtDimensionsCount, ORT_DIMENSIONS_COUNT)(info, &tensor.rank);
    ORT(OrtDimensions, ORT_DIMENSIONS)(info, tensor.shape, tensor.rank < MAX_RANK ? tensor.rank : MAX_RANK);
    ORT(OrtReleaseTypeAndShape, ORT_RELEASE_TENSOR_TYPE_AND_SHAPE)(info);
    return tensor;
}

static int fits(const Tensor *tensor, size_t rank, const int64_t *shape) {
    int same = tensor->rank == rank;
    for (size_t i = 0; same && i < rank; i++) same = tensor->shape[i] == shape[i];
    return same;
}

#define FITS(work, index, ...) (fits(&(work)->in[index], sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__}))

static void *make_output(void *context, size_t index, const int64_t *shape, size_t rank) {
    void *value = NULL, *data = NULL;
    ORT(OrtKernelOutput, ORT_KERNEL_OUTPUT)(context, index, shape, rank, &value);
    ORT(OrtTensorData, ORT_TENSOR_DATA)(value, &data);
    return data;
}

#define MAKE(work, context, index, ...) \
    ((work)->out[index] = make_output(context, index, (int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

static void run_task(void *data, size_t index) {
    const Work *work = data;
    size_t from = index * work->per_task, to = from + work->per_task;
    float *scratch = work->scratch ? malloc(work->scratch * sizeof *scratch) : NULL;
    if (work->scratch && !scratch) abort(); /* A few kilobytes: the process is lost anyway. */
    work->run(work, from, to < work->units ? to : work->units, scratch);
    free(scratch);
}

static OrtStatus *ORT_CALL compute(void *opaque, void *context) {
    const Kernel *kernel = opaque;
    const Operator *operator = kernel->operator;
    Work work = {.epsilon = kernel->epsilon};
    for (size_t i = 0; operator->inputs[i]; i++) work.in[i] = read_input(context, i);
    if (!operator->prepare(&work, context, &kernel->heads)) {
        char message[96];
        snprintf(message, sizeof message, "fsrm:%s: the shapes of its inputs do not fit together", operator->label);
        return ORT(OrtCreateStatus, ORT_CREATE_STATUS)(ORT_INVALID_ARGUMENT, message);
    }
    if (!work.units) return NULL;
    if (!work.per_task) work.per_task = VALUES_PER_TASK / work.width + 1;
    size_t tasks = (work.units + work.per_task - 1) / work.per_task;
    return ORT(OrtParallelFor, ORT_PARALLEL_FOR)(context, run_task, tasks, 0, &work);
}

/* AddNormQuantize: residual [S, H], update [S, H], update scale [S, 1], weight [H] -> sum [S, H], quantized [S, H], largest [S, 1] */
static void run_add_norm(const Work *w, size_t from, size_t to, float *scratch) {
    (void)scratch;
    add_norm_quantize(from, to, w->width, w->in[0].data, w->in[1].data, w->in[2].data, w->in[3].data, w->epsilon, w->out[0], w->out[1],
                      w->out[2]);
}

static int prepare_add_norm(Work *w, void *context, const Heads *heads) {
    (void)heads;
    int64_t rows = w->in[0].shape[0], width = w->in[0].shape[1];
    if (!FITS(w, 0, rows, width) || !FITS(w, 1, rows, width) || !FITS(w, 2, rows, 1) || !FITS(w, 3, width)) return 0;
    MAKE(w, context, 0, rows, width);
    MAKE(w, context, 1, rows, width);
    MAKE(w, context, 2, rows, 1);
    w->units = rows, w->width = width, w->run = run_add_norm;
    return 1;
}

/* GateQuantize: gate [S, I], up [S, I], scale [S, 1] -> quantized [S, I], largest [S, 1] */
static void run_gate(const Work *w, size_t from, size_t to, float *scratch) {
    gate_quantize(from, to, w->width, w->in[0].data, w->in[1].data, w->in[2].data, scratch, w->out[0], w->out[1]);
}

static int prepare_gate(Work *w, void *context, const Heads *heads) {
    (void)heads;
    int64_t rows = w->in[0].shape[0], width = w->in[0].shape[1];
    if (!FITS(w, 0, rows, width) || !FITS(w, 1, rows, width) || !FITS(w, 2, rows, 1)) return 0;
    MAKE(w, context, 0, rows, width);
    MAKE(w, context, 1, rows, 1);
    w->units = rows, w->width = w->scratch = width, w->run = run_gate;
    return 1;
}

/* NormRotateQueries: queries [S, heads * d], weight [d], cos [1, S, d / 2], sin [1, S, d / 2] -> [kv, group * S, d], [kv, group * S, 1]
 * RotateQueries: the same without weight */
static void run_queries(const Work *w, size_t from, size_t to, float *scratch) {
    rotate_queries(from, to, w->shape, w->in[0].data, w->in[3].data, w->epsilon, w->in[1].data, w->in[2].data, scratch, w->out[0], w->out[1]);
}

/* Of queries or keys [S, heads * d] with their rotation; no tokens where something does not fit. */
static int read_heads(Work *w, const Heads *heads) {
    int64_t tokens = w->in[0].shape[0], width = w->in[0].shape[1], half = w->in[1].shape[2], dim = 2 * half, kv = heads->kv_heads;
    w->shape = (Shape){tokens, kv, dim > 0 && kv > 0 ? width / dim / kv : 0, dim};
    w->scratch = SCRATCH_PER_DIM * dim;
    return w->shape.group > 0 && FITS(w, 0, tokens, (int64_t)w->shape.group * kv * dim) && FITS(w, 1, 1, tokens, half) &&
           FITS(w, 2, 1, tokens, half) && (!w->in[3].data || FITS(w, 3, dim));
}

static int prepare_queries(Work *w, void *context, const Heads *heads) {
    if (!read_heads(w, heads)) return 0;
    Shape s = w->shape;
    MAKE(w, context, 0, s.kv_heads, s.group * s.tokens, s.dim);
    MAKE(w, context, 1, s.kv_heads, s.group * s.tokens, 1);
    w->units = s.tokens, w->width = s.kv_heads * s.group * s.dim, w->run = run_queries;
    return 1;
}

/* NormRotateKeys: keys [S, kv * d], cos, sin, weight [d] -> [kv, d, S], [kv, 1, S]; RotateKeys: the same without weight */
static void run_keys(const Work *w, size_t from, size_t to, float *scratch) {
    rotate_keys(from, to, w->shape, w->in[0].data, w->in[3].data, w->epsilon, w->in[1].data, w->in[2].data, scratch, w->out[0], w->out[1]);
}

static int prepare_keys(Work *w, void *context, const Heads *heads) {
    if (!read_heads(w, heads) || w->shape.group != 1) return 0;
    Shape s = w->shape;
    MAKE(w, context, 0, s.kv_heads, s.dim, s.tokens);
    MAKE(w, context, 1, s.kv_heads, 1, s.tokens);
    w->units = s.kv_heads, w->per_task = 1, w->run = run_keys;
    return 1;
}

/* QuantizeValues: values [S, kv * d], scale [S, 1] -> [kv, S, d], [S, 1] */
static void run_values(const Work *w, size_t from, size_t to, float *scratch) {
    (void)scratch;
    quantize_values(from, to, w->shape, w->in[0].data, w->in[1].data, w->out[0], w->out[1]);
}

static int prepare_values(Work *w, void *context, const Heads *heads) {
    int64_t tokens = w->in[0].shape[0], width = w->in[0].shape[1];
    if (heads->kv_heads < 1 || width % heads->kv_heads || !FITS(w, 0, tokens, width) || !FITS(w, 1, tokens, 1)) return 0;
    w->shape = (Shape){tokens, heads->kv_heads, 1, width / heads->kv_heads};
    MAKE(w, context, 0, heads->kv_heads, tokens, width / heads->kv_heads);
    MAKE(w, context, 1, tokens, 1);
    w->units = tokens, w->width = width, w->run = run_values;
    return 1;
}

/* SoftmaxQuantize: scores [kv, group * S, T], their scale [kv, group * S, 1], bias [S, T], value scale [T, 1]
 * -> quantized [kv, group * S, T], largest [kv, group * S, 1] */
static void run_softmax(const Work *w, size_t from, size_t to, float *scratch) {
    softmax_quantize(from, to, w->shape.kv_heads * w->shape.group, w->shape.tokens, w->scratch, w->in[0].data, w->in[1].data, w->in[2].data, w->in[3].data, scratch, w->out[0],
                     w->out[1]);
}

static int prepare_softmax(Work *w, void *context, const Heads *heads) {
    (void)heads;
    const int64_t *shape = w->in[0].shape;
    int64_t tokens = w->in[2].shape[0], rows = shape[1], width = shape[2];
    if (tokens < 1 || rows % tokens || !FITS(w, 0, shape[0], rows, width) || !FITS(w, 1, shape[0], rows, 1) || !FITS(w, 2, tokens, width) ||
        !FITS(w, 3, width, 1))
        return 0;
    MAKE(w, context, 0, shape[0], rows, width);
    MAKE(w, context, 1, shape[0], rows, 1);
    w->shape = (Shape){tokens, shape[0], rows / tokens, 0};
    w->units = tokens, w->width = shape[0] * (rows / tokens) * width, w->scratch = width, w->run = run_softmax;
    return 1;
}

/* QuantizeMixed: mixed [kv, group * S, d], scale [kv, group * S, 1] -> [S, heads * d], [S, 1] */
static void run_mixed(const Work *w, size_t from, size_t to, float *scratch) {
    quantize_mixed(from, to, w->shape, w->in[0].data, w->in[1].data, scratch, w->out[0], w->out[1]);
}

static int prepare_mixed(Work *w, void *context, const Heads *heads) {
    const int64_t *shape = w->in[0].shape;
    if (heads->group < 1 || shape[1] % heads->group || !FITS(w, 0, shape[0], shape[1], shape[2]) || !FITS(w, 1, shape[0], shape[1], 1)) return 0;
    int64_t tokens = shape[1] / heads->group, width = shape[0] * heads->group * shape[2];
    w->shape = (Shape){tokens, shape[0], heads->group, shape[2]};
    MAKE(w, context, 0, tokens, width);
    MAKE(w, context, 1, tokens, 1);
    w->units = tokens, w->width = w->scratch = width, w->run = run_mixed;
    return 1;
}

static Operator operators[] = {
    {.label = "AddNormQuantize",
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .outputs = {ORT_FLOAT, ORT_UINT8, ORT_FLOAT},
     .prepare = prepare_add_norm},
    {.label = "GateQuantize", .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_UINT8, ORT_FLOAT}, .prepare = prepare_gate},
    {.label = "RotateQueries", .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_UINT8, ORT_FLOAT}, .prepare = prepare_queries},
    {.label = "NormRotateQueries",
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .outputs = {ORT_UINT8, ORT_FLOAT},
     .prepare = prepare_queries},
    {.label = "RotateKeys", .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_INT8, ORT_FLOAT}, .prepare = prepare_keys},
    {.label = "NormRotateKeys",
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .outputs = {ORT_INT8, ORT_FLOAT},
     .prepare = prepare_keys},
    {.label = "QuantizeValues", .inputs = {ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_INT8, ORT_FLOAT}, .prepare = prepare_values},
    {.label = "SoftmaxQuantize",
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .outputs = {ORT_UINT8, ORT_FLOAT},
     .prepare = prepare_softmax},
    {.label = "QuantizeMixed", .inputs = {ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_UINT8, ORT_FLOAT}, .prepare = prepare_mixed},
};

enum { OPERATORS = sizeof operators / sizeof *operators };

static size_t count(const int *types) {
    size_t n = 0;
    while (types[n]) n++;
    return n;
}

static const char *ORT_CALL name(const OrtCustomOp *op) { return ((const Operator *)op)->label; }
static const char *ORT_CALL provider(const OrtCustomOp *op) { return (void)op, NULL; } /* NULL is the CPU */
static int ORT_CALL input_type(const OrtCustomOp *op, size_t index) { return ((const Operator *)op)->inputs[index]; }
static size_t ORT_CALL input_count(const OrtCustomOp *op) { return count(((const Operator *)op)->inputs); }
static int ORT_CALL output_type(const OrtCustomOp *op, size_t index) { return ((const Operator *)op)->outputs[index]; }
static size_t ORT_CALL output_count(const OrtCustomOp *op) { return count(((const Operator *)op)->outputs); }
/* Every input and output is required, and in the processor's memory. */
static int ORT_CALL zero(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }

/* An operator that lacks an attribute keeps its default; the status that says so must be released. */
static void forgive(OrtStatus *status) {
    if (status) ORT(OrtReleaseStatus, ORT_RELEASE_STATUS)(status);
}

static void *ORT_CALL create_kernel(const OrtCustomOp *op, const void *interface, const void *info) {
    (void)interface;
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) abort();
    kernel->operator = (const Operator *)op;
    kernel->heads = (Heads){1, 1};
    forgive(ORT(OrtAttributeFloat, ORT_ATTRIBUTE_FLOAT)(info, "epsilon", &kernel->epsilon));
    forgive(ORT(OrtAttributeInt, ORT_ATTRIBUTE_INT)(info, "kv_heads", &kernel->heads.kv_heads));
    forgive(ORT(OrtAttributeInt, ORT_ATTRIBUTE_INT)(info, "group", &kernel->heads.group));
    return kernel;
}

/* Called for every session's options, one call at a time; the domain and its operators live as long as the process. */
ORT_EXPORT OrtStatus *ORT_CALL RegisterCustomOps(void *options, const OrtBase *base) {
    static void *domain = NULL;
    if (!domain) {
        ort = base->get_interface(ORT_INTERFACE_VERSION);
        OrtStatus *status = ORT(OrtCreateDomain, ORT_CREATE_CUSTOM_OP_DOMAIN)("fsrm", &domain);
        for (size_t i = 0; !status && i < OPERATORS; i++) {
            operators[i].base = (OrtCustomOp){.version = ORT_CUSTOM_OP_VERSION,
                                              .create_kernel = create_kernel,
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
                                              .compute_2 = compute};
            status = ORT(OrtDomainAdd, ORT_CUSTOM_OP_DOMAIN_ADD)(domain, &operators[i]);
        }
        if (status) return status;
    }
    return ORT(OrtAddDomain, ORT_ADD_CUSTOM_OP_DOMAIN)(options, domain);
}
