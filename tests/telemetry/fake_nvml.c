/* A small NVML for tests: the entry points that the NVIDIA reader calls, answering from a file
 * that the test maps and changes (FAKE_NVML_STATE). Built as libnvidia-ml.so.1 and found through
 * LD_LIBRARY_PATH, so that the real pynvml bindings run against it.
 *
 * `struct state` and `struct device` have their twins in test_nvidia_memory.py:
 * a change here is a change there. */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    ARGUMENT_VERSION_MISMATCH = 25,
    MEMORY_V2 = 0x02000028,
    MAX_DEVICES = 4,
    MAX_PROCESSES = 4,
};

struct process {
    uint64_t used_bytes;
    uint32_t pid;
};

struct device {
    char uuid[96];
    char name[96];
    uint64_t total_bytes;
    uint64_t reserved_bytes;
    uint64_t used_bytes;
    int32_t handle_result;
    int32_t memory_result;
    int32_t process_result;
    uint32_t process_count;
    uint32_t is_mig_enabled;
    int32_t mig_parent; /* -1: a GPU; else the position of the GPU it is a part of */
    struct process processes[MAX_PROCESSES];
};

struct state {
    int32_t init_result;
    uint32_t is_hung;
    uint32_t device_count; /* GPUs; MIG devices follow them in `devices` */
    uint32_t shutdown_count;
    struct device devices[MAX_DEVICES];
};

/* NVML's own structures, as pynvml lays them out. */
struct memory_v1 {
    unsigned long long total, free, used;
};
struct memory_v2 {
    unsigned int version;
    unsigned long long total, reserved, free, used;
};
struct process_info {
    unsigned int pid;
    unsigned long long used_bytes;
    unsigned int gpu_instance, compute_instance;
};

static struct state *state;

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (state == NULL) {
        int file = open(getenv("FAKE_NVML_STATE"), O_RDWR);
        if (file < 0) abort();
        void *map = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (map == MAP_FAILED) abort();
        close(file);
        state = map;
    }
    return state->init_result;
}

int nvmlShutdown(void) {
    state->shutdown_count++;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    (void)result;
    return "an error that the bindings do not know";
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = state->device_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct device **device) {
    if (index >= state->device_count) return INVALID_ARGUMENT;
    *device = &state->devices[index];
    return (*device)->handle_result;
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned int length) {
    strncpy(uuid, device->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetName(struct device *device, char *name, unsigned int length) {
    strncpy(name, device->name, length);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned int *current, unsigned int *pending) {
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    *current = *pending = device->is_mig_enabled;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned int *count) {
    (void)device;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *parent, unsigned int index,
                                        struct device **mig_device) {
    for (int i = 0; i < MAX_DEVICES; i++) {
        struct device *device = &state->devices[i];
        if (device->mig_parent != parent - state->devices || device->uuid[0] == 0) continue;
        if (index-- == 0) {
            *mig_device = device;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

static void hang_if_asked(void) {
    while (state->is_hung) usleep(1000);
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory_v1 *memory) {
    hang_if_asked();
    if (device->memory_result != SUCCESS) return device->memory_result;
    memory->total = device->total_bytes;
    memory->used = device->used_bytes + device->reserved_bytes; /* v1 knows no reserve */
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

#ifndef WITHOUT_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *memory) {
    hang_if_asked();
    if (memory->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
    if (device->memory_result != SUCCESS) return device->memory_result;
    memory->total = device->total_bytes;
    memory->reserved = device->reserved_bytes;
    memory->used = device->used_bytes;
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}
#endif

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned int *count,
                                            struct process_info *infos) {
    if (device->process_result != SUCCESS) return device->process_result;
    unsigned int room = *count;
    *count = device->process_count;
    if (device->process_count > room) return INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < device->process_count; i++) {
        infos[i].pid = device->processes[i].pid;
        infos[i].used_bytes = device->processes[i].used_bytes;
    }
    return SUCCESS;
}

/* Every process here draws, too: the reader must not count it twice. */
int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *device, unsigned int *count,
                                             struct process_info *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos);
}
