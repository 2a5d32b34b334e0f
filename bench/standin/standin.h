/* A stand-in for the GPU driver: what its state file holds, and the calls on it that are not NVML's.
 *
 * All processes that use the stand-in map one file, named by the environment variable STANDIN_NVML_STATE:
 *
 *     +--------------+----------------------------------------------------------------------------+
 *     | head         | magic, size of this struct: a file of another build is refused             |
 *     | lock         | robust, process-shared mutex; held for every read and write below          |
 *     | driver       | lag_ns, hang_until_ns, failure, gpu_count                                  |
 *     | gpus[16]     | uuid, name, parent and knobs of GPUs and of MIG instances                  |
 *     | holds[1024]  | who has how many bytes where: one row an allocation or a process's context |
 *     +--------------+----------------------------------------------------------------------------+
 *
 * Killed at any moment. The kernel unlocks a robust mutex when its owner dies, and the next to lock it goes on. Nothing
 * has to be mended then, because no sum is stored: a hold counts from the one store of its `kind`, which comes last,
 * and what is used on a GPU is added up anew each time. (Peaks and counters only grow, and may miss what was half done.)
 *
 * A hold's life:   NOTHING -> MEMORY | CONTEXT -> LAGGING -> NOTHING
 * Memory is given back by its owner (LAGGING at once), or by its owner's death, which anybody notices who locks the
 * file (LAGGING from then on). LAGGING bytes are used, and shown so, until lag_ns have passed. An owner is a pid and the
 * time that process started, so that a pid that is used again is not taken for it. A context stays until its process
 * ends, as it does in CUDA.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

enum { MOST_GPUS = 16, MOST_HOLDS = 1024, UUID_BYTES = 80, NAME_BYTES = 96, NO_PARENT = -1 };

/* One number each, of every GPU and MIG instance. Sizes in bytes. */
#define KNOBS(KNOB)                                                                                                    \
    KNOB(total_bytes)                                                                                                  \
    KNOB(reserved_bytes)           /* the driver's own: never free, and not "used" in the second memory struct */      \
    KNOB(foreign_bytes)            /* other programs' */                                                               \
    KNOB(foreign_pid)              /* under which those are listed; 0: not listed */                                   \
    KNOB(context_bytes)            /* taken by the first allocation of each process */                                 \
    KNOB(largest_block_bytes)      /* no larger allocation succeeds, however much is free; 0: no limit */              \
    KNOB(lost)                     /* 1: every call says so, allocations fail */                                       \
    KNOB(losses)                   /* contexts from before the last loss are dead */                                   \
    KNOB(stuck_until_ns)           /* NVML calls on it that begin before this monotonic time wait for it */            \
    KNOB(unified)                  /* 1: shares main memory; memory info is "not supported" */                         \
    KNOB(mig)                      /* 0: cannot be divided, 1: not divided, 2: divided */                              \
    KNOB(instance)                 /* a MIG instance's number on its GPU */                                            \
    KNOB(compute_mode)             /* 0: default, 2: prohibited, 3: one process */                                     \
    KNOB(process_figures)          /* 0: shown, 1: bytes not available, 2: call not supported, 3: empty list */        \
    KNOB(ecc)                      /* 0: has none, 1: off, 2: on */                                                    \
    KNOB(ecc_corrected)            /* since the driver was loaded ("volatile") */                                      \
    KNOB(ecc_uncorrected)                                                                                              \
    KNOB(ecc_corrected_ever)       /* "aggregate" */                                                                   \
    KNOB(ecc_uncorrected_ever)                                                                                         \
    KNOB(pages_retired_corrected)  /* pages */                                                                         \
    KNOB(pages_retired_uncorrected)                                                                                    \
    KNOB(pages_pending)            /* 1: retired at the next reset */                                                  \
    KNOB(rows_remapped_corrected)  /* rows */                                                                          \
    KNOB(rows_remapped_uncorrected)                                                                                    \
    KNOB(rows_pending)             /* 1: remapped at the next reset */                                                 \
    KNOB(rows_failed)              /* 1: no spare row was left */                                                      \
    KNOB(recovery_action)          /* 0: none, 1: reset, 2: reboot, 3: drain peers, 4: drain and reset */              \
    KNOB(peak_bytes)               /* most that ever was used, foreign included (not reserved) */                      \
    KNOB(allocations)              /* that succeeded, contexts not counted */                                          \
    KNOB(out_of_memory)            /* allocations that found too little */

#define KNOB_NAME(name) KNOB_##name,
enum knob { KNOBS(KNOB_NAME) KNOB_COUNT };
#undef KNOB_NAME

enum kind { NOTHING, MEMORY, CONTEXT, LAGGING };

struct owner {
    uint64_t pid;
    uint64_t start_ticks; /* field 22 of /proc/PID/stat */
};

struct gpu {
    char uuid[UUID_BYTES];
    char name[NAME_BYTES];
    int32_t parent; /* row of the GPU that this is an instance of, or NO_PARENT */
    uint64_t knobs[KNOB_COUNT];
};

struct hold {
    uint32_t kind; /* enum kind; stored last */
    uint32_t gpu;
    struct owner owner;
    uint64_t bytes;
    uint64_t serial;      /* how often this row was used: part of the handle */
    uint64_t losses;      /* a context's: the GPU's when it was made */
    uint64_t freed_at_ns; /* LAGGING: since when, monotonic */
};

struct standin {
    uint64_t magic;
    uint64_t size;
    pthread_mutex_t lock;
    uint64_t lag_ns;
    uint64_t hang_until_ns; /* NVML calls that begin before this monotonic time wait for it */
    uint64_t failure;       /* NVML code that every NVML call returns; 0: none */
    uint64_t gpu_count;     /* rows of gpus in use */
    struct gpu gpus[MOST_GPUS];
    struct hold holds[MOST_HOLDS];
};

/* What the calls below return when they fail; where they return a number, 0 and above are it. */
enum {
    STANDIN_OUT_OF_MEMORY = -1,
    STANDIN_NO_GPU = -2,    /* not this one, or it is divided: take an instance */
    STANDIN_LOST = -3,      /* the GPU, or this process's context on it, is lost */
    STANDIN_FORBIDDEN = -4, /* by the compute mode */
    STANDIN_FULL = -5,      /* no row is left in the state file */
    STANDIN_NO_HANDLE = -6, /* not an allocation of this process */
    STANDIN_NO_STATE = -7,  /* STANDIN_NVML_STATE names no state file of this build */
};

/* ---- for programs that use a GPU: the state is the one that the environment names ---- */

/* Take bytes on a GPU, named by its number or the beginning of its UUID. Returns a handle above 0, or an error. */
EXPORTED int64_t standin_allocate(const char *gpu, uint64_t bytes);
/* Give back. Returns 0 or an error. */
EXPORTED int standin_free(int64_t handle);

/* ---- for whoever sets the stage ---- */

/* Make a state file, or map one that is there. NULL on failure, with errno. */
EXPORTED struct standin *standin_create(const char *path);
EXPORTED struct standin *standin_open(const char *path);
EXPORTED void standin_close(struct standin *state);
/* Add a GPU, or an instance of the GPU in row `parent`. Returns its row, or an error. */
EXPORTED int standin_add(struct standin *state, int parent, const char *uuid, const char *name, uint64_t total_bytes);
/* A knob by its name, or "lag_ns", "hang_until_ns", "failure" of any row. -1 / false when there is no such. */
EXPORTED int64_t standin_get(struct standin *state, int gpu, const char *knob);
EXPORTED bool standin_set(struct standin *state, int gpu, const char *knob, uint64_t value);
/* Let other programs hold so many bytes on a GPU. Returns 0 or, when there is too little, an error. */
EXPORTED int standin_foreign(struct standin *state, int gpu, uint64_t bytes);
/* Bytes on a GPU that processes hold (or, lagging, held), contexts included; of one pid, or of all (pid 0). */
EXPORTED int64_t standin_held(struct standin *state, int gpu, uint64_t pid);
/* Bytes of it that are given back and lag. */
EXPORTED int64_t standin_lagging(struct standin *state, int gpu);
/* The living processes that hold something: writes up to `most` pids, returns how many there are. */
EXPORTED int standin_pids(struct standin *state, int gpu, uint64_t *pids, int most);
/* For tests of the stand-in: half write a hold, keep the lock, return. */
EXPORTED void standin_stall(struct standin *state);

/* ---- inside the library ---- */

struct standin *own_state(void); /* the one the environment names, or NULL */
uint64_t now_ns(void);
void lock(struct standin *state);   /* and bring the book up to date: the dead, and what has lagged long enough */
void unlock(struct standin *state);
bool is_lost(const struct standin *state, int gpu);
uint64_t held_bytes(const struct standin *state, int gpu, uint64_t pid); /* instances included; pid 0: of all */
uint64_t free_bytes(const struct standin *state, int gpu);
int list_pids(const struct standin *state, int gpu, uint64_t *pids, int most);

#endif
