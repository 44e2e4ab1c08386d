/* A simulated libcuda: the entry points that supervisor/engine/cuda/libcuda.py calls. What is allocated
 * or parked here changes what the simulated NVML (scripts/lab/drivers/fake_nvml.c) tells.
 *
 *     SIMULATED_GPU_STATE   the file of the simulated driver
 *     FAKE_CUDA_LAYOUT      its size, and where in it the processes of the first device begin
 *     FAKE_CUDA_STATE       a file of our own: the state of the one process that is parked
 *     FAKE_CUDA_CALLS       a file that each call is appended to
 *     FAKE_CUDA_FAIL        a call that fails, and how: `cuCheckpointProcessRestore 801` */

#include <stdio.h>

#include "fake_driver.h"

enum { RUNNING, LOCKED, CHECKPOINTED };
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, ILLEGAL_STATE = 401 };

struct parked {
    uint32_t state;
    uint64_t bytes;
};

/* CUcheckpointLockArgs of cuda.h. */
struct lock_arguments {
    unsigned int timeout_ms, reserved[15];
};

/* Write the call down, and tell whether it shall fail. */
static int enter(const char *name, int pid) {
    FILE *calls = fopen(getenv("FAKE_CUDA_CALLS"), "a");
    if (calls == NULL) abort();
    fprintf(calls, pid ? "%s %d\n" : "%s\n", name, pid);
    fclose(calls);
    char failing[64] = "";
    int code = 0;
    const char *wish = getenv("FAKE_CUDA_FAIL");
    if (wish != NULL) sscanf(wish, "%63s %d", failing, &code);
    return strcmp(failing, name) == 0 ? code : SUCCESS;
}
#define ENTER(pid)                          \
    do {                                    \
        int result = enter(__func__, pid);  \
        if (result != SUCCESS) return result; \
    } while (0)

static struct process *places(void) {
    unsigned long size = 0, offset = 0;
    sscanf(getenv("FAKE_CUDA_LAYOUT"), "%lu %lu", &size, &offset);
    return (struct process *)((char *)map_state("SIMULATED_GPU_STATE", size) + offset);
}

static struct process *place_of(int pid) {
    struct process *all = places();
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (all[i].pid == (uint32_t)pid) return &all[i];
    return NULL;
}

int cuInit(unsigned int flags) {
    (void)flags;
    ENTER(0);
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_SIMULATED";
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    ENTER(0);
    *device = ordinal;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    ENTER(0);
    *context = (void *)1;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    (void)context;
    ENTER(0);
    return SUCCESS;
}

int cuMemAlloc_v2(unsigned long long *pointer, size_t size) {
    ENTER(0);
    struct process *place = place_of(0);
    if (place == NULL) return OUT_OF_MEMORY;
    memset(place, 0, sizeof *place);
    place->used_bytes = size;
    place->is_counted = place->release_steps = 1;
    place->release_after_s = 0.1;
    place->pid = (uint32_t)getpid();
    *pointer = 1;
    return SUCCESS;
}

#ifndef WITHOUT_CHECKPOINTS /* a driver from before 570 */
static struct parked *parked(void) { return map_state("FAKE_CUDA_STATE", sizeof(struct parked)); }

/* Go from one state to the next, moving the memory where that is part of it. */
static int move(int pid, uint32_t from, uint32_t to) {
    struct parked *it = parked();
    struct process *place = place_of(pid);
    if (it->state != from || place == NULL) return ILLEGAL_STATE;
    if (to == CHECKPOINTED) {
        it->bytes = place->used_bytes;
        place->used_bytes = 0;
    } else if (from == CHECKPOINTED) {
        place->used_bytes = it->bytes;
    }
    it->state = to;
    return SUCCESS;
}

int cuCheckpointProcessLock(int pid, struct lock_arguments *arguments) {
    ENTER(pid);
    for (int i = 0; i < 15; i++)
        if (arguments->reserved[i] != 0) return ILLEGAL_STATE;
    return arguments->timeout_ms == 0 ? ILLEGAL_STATE : move(pid, RUNNING, LOCKED);
}

int cuCheckpointProcessCheckpoint(int pid, void *arguments) {
    (void)arguments;
    ENTER(pid);
    return move(pid, LOCKED, CHECKPOINTED);
}

int cuCheckpointProcessRestore(int pid, void *arguments) {
    (void)arguments;
    ENTER(pid);
    return move(pid, CHECKPOINTED, LOCKED);
}

int cuCheckpointProcessUnlock(int pid, void *arguments) {
    (void)arguments;
    ENTER(pid);
    return move(pid, LOCKED, RUNNING);
}

int cuCheckpointProcessGetState(int pid, int *state) {
    (void)pid;
    *state = (int)parked()->state;
    return SUCCESS;
}
#endif
