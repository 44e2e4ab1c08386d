/* What the simulated drivers share: faults, and processes whose memory is given back late. Each
 * driver answers from a file that tests map and change.
 *
 * The structures have their twins in shared.py: a change here is a change there. */

#ifndef FAKE_DRIVER_H
#define FAKE_DRIVER_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEVICES = 4, MAX_PROCESSES = 16, MAX_FAULTS = 16, ANY_DEVICE = -1 };

/* What a process holds. Where `is_counted`, it adds to the device's use, and is given back
 * `release_after_s` after the process was found dead, in `release_steps` equal steps. */
struct process {
    uint64_t used_bytes;
    double release_after_s;
    double died_at;
    uint32_t pid; /* 0: a free place */
    uint32_t release_steps;
    uint32_t is_counted;
    uint32_t listed_as; /* the process id that the driver tells; 0: its own */
};

/* What a call does wrong, for one device (by position) or for all. */
struct fault {
    char call[64]; /* empty: a free place */
    int32_t device;
    int32_t result;
    uint32_t is_hung;
};

/* The error that a test wants a call to give, or 0; a call that shall hang does so in here. */
static inline int find_fault(const struct fault *faults, const char *call, int position) {
    for (int i = 0; i < MAX_FAULTS; i++) {
        const struct fault *fault = &faults[i];
        if (strcmp(fault->call, call) != 0 && strcmp(fault->call, "*") != 0) continue;
        if (fault->device != ANY_DEVICE && fault->device != position) continue;
        while (*(const volatile uint32_t *)&fault->is_hung) usleep(1000);
        if (fault->result != 0) return fault->result;
    }
    return 0;
}

static inline double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* What is still held of a process's memory; its place is freed with the last of it. */
static inline uint64_t held_by(struct process *process) {
    if (process->died_at == 0 && kill((pid_t)process->pid, 0) != 0 && errno == ESRCH)
        process->died_at = now_s();
    if (process->died_at == 0) return process->used_bytes;
    double gone_s = now_s() - process->died_at;
    double steps = process->release_steps;
    if (gone_s >= process->release_after_s) {
        process->pid = 0;
        return 0;
    }
    double done = (double)(uint64_t)(gone_s / process->release_after_s * steps);
    return (uint64_t)((double)process->used_bytes * (1.0 - done / steps));
}

/* What the counted processes of a device still hold together. */
static inline uint64_t held_by_all(struct process *processes) {
    uint64_t held = 0;
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (processes[i].pid != 0 && processes[i].is_counted) held += held_by(&processes[i]);
    return held;
}

/* Whether the driver lists a process: the dead are listed no more, though they may hold memory. */
static inline int is_listed(const struct process *process) {
    return process->pid != 0 && process->died_at == 0;
}

/* The process id that the driver tells: in a container it may be the host's. */
static inline uint32_t listed_pid(const struct process *process) {
    return process->listed_as != 0 ? process->listed_as : process->pid;
}

/* Map the file that an environment variable names. */
static inline void *map_state(const char *variable, size_t size) {
    int file = open(getenv(variable), O_RDWR);
    if (file < 0) abort();
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) abort();
    close(file);
    return map;
}

#endif
