/* The state file: made, mapped, and its knobs read and turned. See standin.h for its layout. */
#define _GNU_SOURCE
#include "standin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const uint64_t MAGIC = 0x31304c4d564e5453; /* "STNVML01" */
static const char *const KNOB_NAMES[] = {
#define KNOB_TEXT(name) #name,
    KNOBS(KNOB_TEXT)
#undef KNOB_TEXT
};

/* ------------------------------------------------------------ making and mapping */

static struct standin *map(int fd) {
    void *at = mmap(NULL, sizeof(struct standin), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct standin *standin_create(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return NULL;
    struct standin *state = ftruncate(fd, sizeof(struct standin)) ? NULL : map(fd);
    close(fd);
    if (!state)
        return NULL;
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&state->lock, &kind);
    pthread_mutexattr_destroy(&kind);
    state->size = sizeof(struct standin);
    state->magic = MAGIC;
    return state;
}

struct standin *standin_open(const char *path) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    off_t length = lseek(fd, 0, SEEK_END); /* what lies beyond the end of a file must not be touched */
    struct standin *state = length == (off_t)sizeof(struct standin) ? map(fd) : NULL;
    close(fd);
    if (state && (state->magic != MAGIC || state->size != sizeof(struct standin))) {
        standin_close(state);
        state = NULL;
    }
    if (!state)
        errno = EINVAL;
    return state;
}

void standin_close(struct standin *state) {
    munmap(state, sizeof(struct standin));
}

struct standin *own_state(void) {
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    static struct standin *state;
    pthread_mutex_lock(&once);
    const char *path = getenv("STANDIN_NVML_STATE");
    if (!state && path)
        state = standin_open(path);
    pthread_mutex_unlock(&once);
    return state;
}

/* ------------------------------------------------------------ GPUs and knobs */

int standin_add(struct standin *state, int parent, const char *uuid, const char *name, uint64_t total_bytes) {
    lock(state);
    int row = state->gpu_count < MOST_GPUS ? (int)state->gpu_count : STANDIN_FULL;
    if (row >= 0) {
        struct gpu *gpu = &state->gpus[row];
        snprintf(gpu->uuid, sizeof gpu->uuid, "%s", uuid);
        snprintf(gpu->name, sizeof gpu->name, "%s", name);
        gpu->parent = parent;
        gpu->knobs[KNOB_total_bytes] = total_bytes;
        state->gpu_count++;
    }
    unlock(state);
    return row;
}

/* Where a knob lies, or NULL. */
static uint64_t *locate(struct standin *state, int gpu, const char *knob) {
    if (!strcmp(knob, "lag_ns"))
        return &state->lag_ns;
    if (!strcmp(knob, "hang_until_ns"))
        return &state->hang_until_ns;
    if (!strcmp(knob, "failure"))
        return &state->failure;
    for (int number = 0; number < KNOB_COUNT && gpu >= 0 && gpu < (int)state->gpu_count; number++)
        if (!strcmp(knob, KNOB_NAMES[number]))
            return &state->gpus[gpu].knobs[number];
    return NULL;
}

int64_t standin_get(struct standin *state, int gpu, const char *knob) {
    lock(state);
    uint64_t *value = locate(state, gpu, knob);
    int64_t answer = value ? (int64_t)*value : -1;
    unlock(state);
    return answer;
}

bool standin_set(struct standin *state, int gpu, const char *knob, uint64_t value) {
    lock(state);
    uint64_t *where = locate(state, gpu, knob);
    if (where)
        *where = value;
    unlock(state);
    return where;
}
