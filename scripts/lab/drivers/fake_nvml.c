/* A simulated NVIDIA driver: the NVML entry points that the product calls, answering from a file
 * that tests map and change (SIMULATED_GPU_STATE). Built as libnvidia-ml.so.1 and found through
 * LD_LIBRARY_PATH, so that the real pynvml bindings run against it.
 *
 * The structures have their twins in nvidia.py: a change here is a change there. */

#include <stdint.h>
#include <string.h>

#include "fake_driver.h"

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    ARGUMENT_VERSION_MISMATCH = 25,
    MEMORY_V2 = 0x02000028,
};

struct device {
    char uuid[96];
    char name[96];
    uint64_t total_bytes;
    uint64_t reserved_bytes;
    uint64_t used_bytes; /* by everybody whose process is not counted */
    uint32_t is_mig_enabled;
    int32_t mig_parent; /* -1: a GPU; else the position of the GPU it is a part of */
    uint32_t utilisation_percent;
    uint32_t temperature_c;
    uint32_t power_mw;
    struct process processes[MAX_PROCESSES];
};

struct state {
    uint32_t device_count; /* GPUs; MIG devices follow them in `devices` */
    uint32_t shutdown_count;
    struct fault faults[MAX_FAULTS];
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
struct pci_info {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};
struct utilization {
    unsigned int gpu, memory;
};

static struct state *state;

/* The first line of every entry point: what the test wants to go wrong goes wrong. */
#define ENTER(position)                                               \
    do {                                                              \
        int result = find_fault(state->faults, __func__, (position)); \
        if (result != SUCCESS) return result;                         \
    } while (0)
#define POSITION(device) ((int)((device) - state->devices))

static uint64_t used_on(struct device *device) {
    return device->used_bytes + held_by_all(device->processes);
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (state == NULL) state = map_state("SIMULATED_GPU_STATE", sizeof *state);
    ENTER(ANY_DEVICE);
    return SUCCESS;
}

int nvmlShutdown(void) {
    state->shutdown_count++;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    (void)result;
    return "an error that the bindings do not know";
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    ENTER(ANY_DEVICE);
    strncpy(version, "580.65.06", length);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    ENTER(ANY_DEVICE);
    *count = state->device_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct device **device) {
    if (index >= state->device_count) return INVALID_ARGUMENT;
    ENTER((int)index);
    *device = &state->devices[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned int length) {
    ENTER(POSITION(device));
    strncpy(uuid, device->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetName(struct device *device, char *name, unsigned int length) {
    ENTER(POSITION(device));
    strncpy(name, device->name, length);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci_info *place) {
    ENTER(POSITION(device));
    memset(place, 0, sizeof *place);
    place->bus = 0x1b + 0x10 * (unsigned int)POSITION(device);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned int *current, unsigned int *pending) {
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    ENTER(POSITION(device));
    *current = *pending = device->is_mig_enabled;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned int *count) {
    ENTER(POSITION(device));
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *parent, unsigned int index,
                                        struct device **mig_device) {
    ENTER(POSITION(parent));
    for (int i = 0; i < MAX_DEVICES; i++) {
        struct device *device = &state->devices[i];
        if (device->mig_parent != POSITION(parent) || device->uuid[0] == 0) continue;
        if (index-- == 0) {
            *mig_device = device;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory_v1 *memory) {
    ENTER(POSITION(device));
    memory->total = device->total_bytes;
    memory->used = used_on(device) + device->reserved_bytes; /* v1 knows no reserve */
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

#ifndef WITHOUT_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *memory) {
    ENTER(POSITION(device));
    if (memory->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
    memory->total = device->total_bytes;
    memory->reserved = device->reserved_bytes;
    memory->used = used_on(device);
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}
#endif

int nvmlDeviceGetUtilizationRates(struct device *device, struct utilization *rates) {
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    ENTER(POSITION(device));
    rates->gpu = rates->memory = device->utilisation_percent;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned int *degrees_c) {
    (void)sensor;
    ENTER(POSITION(device));
    *degrees_c = device->temperature_c;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(struct device *device, unsigned int *power_mw) {
    ENTER(POSITION(device));
    *power_mw = device->power_mw;
    return SUCCESS;
}

static int list_processes(struct device *device, unsigned int *count, struct process_info *infos) {
    unsigned int room = *count, found = 0;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        struct process *process = &device->processes[i];
        if (!is_listed(process)) continue;
        if (found < room) {
            infos[found].pid = listed_pid(process);
            infos[found].used_bytes = process->used_bytes;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned int *count,
                                            struct process_info *infos) {
    ENTER(POSITION(device));
    return list_processes(device, count, infos);
}

/* Every process here draws, too: the reader must not count it twice. */
int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *device, unsigned int *count,
                                             struct process_info *infos) {
    ENTER(POSITION(device));
    return list_processes(device, count, infos);
}
