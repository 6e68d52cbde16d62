/* The part of ONNX Runtime's C interface that custom operators need.
 *
 * The interface is a table of function pointers that only ever grows at its end, so that the places below hold for
 * every release from 1.17 on (interface version 17, the first with KernelContext_ParallelFor). Declaring a dozen of
 * them here spares a build-time dependency on ONNX Runtime's SDK, which no Python package carries.
 */
#ifndef FSRM_ONNXRUNTIME_ABI_H
#define FSRM_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ORT_EXPORT __attribute__((visibility("default")))
#else
#define ORT_EXPORT
#endif

enum { ORT_INTERFACE_VERSION = 17 };

/* Element types of tensors. */
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3 };

enum { ORT_INVALID_ARGUMENT = 2 };

typedef void OrtStatus;  /* NULL is success */
typedef void (*OrtPlace)(void);

typedef struct {
    const OrtPlace *(*get_interface)(uint32_t version);
    const char *(*get_version)(void);
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
    ORT_RELEASE_TENSOR_TYPE_AND_SHAPE = 99,
    ORT_PARALLEL_FOR = 274
};

typedef OrtStatus *(*OrtCreateStatus)(int code, const char *message);
typedef OrtStatus *(*OrtCreateDomain)(const char *name, void **domain);
typedef OrtStatus *(*OrtDomainAdd)(void *domain, const void *op);
typedef OrtStatus *(*OrtAddDomain)(void *options, void *domain);
typedef OrtStatus *(*OrtTensorData)(void *value, void **data);
typedef OrtStatus *(*OrtDimensionsCount)(const void *info, size_t *count);
typedef OrtStatus *(*OrtDimensions)(const void *info, int64_t *dimensions, size_t count);
typedef OrtStatus *(*OrtTypeAndShape)(const void *value, void **info);
typedef OrtStatus *(*OrtAttributeFloat)(const void *info, const char *name, float *value);
typedef OrtStatus *(*OrtAttributeInt)(const void *info, const char *name, int64_t *value);
typedef OrtStatus *(*OrtKernelInput)(const void *context, size_t index, const void **value);
typedef OrtStatus *(*OrtKernelOutput)(void *context, size_t index, const int64_t *dimensions, size_t count, void **value);
typedef void (*OrtReleaseTypeAndShape)(void *info);
typedef OrtStatus *(*OrtParallelFor)(const void *context, void (*body)(void *, size_t), size_t total, size_t batches, void *data);

/* What a custom operator tells of itself; version 16 of the structure ends where this one does. */
enum { ORT_CUSTOM_OP_VERSION = 16 };

typedef struct OrtCustomOp OrtCustomOp;
struct OrtCustomOp {
    uint32_t version;
    void *(*create_kernel)(const OrtCustomOp *, const void *interface, const void *info);
    const char *(*name)(const OrtCustomOp *);
    const char *(*provider)(const OrtCustomOp *);
    int (*input_type)(const OrtCustomOp *, size_t index);
    size_t (*input_count)(const OrtCustomOp *);
    int (*output_type)(const OrtCustomOp *, size_t index);
    size_t (*output_count)(const OrtCustomOp *);
    void (*compute)(void *kernel, void *context);
    void (*destroy_kernel)(void *kernel);
    int (*input_characteristic)(const OrtCustomOp *, size_t index);
    int (*output_characteristic)(const OrtCustomOp *, size_t index);
    int (*input_memory)(const OrtCustomOp *, size_t index);
    int (*variadic[4])(const OrtCustomOp *); /* of operators with any number of inputs or outputs */
    OrtStatus *(*create_kernel_2)(const OrtCustomOp *, const void *interface, const void *info, void **kernel);
    OrtStatus *(*compute_2)(void *kernel, void *context);
};

#endif
