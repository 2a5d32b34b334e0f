/* NVML's calls on a GPU's health: ECC counters, retired pages, remapped rows, what to do about it. */
#define _GNU_SOURCE
#include "nvml.h"

enum { CORRECTED = 0, UNCORRECTED = 1 }; /* nvmlMemoryErrorType_t; of retired pages: the cause */
enum { VOLATILE = 0, AGGREGATE = 1 };    /* nvmlEccCounterType_t */
enum { DEVICE_MEMORY = 2 };              /* nvmlMemoryLocation_t */

static bool has_ecc(const struct standin *state, int gpu) {
    return state->gpus[gpu].knobs[KNOB_ecc] == 2;
}

/* ------------------------------------------------------------ ECC */

EXPORTED nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    uint64_t ecc;
    nvmlReturn_t code = read_knob(device, KNOB_ecc, &ecc);
    if (code)
        return code;
    *current = *pending = ecc == 2;
    return ecc ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORTED nvmlReturn_t nvmlDeviceGetTotalEccErrors(
    nvmlDevice_t device, unsigned type, unsigned counter, unsigned long long *count) {
    static const enum knob KNOB[2][2] = {
        {KNOB_ecc_corrected, KNOB_ecc_corrected_ever},
        {KNOB_ecc_uncorrected, KNOB_ecc_uncorrected_ever},
    };
    struct standin *state;
    int gpu;
    if (type > UNCORRECTED || counter > AGGREGATE)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    *count = state->gpus[gpu].knobs[KNOB[type][counter]];
    return answer(state, has_ecc(state, gpu) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED);
}

/* All errors are in the device's memory. */
EXPORTED nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(
    nvmlDevice_t device, unsigned type, unsigned counter, unsigned location, unsigned long long *count) {
    nvmlReturn_t code = nvmlDeviceGetTotalEccErrors(device, type, counter, count);
    if (!code && location != DEVICE_MEMORY)
        *count = 0;
    return code;
}

/* ------------------------------------------------------------ pages and rows */

EXPORTED nvmlReturn_t nvmlDeviceGetRetiredPages_v2(
    nvmlDevice_t device, unsigned cause, unsigned *count, unsigned long long *pages, unsigned long long *times) {
    uint64_t retired;
    enum knob knob = cause == CORRECTED ? KNOB_pages_retired_corrected : KNOB_pages_retired_uncorrected;
    nvmlReturn_t code = cause > UNCORRECTED ? NVML_ERROR_INVALID_ARGUMENT : read_knob(device, knob, &retired);
    if (code)
        return code;
    unsigned room = pages ? *count : 0;
    *count = (unsigned)retired;
    if (retired > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned at = 0; at < retired; at++) {
        pages[at] = (at + 1) * 4096ull;
        if (times)
            times[at] = 0;
    }
    return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetRetiredPages(
    nvmlDevice_t device, unsigned cause, unsigned *count, unsigned long long *pages) {
    return nvmlDeviceGetRetiredPages_v2(device, cause, count, pages, 0);
}

EXPORTED nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, unsigned *pending) {
    uint64_t value = 0;
    nvmlReturn_t code = read_knob(device, KNOB_pages_pending, &value);
    *pending = (unsigned)value;
    return code;
}

EXPORTED nvmlReturn_t nvmlDeviceGetRemappedRows(
    nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    const uint64_t *knobs = state->gpus[gpu].knobs;
    *corrected = (unsigned)knobs[KNOB_rows_remapped_corrected];
    *uncorrected = (unsigned)knobs[KNOB_rows_remapped_uncorrected];
    *pending = (unsigned)knobs[KNOB_rows_pending];
    *failed = (unsigned)knobs[KNOB_rows_failed];
    return answer(state, NVML_SUCCESS);
}

/* ------------------------------------------------------------ the same as fields, and the recovery action */

static const struct field {
    unsigned id;
    enum knob knob;
    unsigned type;
    bool needs_ecc;
} FIELDS[] = {
    {3, KNOB_ecc_corrected, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, true},
    {4, KNOB_ecc_uncorrected, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, true},
    {5, KNOB_ecc_corrected_ever, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, true},
    {6, KNOB_ecc_uncorrected_ever, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, true},
    {29, KNOB_pages_retired_corrected, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, false},
    {30, KNOB_pages_retired_uncorrected, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, false},
    {31, KNOB_pages_pending, NVML_VALUE_TYPE_UNSIGNED_INT, false},
    {142, KNOB_rows_remapped_corrected, NVML_VALUE_TYPE_UNSIGNED_INT, false},
    {143, KNOB_rows_remapped_uncorrected, NVML_VALUE_TYPE_UNSIGNED_INT, false},
    {144, KNOB_rows_pending, NVML_VALUE_TYPE_UNSIGNED_INT, false},
    {145, KNOB_rows_failed, NVML_VALUE_TYPE_UNSIGNED_INT, false},
    {230, KNOB_recovery_action, NVML_VALUE_TYPE_UNSIGNED_INT, false},
};

static void fill(const struct standin *state, int gpu, nvmlFieldValue_t *value) {
    value->timestamp = (long long)(now_ns() / 1000);
    value->latencyUsec = 0;
    value->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    for (const struct field *field = FIELDS; field < FIELDS + sizeof FIELDS / sizeof *FIELDS; field++) {
        if (field->id != value->fieldId || (field->needs_ecc && !has_ecc(state, gpu)))
            continue;
        value->nvmlReturn = NVML_SUCCESS;
        value->valueType = field->type;
        value->value.unsigned_long_long = state->gpus[gpu].knobs[field->knob]; /* little-endian: an int is its start */
    }
}

EXPORTED nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    for (int at = 0; at < count; at++)
        fill(state, gpu, &values[at]);
    return answer(state, NVML_SUCCESS);
}
