/* An NVML with five devices, of which two are whole, for the tests of gpus.rs. */
#include <string.h>

#ifndef INIT
#define INIT 0 /* success */
#endif
enum { NOT_SUPPORTED = 3, NO_PERMISSION = 4, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

struct memory { unsigned version; unsigned long long total, reserved, free, used; };
static const char devices[5];
static int index_of(const char *device) { return (int)(device - devices); }

int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 5; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, const char **device) {
    *device = devices + index;
    return index == 3 ? NO_PERMISSION : 0;
}

int nvmlDeviceGetName(const char *device, char *name, unsigned length) {
    const char *names[] = {"NVIDIA A100-SXM4-80GB", "", "NVIDIA H200", "", "Tesla T4"};
    strncpy(name, names[index_of(device)], length);
    return index_of(device) == 1 ? GPU_IS_LOST : 0;
}

int nvmlDeviceGetUUID(const char *device, char *uuid, unsigned length) {
    strncpy(uuid, "GPU-0", length);
    uuid[4] += index_of(device);
    return 0;
}

int nvmlDeviceGetMemoryInfo_v2(const char *device, struct memory *memory) {
    memory->total = 80ull << 30;
    return index_of(device) == 4 ? NOT_SUPPORTED : 0;
}

int nvmlDeviceGetMigMode(const char *device, unsigned *now, unsigned *after_reset) {
    *now = *after_reset = index_of(device) == 2;
    return index_of(device) == 4 ? NOT_SUPPORTED : 0;
}

struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };

/* Two on the first, one on the last, and the others do not tell. */
int nvmlDeviceGetComputeRunningProcesses_v3(const char *device, unsigned *count, struct process *processes) {
    int index = index_of(device);
    unsigned there = index == 0 ? 2 : 1;
    if (index != 0 && index != 4) return NOT_SUPPORTED;
    if (*count < there) { *count = there; return INSUFFICIENT_SIZE; }
    for (unsigned at = 0; at < there; at++) processes[at].pid = 1000 + index + at;
    *count = there;
    return 0;
}
