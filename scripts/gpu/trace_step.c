/* trace_step.c -- what a steady decode asks of the driver: loaded into any CUDA program by CUDA_INJECTION64_PATH, it counts driver calls
 * between two graph launches far enough into the run, and writes one JSON object when the program ends.
 *
 *   graph launch  1 ... SKIP | SKIP + 1 ... SKIP + STEPS |       calls of the driver in the bars' span are counted
 *
 *   TRACE_SKIP (60; -1: from the first call on), TRACE_STEPS (100), TRACE_OUT (stderr)
 *
 * Of each function: [calls, bytes, milliseconds inside].
 *
 * Built and run by trace_step.sh, where CUPTI is. */
#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_NAME = 128 };

static struct {
    const char *name;
    long n;
    unsigned long long bytes;
    double seconds;
} calls[N_NAME];
static int n_name;
static long n_launch, skip = 60, steps = 100;
static CUpti_SubscriberHandle subscriber;

static const char *file_out(void) { return getenv("TRACE_OUT"); }

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* its place in the table, N_NAME: there is none left */
static int place(const char *name) {
    int i = 0;
    while (i < n_name && strcmp(calls[i].name, name) != 0)
        i++;
    if (i < N_NAME && i == n_name) calls[n_name++].name = name;
    return i;
}

static unsigned long long bytes_of(CUpti_CallbackId id, const void *params) {
    switch (id) {
    case CUPTI_DRIVER_TRACE_CBID_cuMemcpyHtoDAsync_v2:
        return ((const cuMemcpyHtoDAsync_v2_params *)params)->ByteCount;
    case CUPTI_DRIVER_TRACE_CBID_cuMemcpyHtoD_v2: return ((const cuMemcpyHtoD_v2_params *)params)->ByteCount;
    case CUPTI_DRIVER_TRACE_CBID_cuMemcpyDtoHAsync_v2:
        return ((const cuMemcpyDtoHAsync_v2_params *)params)->ByteCount;
    case CUPTI_DRIVER_TRACE_CBID_cuMemcpyDtoH_v2: return ((const cuMemcpyDtoH_v2_params *)params)->ByteCount;
    case CUPTI_DRIVER_TRACE_CBID_cuMemcpyDtoDAsync_v2:
        return ((const cuMemcpyDtoDAsync_v2_params *)params)->ByteCount;
    case CUPTI_DRIVER_TRACE_CBID_cuMemcpyAsync: return ((const cuMemcpyAsync_params *)params)->ByteCount;
    default: return 0;
    }
}

static _Thread_local double entered;

static void CUPTIAPI on_call(void *user, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *data) {
    const CUpti_CallbackData *d = data;
    const char *name = NULL;
    (void)user;
    if (domain != CUPTI_CB_DOMAIN_DRIVER_API) return;
    if (cuptiGetCallbackName(domain, id, &name) != CUPTI_SUCCESS || !name) name = "?";
    const int enter = d->callbackSite == CUPTI_API_ENTER;
    if (enter) n_launch += strncmp(name, "cuGraphLaunch", 13) == 0;
    if (n_launch <= skip || n_launch > skip + steps) return;
    const int i = place(name);
    if (i == N_NAME) return;
    if (enter) {
        calls[i].n++;
        calls[i].bytes += bytes_of(id, d->functionParams);
        entered = now();
    } else if (entered > 0)
        calls[i].seconds += now() - entered;
}

static long sum(const char *prefix) {
    long n = 0;
    for (int i = 0; i < n_name; i++)
        if (strncmp(calls[i].name, prefix, strlen(prefix)) == 0) n += calls[i].n;
    return n;
}

static void report(void) {
    FILE *f = file_out() ? fopen(file_out(), "w") : stderr;
    if (!f) return;
    fprintf(f, "{\"steps\": %ld, \"graph_launches\": %ld, \"kernel_launches\": %ld, \"uploads\": %ld, \"downloads\": %ld, \"copies\": %ld, "
               "\"memsets\": %ld, \"synchronisations\": %ld, \"event_queries\": %ld,\n \"calls\": {",
            n_launch < skip + steps ? n_launch - skip : steps, sum("cuGraphLaunch"), sum("cuLaunchKernel"), sum("cuMemcpyHtoD"),
            sum("cuMemcpyDtoH"), sum("cuMemcpyDtoD") + sum("cuMemcpyAsync"), sum("cuMemset"),
            sum("cuStreamSynchronize") + sum("cuEventSynchronize") + sum("cuCtxSynchronize"), sum("cuEventQuery"));
    for (int i = 0; i < n_name; i++)
        fprintf(f, "%s\"%s\": [%ld, %llu, %.3f]", i ? ", " : "", calls[i].name, calls[i].n, calls[i].bytes, 1e3 * calls[i].seconds);
    fprintf(f, "}}\n");
    if (f != stderr) fclose(f);
}

__attribute__((visibility("default"))) int InitializeInjection(void) {
    if (getenv("TRACE_SKIP")) skip = atol(getenv("TRACE_SKIP"));
    if (getenv("TRACE_STEPS")) steps = atol(getenv("TRACE_STEPS"));
    if (cuptiSubscribe(&subscriber, (CUpti_CallbackFunc)on_call, NULL) != CUPTI_SUCCESS ||
        cuptiEnableDomain(1, subscriber, CUPTI_CB_DOMAIN_DRIVER_API) != CUPTI_SUCCESS) {
        fprintf(stderr, "trace_step: CUPTI did not start\n");
        return 0;
    }
    atexit(report);
    return 1;
}
