/* A simulated AMD driver: the AMD SMI entry points that the product calls, answering from a file
 * that tests map and change (SIMULATED_AMD_STATE). Linked into libamd_smi.so with a stub for every
 * other symbol that the real bindings look up, and found through ROCM_PATH.
 *
 * The structures of the state have their twins in amd.py. */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "fake_driver.h"

enum {
    SUCCESS = 0,
    NOT_SUPPORTED = 2,
    OUT_OF_RESOURCES = 15,
    AMD_GPU = 1,
    VRAM = 0,
    GTT = 2,
    EDGE = 0,
    HOTSPOT = 1,
    NOT_TOLD_16 = 0xFFFF, /* how the library marks figures of 16 bits that it does not have */
};

struct device {
    char name[96];
    char uuid[96];
    uint64_t serial; /* which ROCr's UUID is made of */
    uint64_t total_bytes;
    uint64_t used_bytes; /* of VRAM, by everybody whose process is not counted */
    uint64_t gtt_total_bytes;
    uint64_t gtt_used_bytes;
    uint32_t metrics_format; /* 1: a discrete card, 2 and 3: an APU, whose processes hold GTT */
    uint32_t hip_id;
    uint32_t render_minor;
    uint32_t utilisation_percent;
    uint32_t edge_c;
    uint32_t hotspot_c; /* 0: no such sensor */
    uint32_t current_power_w;
    uint32_t average_power_w;
    struct process processes[MAX_PROCESSES];
};

struct state {
    uint32_t device_count;
    uint32_t shutdown_count;
    struct fault faults[MAX_FAULTS];
    struct device devices[MAX_DEVICES];
};

/* AMD SMI's own structures, as the bindings lay them out. */
struct asic_info {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[256];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[256];
    uint32_t oam_id, num_of_compute_units;
    uint64_t target_graphics_version;
    uint32_t subsystem_id, reserved[21];
};
struct enumeration_info {
    uint32_t drm_render, drm_card, hsa_id, hip_id;
    char hip_uuid[256];
};
struct driver_info {
    char version[256], date[256], name[256];
};
struct metrics_header {
    uint16_t size;
    uint8_t format_revision, content_revision;
};
struct engine_usage {
    uint32_t gfx, umc, mm, reserved[13];
};
struct power_info {
    uint64_t socket_power;
    uint32_t current_socket_power, average_socket_power;
    uint64_t gfx_voltage, soc_voltage, mem_voltage;
    uint32_t power_limit;
    uint64_t reserved[18];
};
struct process_info {
    char name[256];
    uint32_t pid;
    uint64_t mem;
    struct {
        uint64_t gfx, enc;
        uint32_t reserved[12];
    } engine_usage;
    struct {
        uint64_t gtt_mem, cpu_mem, vram_mem;
        uint32_t reserved[10];
    } memory_usage;
    char container_name[256];
    uint32_t cu_occupancy, reserved[11];
};

static struct state *state;

/* The first line of every entry point: what the test wants to go wrong goes wrong. */
#define ENTER(position)                                               \
    do {                                                              \
        int result = find_fault(state->faults, __func__, (position)); \
        if (result != SUCCESS) return result;                         \
    } while (0)
#define POSITION(device) ((int)((device) - state->devices))

static int is_apu(const struct device *device) {
    return device->metrics_format != 1;
}

int amdsmi_init(uint64_t flags) {
    (void)flags;
    puts("a driver's library that writes to standard output");
    fflush(stdout);
    if (getenv("SIMULATED_AMD_NOISE") != NULL && write(STDIN_FILENO, "noise\n", 6) != 6) abort();
    if (state == NULL) state = map_state("SIMULATED_AMD_STATE", sizeof *state);
    ENTER(ANY_DEVICE);
    return SUCCESS;
}

int amdsmi_shut_down(void) {
    state->shutdown_count++;
    return SUCCESS;
}

/* A socket for each card; a card's handle and its socket's are its place in the state. */
int amdsmi_get_socket_handles(uint32_t *count, struct device **sockets) {
    ENTER(ANY_DEVICE);
    *count = state->device_count;
    if (sockets == NULL) return SUCCESS;
    for (uint32_t i = 0; i < state->device_count; i++) sockets[i] = &state->devices[i];
    return SUCCESS;
}

int amdsmi_get_processor_handles(struct device *socket, uint32_t *count,
                                 struct device **processors) {
    ENTER(ANY_DEVICE);
    *count = 1;
    if (processors != NULL) processors[0] = socket;
    return SUCCESS;
}

int amdsmi_get_processor_type(struct device *device, uint32_t *type) {
    ENTER(POSITION(device));
    *type = AMD_GPU;
    return SUCCESS;
}

int amdsmi_get_gpu_asic_info(struct device *device, struct asic_info *info) {
    ENTER(POSITION(device));
    memset(info, 0, sizeof *info);
    strcpy(info->market_name, device->name);
    strcpy(info->vendor_name, "Advanced Micro Devices, Inc.");
    snprintf(info->asic_serial, sizeof info->asic_serial, "%llx",
             (unsigned long long)device->serial);
    return SUCCESS;
}

int amdsmi_get_gpu_device_uuid(struct device *device, uint32_t *length, char *uuid) {
    ENTER(POSITION(device));
    strncpy(uuid, device->uuid, *length);
    return SUCCESS;
}

int amdsmi_get_gpu_device_bdf(struct device *device, uint64_t *bdf) {
    ENTER(POSITION(device));
    uint64_t bus = 0xc3 + 0x10 * (uint64_t)POSITION(device);
    *bdf = bus << 8; /* function: 3 bits, device: 5, bus: 8, domain: 48 */
    return SUCCESS;
}

int amdsmi_get_gpu_enumeration_info(struct device *device, struct enumeration_info *info) {
    ENTER(POSITION(device));
    memset(info, 0, sizeof *info);
    info->drm_render = device->render_minor;
    info->hip_id = device->hip_id;
    return SUCCESS;
}

int amdsmi_get_gpu_driver_info(struct device *device, struct driver_info *info) {
    ENTER(POSITION(device));
    memset(info, 0, sizeof *info);
    strcpy(info->version, "6.16.6");
    strcpy(info->name, "amdgpu");
    return SUCCESS;
}

int amdsmi_get_gpu_metrics_header_info(struct device *device, struct metrics_header *header) {
    ENTER(POSITION(device));
    header->format_revision = (uint8_t)device->metrics_format;
    return SUCCESS;
}

int amdsmi_get_gpu_memory_total(struct device *device, uint32_t kind, uint64_t *total) {
    ENTER(POSITION(device));
    if (kind != VRAM && kind != GTT) return NOT_SUPPORTED;
    *total = kind == GTT ? device->gtt_total_bytes : device->total_bytes;
    return SUCCESS;
}

int amdsmi_get_gpu_memory_usage(struct device *device, uint32_t kind, uint64_t *used) {
    ENTER(POSITION(device));
    if (kind != VRAM && kind != GTT) return NOT_SUPPORTED;
    *used = kind == GTT ? device->gtt_used_bytes : device->used_bytes;
    if ((kind == GTT) == is_apu(device)) *used += held_by_all(device->processes);
    return SUCCESS;
}

int amdsmi_get_gpu_activity(struct device *device, struct engine_usage *usage) {
    ENTER(POSITION(device));
    usage->gfx = device->utilisation_percent;
    usage->umc = usage->mm = NOT_TOLD_16;
    return SUCCESS;
}

int amdsmi_get_temp_metric(struct device *device, uint32_t sensor, uint32_t metric,
                           int64_t *degrees_c) {
    ENTER(POSITION(device));
    if (metric != 0 || sensor > HOTSPOT) return NOT_SUPPORTED;
    if (sensor == HOTSPOT && device->hotspot_c == 0) return NOT_SUPPORTED;
    *degrees_c = sensor == EDGE ? device->edge_c : device->hotspot_c;
    return SUCCESS;
}

int amdsmi_get_power_info(struct device *device, struct power_info *info) {
    ENTER(POSITION(device));
    memset(info, 0, sizeof *info);
    info->socket_power = info->gfx_voltage = info->soc_voltage = NOT_TOLD_16;
    info->current_socket_power = device->current_power_w;
    info->average_socket_power = device->average_power_w;
    return SUCCESS;
}

int amdsmi_get_gpu_process_list(struct device *device, uint32_t *count,
                                struct process_info *infos) {
    ENTER(POSITION(device));
    uint32_t room = *count, found = 0;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        const struct process *process = &device->processes[i];
        if (!is_listed(process)) continue;
        if (found < room) {
            struct process_info *info = &infos[found];
            memset(info, 0, sizeof *info);
            info->pid = listed_pid(process);
            if (is_apu(device)) info->memory_usage.gtt_mem = process->used_bytes;
            else info->memory_usage.vram_mem = process->used_bytes;
            info->mem = process->used_bytes;
        }
        found++;
    }
    *count = found;
    return found > room ? OUT_OF_RESOURCES : SUCCESS;
}
