/* The book: who holds how many bytes of which GPU. See standin.h for the state file and the life of a hold. */
#define _GNU_SOURCE
#include "standin.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------ processes */

uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* When a process started, in ticks; 0 when it is gone, or only waits to be reaped. */
static uint64_t start_ticks(uint64_t pid) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%llu/stat", (unsigned long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    char *after = strrchr(text, ')'); /* the name before it may hold anything */
    char state = 0;
    unsigned long long ticks = 0;
    const char *format = ") %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu";
    if (!after || sscanf(after, format, &state, &ticks) != 2 || state == 'Z' || state == 'X')
        return 0;
    return ticks;
}

static struct owner this_process(void) {
    static _Thread_local struct owner known; /* asked again after a fork */
    uint64_t pid = (uint64_t)getpid();
    if (known.pid != pid)
        known = (struct owner){pid, start_ticks(pid)};
    return known;
}

static bool same(struct owner one, struct owner other) {
    return one.pid == other.pid && one.start_ticks == other.start_ticks;
}

/* ------------------------------------------------------------ bringing the book up to date */

/* The store that makes all before it count. This process may be killed, so the order of its own stores matters. */
static void set_kind(struct hold *hold, enum kind kind) {
    atomic_signal_fence(memory_order_seq_cst);
    hold->kind = kind;
    atomic_signal_fence(memory_order_seq_cst);
}

static void release(struct hold *hold, uint64_t now) {
    hold->freed_at_ns = now;
    set_kind(hold, LAGGING);
}

/* Whatever the dead held lags from now on. */
static void bury(struct standin *state, uint64_t now) {
    struct owner known = {0, 0};
    bool lives = false;
    for (struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++) {
        if (hold->kind != MEMORY && hold->kind != CONTEXT)
            continue;
        if (!same(hold->owner, known)) { /* holds of one process mostly lie side by side */
            known = hold->owner;
            lives = start_ticks(known.pid) == known.start_ticks;
        }
        if (!lives)
            release(hold, now);
    }
}

void lock(struct standin *state) {
    if (pthread_mutex_lock(&state->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&state->lock); /* a half written hold has no kind yet: nothing to mend */
    uint64_t now = now_ns();
    bury(state, now);
    for (struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++)
        if (hold->kind == LAGGING && now - hold->freed_at_ns >= state->lag_ns)
            set_kind(hold, NOTHING);
}

void unlock(struct standin *state) {
    pthread_mutex_unlock(&state->lock);
}

/* ------------------------------------------------------------ looking; all with the lock held */

static bool lies_on(const struct standin *state, const struct hold *hold, int gpu) {
    return hold->kind != NOTHING && ((int)hold->gpu == gpu || state->gpus[hold->gpu].parent == gpu);
}

uint64_t held_bytes(const struct standin *state, int gpu, uint64_t pid) {
    uint64_t sum = 0;
    for (const struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++)
        if (lies_on(state, hold, gpu) && (!pid || (hold->kind != LAGGING && hold->owner.pid == pid)))
            sum += hold->bytes;
    return sum;
}

/* Other programs', instances included. */
static uint64_t foreign_bytes(const struct standin *state, int gpu) {
    uint64_t sum = 0;
    for (int row = 0; row < (int)state->gpu_count; row++)
        if (row == gpu || state->gpus[row].parent == gpu)
            sum += state->gpus[row].knobs[KNOB_foreign_bytes];
    return sum;
}

uint64_t free_bytes(const struct standin *state, int gpu) {
    const uint64_t *knobs = state->gpus[gpu].knobs;
    uint64_t taken = knobs[KNOB_reserved_bytes] + foreign_bytes(state, gpu) + held_bytes(state, gpu, 0);
    return taken < knobs[KNOB_total_bytes] ? knobs[KNOB_total_bytes] - taken : 0;
}

bool is_lost(const struct standin *state, int gpu) {
    int parent = state->gpus[gpu].parent;
    return state->gpus[parent == NO_PARENT ? gpu : parent].knobs[KNOB_lost];
}

int list_pids(const struct standin *state, int gpu, uint64_t *pids, int most) {
    int count = 0;
    uint64_t seen[MOST_HOLDS];
    for (const struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++) {
        int at = 0;
        if (!lies_on(state, hold, gpu) || hold->kind == LAGGING)
            continue;
        while (at < count && seen[at] != hold->owner.pid)
            at++;
        if (at == count)
            seen[count++] = hold->owner.pid;
    }
    for (int at = 0; at < count && at < most; at++)
        pids[at] = seen[at];
    return count;
}

/* ------------------------------------------------------------ allocating */

static int by_number(const struct standin *state, long number) {
    for (int gpu = 0; gpu < (int)state->gpu_count; gpu++)
        if (state->gpus[gpu].parent == NO_PARENT && number-- == 0)
            return gpu;
    return STANDIN_NO_GPU;
}

static int by_uuid(const struct standin *state, const char *beginning) {
    int found = STANDIN_NO_GPU;
    for (int gpu = 0; gpu < (int)state->gpu_count; gpu++) {
        if (strncmp(state->gpus[gpu].uuid, beginning, strlen(beginning)))
            continue;
        if (found >= 0)
            return STANDIN_NO_GPU; /* two begin so */
        found = gpu;
    }
    return found;
}

/* Row of the GPU or instance that memory may be taken on, or an error. */
static int find(const struct standin *state, const char *wanted) {
    bool digits = isdigit((unsigned char)*wanted);
    int gpu = !*wanted ? STANDIN_NO_GPU : digits ? by_number(state, atol(wanted)) : by_uuid(state, wanted);
    return gpu >= 0 && state->gpus[gpu].knobs[KNOB_mig] == 2 ? STANDIN_NO_GPU : gpu;
}

/* Free row, or NULL. */
static struct hold *free_row(struct standin *state) {
    for (struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++)
        if (hold->kind == NOTHING)
            return hold;
    return NULL;
}

static void note_peak(struct standin *state, int gpu) {
    uint64_t used = held_bytes(state, gpu, 0) + foreign_bytes(state, gpu);
    uint64_t *peak = &state->gpus[gpu].knobs[KNOB_peak_bytes];
    *peak = used > *peak ? used : *peak;
}

static struct hold *write_hold(struct standin *state, enum kind kind, int gpu, uint64_t bytes) {
    struct hold *hold = free_row(state);
    if (!hold)
        return NULL;
    hold->gpu = (uint32_t)gpu;
    hold->owner = this_process();
    hold->bytes = bytes;
    hold->serial++;
    hold->losses = state->gpus[gpu].knobs[KNOB_losses];
    set_kind(hold, kind);
    note_peak(state, gpu);
    return hold;
}

static struct hold *own_context(struct standin *state, int gpu) {
    struct owner self = this_process();
    for (struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++)
        if (hold->kind == CONTEXT && (int)hold->gpu == gpu && same(hold->owner, self))
            return hold;
    return NULL;
}

static int may_enter(const struct standin *state, int gpu) {
    uint64_t pid, mode = state->gpus[gpu].knobs[KNOB_compute_mode];
    bool taken = mode == 3 && list_pids(state, gpu, &pid, 1) > 0;
    return mode == 2 || taken ? STANDIN_FORBIDDEN : 0;
}

/* Make this process's context if it has none, which stays even if what it was made for does not fit; then the rest. */
static int64_t allocate(struct standin *state, int gpu, uint64_t bytes) {
    uint64_t *knobs = state->gpus[gpu].knobs;
    struct hold *context = own_context(state, gpu);
    if (is_lost(state, gpu) || (context && context->losses != knobs[KNOB_losses]))
        return STANDIN_LOST;
    int refused = context ? 0 : may_enter(state, gpu);
    if (refused)
        return refused;
    bool enters = !context && knobs[KNOB_context_bytes] <= free_bytes(state, gpu);
    if (enters && !(context = write_hold(state, CONTEXT, gpu, knobs[KNOB_context_bytes])))
        return STANDIN_FULL;
    uint64_t largest = knobs[KNOB_largest_block_bytes];
    if (!context || bytes > free_bytes(state, gpu) || (largest && bytes > largest)) {
        knobs[KNOB_out_of_memory]++;
        return STANDIN_OUT_OF_MEMORY;
    }
    struct hold *hold = write_hold(state, MEMORY, gpu, bytes);
    if (!hold)
        return STANDIN_FULL;
    knobs[KNOB_allocations]++;
    return (int64_t)(hold->serial * MOST_HOLDS + (uint64_t)(hold - state->holds));
}

int64_t standin_allocate(const char *gpu, uint64_t bytes) {
    struct standin *state = own_state();
    if (!state)
        return STANDIN_NO_STATE;
    lock(state);
    int row = find(state, gpu ? gpu : "");
    int64_t answer = row < 0 ? row : allocate(state, row, bytes);
    unlock(state);
    return answer;
}

int standin_free(int64_t handle) {
    struct standin *state = own_state();
    if (!state)
        return STANDIN_NO_STATE;
    lock(state);
    struct hold *hold = state->holds + (handle > 0 ? handle % MOST_HOLDS : 0);
    bool ours = handle > 0 && hold->kind == MEMORY && hold->serial == (uint64_t)handle / MOST_HOLDS &&
                same(hold->owner, this_process());
    if (ours)
        release(hold, now_ns());
    unlock(state);
    return ours ? 0 : STANDIN_NO_HANDLE;
}

/* ------------------------------------------------------------ looking from outside */

int64_t standin_held(struct standin *state, int gpu, uint64_t pid) {
    lock(state);
    int64_t sum = (int64_t)held_bytes(state, gpu, pid);
    unlock(state);
    return sum;
}

int64_t standin_lagging(struct standin *state, int gpu) {
    int64_t sum = 0;
    lock(state);
    for (const struct hold *hold = state->holds; hold < state->holds + MOST_HOLDS; hold++)
        if (hold->kind == LAGGING && lies_on(state, hold, gpu))
            sum += (int64_t)hold->bytes;
    unlock(state);
    return sum;
}

int standin_foreign(struct standin *state, int gpu, uint64_t bytes) {
    lock(state);
    uint64_t *foreign = &state->gpus[gpu].knobs[KNOB_foreign_bytes];
    bool fits = bytes <= *foreign || bytes - *foreign <= free_bytes(state, gpu);
    if (fits) {
        *foreign = bytes;
        note_peak(state, gpu);
    }
    unlock(state);
    return fits ? 0 : STANDIN_OUT_OF_MEMORY;
}

int standin_pids(struct standin *state, int gpu, uint64_t *pids, int most) {
    lock(state);
    int count = list_pids(state, gpu, pids, most);
    unlock(state);
    return count;
}

void standin_stall(struct standin *state) {
    lock(state);
    struct hold *hold = free_row(state);
    if (hold)
        *hold = (struct hold){.bytes = UINT64_MAX / 2, .serial = hold->serial};
}
