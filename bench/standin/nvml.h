/* The part of NVML's binary interface that the stand-in serves: numbers and layouts, as the public API reference
 * (docs.nvidia.com/deploy/nvml-api) and the nvidia-ml-py package on PyPI give them. Names are NVML's.
 */
#ifndef NVML_H
#define NVML_H

#include "standin.h"

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t; /* here: row of gpus, plus one */

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
};

#define NVML_VALUE_NOT_AVAILABLE UINT64_MAX
#define NVML_MEMORY_V2 ((unsigned)(sizeof(nvmlMemory_v2_t) | 2u << 24))

typedef struct {
    unsigned long long total, free, used; /* used: what is not free */
} nvmlMemory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used; /* used: without what is reserved */
} nvmlMemory_v2_t;

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId; /* UINT32_MAX: none */
} nvmlProcessInfo_t;

typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

enum { NVML_VALUE_TYPE_UNSIGNED_INT = 1, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = 3 };

typedef struct {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned valueType;
    nvmlReturn_t nvmlReturn;
    union {
        double number;
        unsigned unsigned_int;
        unsigned long long unsigned_long_long;
    } value;
} nvmlFieldValue_t;

/* Begin a call: wait while the driver hangs, then lock. Returns NVML_SUCCESS with *state locked, or an error. */
nvmlReturn_t begin(struct standin **state);
/* ... on a device that is there: *gpu is its row. */
nvmlReturn_t begin_on(nvmlDevice_t device, struct standin **state, int *gpu);
/* End a call with this answer. */
nvmlReturn_t answer(struct standin *state, nvmlReturn_t code);
/* A copy of one knob of a device, or why not. */
nvmlReturn_t read_knob(nvmlDevice_t device, enum knob knob, uint64_t *value);

#endif
