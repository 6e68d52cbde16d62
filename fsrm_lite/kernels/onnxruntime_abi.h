/* The part of ONNX Runtime's C interface that custom operators need.
 *
 * The interface is a table of function pointers that only ever grows at its end: ONNX Runtime's own source asserts the
 * places below at compile time, release by release, so they hold for every release from 1.17 on (interface version 17,
 * the first with KernelContext_ParallelFor). Declaring a dozen of them here spares a build-time dependency on its SDK,
 * which no Python package carries.
 */
#ifndef FSRM_ONNXRUNTIME_ABI_H
#define FSRM_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#define ORT_EXPORT __declspec(dllexport)
#else
#define ORT_CALL
#define ORT_EXPORT __attribute__((visibility("default")))
#endif

enum { ORT_INTERFACE_VERSION = 17 };

/* Element types of tensors. */
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3 };

enum { ORT_INVALID_ARGUMENT = 2 };

typedef void OrtStatus;  /* NULL is success */
typedef void (ORT_CALL *OrtPlace)(void);

typedef struct {
    const OrtPlace *(ORT_CALL *get_interface)(uint32_t version);
    const char *(ORT_CALL *get_version)(void);
} OrtBase;

/* Places in the table. */
enum {
    ORT_CREATE_STATUS = 0,
    ORT_CREATE_CUSTOM_OP_DOMAIN = 26,
    ORT_CUSTOM_OP_DOMAIN_ADD = 27,
    ORT_ADD_CUSTOM_OP_DOMAIN = 28,
    ORT_TENSOR_DATA = 51,
    ORT_DIMENSIONS_COUNT = 61,
    ORT_DIMENSIONS = 62,
    ORT_TENSOR_TYPE_AND_SHAPE = 65,
    ORT_ATTRIBUTE_FLOAT = 85,
    ORT_ATTRIBUTE_INT = 86,
    ORT_KERNEL_INPUT = 90,
    ORT_KERNEL_OUTPUT = 91,
    ORT_RELEASE_STATUS = 93,
    ORT_RELEASE_TENSOR_TYPE_AND_SHAPE = 99,
    ORT_PARALLEL_FOR = 274
};

typedef OrtStatus *(ORT_CALL *OrtCreateStatus)(int code, const char *message);
typedef OrtStatus *(ORT_CALL *OrtCreateDomain)(const char *name, void **domain);
typedef OrtStatus *(ORT_CALL *OrtDomainAdd)(void *domain, const void *op);
typedef OrtStatus *(ORT_CALL *OrtAddDomain)(void *options, void *domain);
typedef OrtStatus *(ORT_CALL *OrtTensorData)(void *value, void **data);
typedef OrtStatus *(ORT_CALL *OrtDimensionsCount)(const void *info, size_t *count);
typedef OrtStatus *(ORT_CALL *OrtDimensions)(const void *info, int64_t *dimensions, size_t count);
typedef OrtStatus *(ORT_CALL *OrtTypeAndShape)(const void *value, void **info);
typedef OrtStatus *(ORT_CALL *OrtAttributeFloat)(const void *info, const char *name, float *value);
typedef OrtStatus *(ORT_CALL *OrtAttributeInt)(const void *info, const char *name, int64_t *value);
typedef OrtStatus *(ORT_CALL *OrtKernelInput)(const void *context, size_t index, const void **value);
typedef OrtStatus *(ORT_CALL *OrtKernelOutput)(void *context, size_t index, const int64_t *dimensions, size_t count, void **value);
typedef void (ORT_CALL *OrtReleaseStatus)(OrtStatus *status);
typedef void (ORT_CALL *OrtReleaseTypeAndShape)(void *info);
typedef OrtStatus *(ORT_CALL *OrtParallelFor)(const void *context, void (ORT_CALL *body)(void *, size_t), size_t total, size_t batches, void *data);

/* What a custom operator tells of itself; version 16 of the structure ends where this one does. */
enum { ORT_CUSTOM_OP_VERSION = 16 };

typedef struct OrtCustomOp OrtCustomOp;
struct OrtCustomOp {
    uint32_t version;
    void *(ORT_CALL *create_kernel)(const OrtCustomOp *, const void *interface, const void *info);
    const char *(ORT_CALL *name)(const OrtCustomOp *);
    const char *(ORT_CALL *provider)(const OrtCustomOp *);
    int (ORT_CALL *input_type)(const OrtCustomOp *, size_t index);
    size_t (ORT_CALL *input_count)(const OrtCustomOp *);
    int (ORT_CALL *output_type)(const OrtCustomOp *, size_t index);
    size_t (ORT_CALL *output_count)(const OrtCustomOp *);
    void (ORT_CALL *compute)(void *kernel, void *context);
    void (ORT_CALL *destroy_kernel)(void *kernel);
    int (ORT_CALL *input_characteristic)(const OrtCustomOp *, size_t index);
    int (ORT_CALL *output_characteristic)(const OrtCustomOp *, size_t index);
    int (ORT_CALL *input_memory)(const OrtCustomOp *, size_t index);
    int (ORT_CALL *variadic[4])(const OrtCustomOp *); /* of operators with any number of inputs or outputs */
    OrtStatus *(ORT_CALL *create_kernel_2)(const OrtCustomOp *, const void *interface, const void *info, void **kernel);
    OrtStatus *(ORT_CALL *compute_2)(void *kernel, void *context);
};

#endif
