/* NVML's calls: the driver itself, its devices, their memory, and the processes on them. Health is in health.c. */
#define _GNU_SOURCE
#include "nvml.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static atomic_int users; /* nvmlInit without nvmlShutdown, in this process */

/* ------------------------------------------------------------ beginning and ending a call */

/* In steps, so that a hang which is ended early ends. No lock is held meanwhile: others see their own hang. */
static void hang(const volatile uint64_t *until_ns) {
    const struct timespec step = {0, 5000000};
    while (now_ns() < *until_ns)
        nanosleep(&step, NULL);
}

/* An instance hangs with its GPU. */
static void hang_on(const struct standin *state, int gpu) {
    for (; gpu != NO_PARENT; gpu = state->gpus[gpu].parent)
        hang(&state->gpus[gpu].knobs[KNOB_stuck_until_ns]);
}

static nvmlReturn_t begin_any(struct standin **state) {
    *state = own_state();
    if (!*state)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    hang(&(*state)->hang_until_ns);
    lock(*state);
    return (*state)->failure ? answer(*state, (nvmlReturn_t)(*state)->failure) : NVML_SUCCESS;
}

nvmlReturn_t begin(struct standin **state) {
    return users > 0 ? begin_any(state) : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t begin_on(nvmlDevice_t device, struct standin **state, int *gpu) {
    nvmlReturn_t code = begin(state);
    if (code)
        return code;
    *gpu = (int)(intptr_t)device - 1;
    if (*gpu < 0 || *gpu >= (int)(*state)->gpu_count)
        return answer(*state, NVML_ERROR_INVALID_ARGUMENT);
    unlock(*state);
    hang_on(*state, *gpu);
    lock(*state);
    return is_lost(*state, *gpu) ? answer(*state, NVML_ERROR_GPU_IS_LOST) : NVML_SUCCESS;
}

nvmlReturn_t answer(struct standin *state, nvmlReturn_t code) {
    unlock(state);
    return code;
}

nvmlReturn_t read_knob(nvmlDevice_t device, enum knob knob, uint64_t *value) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    *value = state->gpus[gpu].knobs[knob];
    return answer(state, NVML_SUCCESS);
}

static nvmlReturn_t copy(char *to, unsigned length, const char *text) {
    int needed = snprintf(to, length, "%s", text);
    return (unsigned)needed < length ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

/* ------------------------------------------------------------ the driver */

EXPORTED nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    struct standin *state;
    nvmlReturn_t code = begin_any(&state);
    if (code)
        return code;
    users++;
    return answer(state, NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlInit_v2(void) {
    return nvmlInitWithFlags(0);
}

EXPORTED nvmlReturn_t nvmlShutdown(void) {
    if (users <= 0)
        return NVML_ERROR_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

EXPORTED const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case NVML_SUCCESS:
        return "The operation was successful";
    case NVML_ERROR_DRIVER_NOT_LOADED:
        return "Driver Not Loaded";
    case NVML_ERROR_GPU_IS_LOST:
        return "GPU is lost";
    default:
        return "An error of the stand-in driver";
    }
}

EXPORTED nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return copy(version, length, "0.stand-in");
}

EXPORTED nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    return copy(version, length, "0.stand-in");
}

EXPORTED nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12080; /* 12.8 */
    return NVML_SUCCESS;
}

/* ------------------------------------------------------------ devices */

EXPORTED nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    struct standin *state;
    nvmlReturn_t code = begin(&state);
    if (code)
        return code;
    *count = 0;
    for (unsigned row = 0; row < state->gpu_count; row++)
        *count += state->gpus[row].parent == NO_PARENT;
    return answer(state, NVML_SUCCESS);
}

/* Hand out the handle of a row; the state is locked. */
static nvmlReturn_t hand_out(struct standin *state, int gpu, nvmlDevice_t *device) {
    unlock(state);
    hang_on(state, gpu);
    lock(state);
    if (is_lost(state, gpu))
        return answer(state, NVML_ERROR_GPU_IS_LOST);
    *device = (nvmlDevice_t)(intptr_t)(gpu + 1);
    return answer(state, NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    struct standin *state;
    nvmlReturn_t code = begin(&state);
    if (code)
        return code;
    for (int row = 0; row < (int)state->gpu_count; row++)
        if (state->gpus[row].parent == NO_PARENT && index-- == 0)
            return hand_out(state, row, device);
    return answer(state, NVML_ERROR_INVALID_ARGUMENT);
}

EXPORTED nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    struct standin *state;
    nvmlReturn_t code = begin(&state);
    if (code)
        return code;
    for (int row = 0; row < (int)state->gpu_count; row++)
        if (!strcmp(state->gpus[row].uuid, uuid))
            return hand_out(state, row, device);
    return answer(state, NVML_ERROR_NOT_FOUND);
}

EXPORTED nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    *index = 0;
    for (int row = 0; row < gpu; row++)
        *index += state->gpus[row].parent == NO_PARENT;
    return answer(state, NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    return code ? code : answer(state, copy(name, length, state->gpus[gpu].name));
}

EXPORTED nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    return code ? code : answer(state, copy(uuid, length, state->gpus[gpu].uuid));
}

EXPORTED nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) {
    unsigned index;
    nvmlReturn_t code = nvmlDeviceGetIndex(device, &index);
    if (code)
        return code;
    *info = (nvmlPciInfo_t){.bus = index + 1};
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:%02X:00.0", index + 1);
    snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", index + 1);
    return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    uint64_t unused;
    *major = 8, *minor = 9;
    return read_knob(device, KNOB_total_bytes, &unused);
}

EXPORTED nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, unsigned *mode) {
    uint64_t value = 0;
    nvmlReturn_t code = read_knob(device, KNOB_compute_mode, &value);
    *mode = (unsigned)value;
    return code;
}

/* ------------------------------------------------------------ divided GPUs */

EXPORTED nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    uint64_t mig;
    nvmlReturn_t code = read_knob(device, KNOB_mig, &mig);
    if (code)
        return code;
    *current = *pending = mig == 2;
    return mig ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORTED nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
    uint64_t mig;
    nvmlReturn_t code = read_knob(device, KNOB_mig, &mig);
    *count = !code && mig ? 7 : 0;
    return code;
}

EXPORTED nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *instance) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    for (int row = 0; row < (int)state->gpu_count; row++)
        if (state->gpus[row].parent == gpu && index-- == 0)
            return hand_out(state, row, instance);
    return answer(state, NVML_ERROR_NOT_FOUND);
}

EXPORTED nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t instance, nvmlDevice_t *device) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(instance, &state, &gpu);
    if (code)
        return code;
    int parent = state->gpus[gpu].parent;
    return parent == NO_PARENT ? answer(state, NVML_ERROR_INVALID_ARGUMENT) : hand_out(state, parent, device);
}

EXPORTED nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is_instance) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    *is_instance = state->gpus[gpu].parent != NO_PARENT;
    return answer(state, NVML_SUCCESS);
}

/* ------------------------------------------------------------ memory */

EXPORTED nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    struct standin *state;
    int gpu;
    if (memory->version != NVML_MEMORY_V2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    const uint64_t *knobs = state->gpus[gpu].knobs;
    if (knobs[KNOB_unified])
        return answer(state, NVML_ERROR_NOT_SUPPORTED);
    memory->total = knobs[KNOB_total_bytes];
    memory->reserved = knobs[KNOB_reserved_bytes];
    memory->free = free_bytes(state, gpu);
    memory->used = memory->total - memory->reserved - memory->free;
    return answer(state, NVML_SUCCESS);
}

EXPORTED nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlMemory_v2_t full = {.version = NVML_MEMORY_V2};
    nvmlReturn_t code = nvmlDeviceGetMemoryInfo_v2(device, &full);
    if (!code)
        *memory = (nvmlMemory_t){full.total, full.free, full.total - full.free};
    return code;
}

/* ------------------------------------------------------------ processes */

/* The instance that a GPU's process is listed with. */
static unsigned instance_of(const struct standin *state, int gpu, uint64_t pid) {
    for (int row = 0; row < (int)state->gpu_count; row++)
        if ((row == gpu || state->gpus[row].parent == gpu) && state->gpus[row].parent != NO_PARENT &&
            held_bytes(state, row, pid))
            return (unsigned)state->gpus[row].knobs[KNOB_instance];
    return UINT32_MAX;
}

static nvmlReturn_t list_processes(const struct standin *state, int gpu, unsigned *count, nvmlProcessInfo_t *infos) {
    const uint64_t *knobs = state->gpus[gpu].knobs;
    uint64_t pids[MOST_HOLDS + 1];
    unsigned there = (unsigned)list_pids(state, gpu, pids, MOST_HOLDS), room = infos ? *count : 0;
    bool with_foreign = knobs[KNOB_foreign_bytes] && knobs[KNOB_foreign_pid];
    if (with_foreign)
        pids[there++] = knobs[KNOB_foreign_pid];
    if (knobs[KNOB_process_figures] == 3)
        there = 0;
    *count = there;
    if (there > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned at = 0; at < there; at++) {
        bool foreign = with_foreign && at == there - 1;
        uint64_t bytes = foreign ? knobs[KNOB_foreign_bytes] : held_bytes(state, gpu, pids[at]);
        bytes = knobs[KNOB_process_figures] == 1 ? NVML_VALUE_NOT_AVAILABLE : bytes;
        unsigned instance = foreign ? UINT32_MAX : instance_of(state, gpu, pids[at]);
        infos[at] = (nvmlProcessInfo_t){(unsigned)pids[at], bytes, instance, UINT32_MAX};
    }
    return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(
    nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos) {
    struct standin *state;
    int gpu;
    nvmlReturn_t code = begin_on(device, &state, &gpu);
    if (code)
        return code;
    if (state->gpus[gpu].knobs[KNOB_process_figures] == 2)
        return answer(state, NVML_ERROR_NOT_SUPPORTED);
    return answer(state, list_processes(state, gpu, count, infos));
}

EXPORTED nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(
    nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos) {
    (void)infos;
    uint64_t unused;
    *count = 0;
    return read_knob(device, KNOB_total_bytes, &unused);
}
