// SPDX-License-Identifier: Apache-2.0
// What a hand-over between two stages of a decode step costs, by several ways. A stage is a graph
// of a few short kernels; stages of two GPUs (or two streams of one) run in turn, all queued behind
// a gate, so that no host thread takes part. A hand-over's time is a stage's turn less that of the
// same graphs back to back on one stream. Usage: bench_handoff [BYTES...]
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s: %s\n", #call, cudaGetErrorString(e_));                                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { TURNS = 24, REPEATS = 15, STAGE_KERNELS = 4, SLOTS = 2, LINE = 128, STOP_EVERY = 4096 };

enum how {
    STORE_AWAIT_COPY, // store and flag | wait kernel, copy out, event
    STORE_TAKE,       // store and flag | one kernel waits and copies, event
    STORE_AWAIT,      // store and flag | wait kernel, the stage reads the slot, event behind it
    STORE_EARLY,      // the same, the slot's event waited for before the stage, not behind it
    STORE_CLOCK,      // the same; the kernels note the time in host memory, not events
    STORE_CLOCK_HERE, // the same, in the GPU's own memory
    STORE_TAIL,       // as STORE_EARLY, store and flag a node of the stage's graph
    STORE_WAITVALUE,  // the same, the stream waits by cuStreamWaitValue32
    STORE_CREDIT,     // the same as STORE_TAKE, the slot freed by a flag instead of an event
    STORE_GRAPH,      // wait+copy and store are nodes of the stage's graph
    COPY_EVENT,       // copy on the sender, event | copy engine reads, event
    N_HOW
};
static const char *const names[] = {"store | wait, copy, event",
                                    "store | wait+copy, event",
                                    "store | wait, in the slot",
                                    "the slot, stage, store | wait, in the slot",
                                    "the same, kernels note the time (host)",
                                    "the same, kernels note the time (device)",
                                    "the slot, stage with store | wait, in the slot",
                                    "store | stream wait value, in the slot",
                                    "store after credit | wait+copy+credit",
                                    "in the graph: wait+copy+credit ... store",
                                    "copy, event | copy engine, event"};

__device__ __forceinline__ void raise_flag(uint32_t *flag, uint32_t value)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t look(const uint32_t *flag)
{
    uint32_t now;

    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
    return now;
}

__device__ void await(const uint32_t *flag, uint32_t least, const uint32_t *stop)
{
    for (uint32_t n = 1; (int32_t)(look(flag) - least) < 0; n++)
        if (n % STOP_EVERY == 0 && look(stop))
            return;
}

__global__ void gate_k(const uint32_t *open)
{
    while (!look(open))
        ;
}

__device__ __forceinline__ void note_time(uint64_t *when)
{
    uint64_t now;

    if (!when)
        return;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    *(volatile uint64_t *)when = now;
}

__global__ void await_k(const uint32_t *flag, uint32_t least, const uint32_t *stop, uint64_t *when)
{
    await(flag, least, stop);
    note_time(when);
}

__device__ void copy_block(char *dst, const char *src, size_t n)
{
    size_t step = (size_t)gridDim.x * blockDim.x;

    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 16; i += step)
        ((uint4 *)dst)[i] = ((const uint4 *)src)[i];
}

// One block where it has a flag. credit: a flag of the sender's, waited for before; number NULL:
// value.
__global__ void store_k(char *dst, const char *src, size_t n, uint32_t *flag, uint32_t value,
                        const uint32_t *credit, const uint32_t *stop, uint32_t *number,
                        uint64_t *when = nullptr)
{
    __shared__ uint32_t mine;

    if (threadIdx.x == 0) {
        note_time(when);
        mine = number ? *number + 1 : value;
        if (credit && mine > SLOTS)
            await(credit, mine - SLOTS, stop);
    }
    __syncthreads();
    copy_block(dst + (number ? (mine - 1) % SLOTS * n : 0), src, n);
    if (!flag)
        return;
    __syncthreads();
    if (threadIdx.x)
        return;
    __threadfence_system();
    if (number)
        *number = mine;
    raise_flag(flag, mine);
}

__global__ void take_k(char *dst, const char *src, size_t n, const uint32_t *flag, uint32_t value,
                       uint32_t *credit, const uint32_t *stop, uint32_t *number)
{
    __shared__ uint32_t mine;

    if (threadIdx.x == 0) {
        mine = number ? *number + 1 : value;
        await(flag, mine, stop);
    }
    __syncthreads();
    copy_block(dst, src + (number ? (mine - 1) % SLOTS * n : 0), n);
    __syncthreads();
    if (threadIdx.x == 0 && number)
        *number = mine;
    if (threadIdx.x == 0 && credit)
        raise_flag(credit, mine);
}

// A kernel of a stage: all SMs, 2 us.
__global__ void work_k(const char *x, char *y)
{
    long long until = clock64() + 3500;

    y[blockIdx.x] = x[blockIdx.x];
    while (clock64() < until)
        ;
}

struct side {
    int gpu;
    cudaStream_t stream;
    char *x, *slots; // hidden states; what comes in
    uint32_t *flags; // [0]: newest message that came; [1]: credit that came; [2], [3]: counters
    cudaEvent_t full[SLOTS], empty[SLOTS], mark[4];
    cudaGraphExec_t stage[SLOTS], fused; // stage[i] reads slot i; x where it was copied out
    cudaGraphExec_t tail[SLOTS];         // stage[i] with the store to the other side
    uint32_t sent, taken;
};

static uint32_t *host_words; // [0] gate, LINE further: stop, then times
static size_t bytes;

static uint32_t *at(const side &s, int i)
{
    return s.flags + i * LINE / sizeof(uint32_t);
}

static void stage_kernels(const side &s, const char *x)
{
    for (int i = 0; i < STAGE_KERNELS; i++)
        work_k<<<132, 256, 0, s.stream>>>(i ? s.x : x, s.x);
}

static cudaGraphExec_t capture(const side &s, const char *x, const side *to, bool takes)
{
    const uint32_t *stop = host_words + LINE;
    cudaGraph_t g;
    cudaGraphExec_t exec;

    TRY(cudaStreamBeginCapture(s.stream, cudaStreamCaptureModeThreadLocal));
    if (takes)
        take_k<<<1, 512, 0, s.stream>>>(s.x, s.slots, bytes, at(s, 0), 0, at(*to, 1), stop,
                                        at(s, 2));
    stage_kernels(s, x);
    if (to)
        store_k<<<1, 512, 0, s.stream>>>(to->slots, s.x, bytes, at(*to, 0), 0,
                                         takes ? at(s, 1) : nullptr, stop, at(s, 3));
    TRY(cudaStreamEndCapture(s.stream, &g));
    TRY(cudaGraphInstantiate(&exec, g, 0));
    TRY(cudaGraphUpload(exec, s.stream));
    return exec;
}

// Where the kernels of a side note the time, or NULL.
static uint64_t *clock_of(how h, const side &s, bool marks)
{
    if (!marks || (h != STORE_CLOCK && h != STORE_CLOCK_HERE))
        return nullptr;
    return (uint64_t *)(h == STORE_CLOCK ? host_words + 2 * LINE : at(s, 3));
}

static void mark(side &s, bool marks, int i)
{
    if (marks)
        TRY(cudaEventRecord(s.mark[i], s.stream));
}

static bool early(how h)
{
    return h == STORE_EARLY || h == STORE_CLOCK || h == STORE_CLOCK_HERE || h == STORE_TAIL;
}

static void send(how h, side &a, side &b, bool marks)
{
    uint32_t i = a.sent % SLOTS, n = ++a.sent;
    char *slot = b.slots + i * bytes;

    if (h == COPY_EVENT) {
        if (n > SLOTS)
            TRY(cudaStreamWaitEvent(a.stream, b.empty[i], 0));
        TRY(cudaMemcpyAsync(a.slots + i * bytes, a.x, bytes, cudaMemcpyDeviceToDevice, a.stream));
        TRY(cudaEventRecord(a.full[i], a.stream));
        mark(a, marks, 3);
        return;
    }
    if (h != STORE_CREDIT && !early(h) && n > SLOTS)
        TRY(cudaStreamWaitEvent(a.stream, b.empty[i], 0));
    store_k<<<1, 512, 0, a.stream>>>(slot, a.x, bytes, at(b, 0), n,
                                     h == STORE_CREDIT ? at(a, 1) : nullptr, host_words + LINE,
                                     nullptr, clock_of(h, a, marks));
    if (clock_of(h, a, marks))
        TRY(cudaEventRecord(a.full[i], a.stream));
    else
        mark(a, marks, 3);
}

typedef CUresult (*wait_value_fn)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
static wait_value_fn wait_value;

static bool stage_in_slot(how h)
{
    return h == STORE_AWAIT || h == STORE_WAITVALUE || early(h);
}

// The slot that the stage's own message goes to is free.
static void wait_for_slot(side &b, const side &a)
{
    if (b.sent >= SLOTS)
        TRY(cudaStreamWaitEvent(b.stream, a.empty[b.sent % SLOTS], 0));
}

// The message is taken, and the stage run.
static void turn(how h, side &b, side &a, bool marks)
{
    uint32_t i = b.taken % SLOTS, n = ++b.taken;
    const uint32_t *stop = host_words + LINE;
    char *slot = b.slots + i * bytes;

    if (early(h))
        wait_for_slot(b, a);
    if (h == COPY_EVENT) {
        TRY(cudaStreamWaitEvent(b.stream, a.full[i], 0));
        TRY(cudaMemcpyPeerAsync(b.x, b.gpu, a.slots + i * bytes, a.gpu, bytes, b.stream));
    } else if (h == STORE_TAKE || h == STORE_CREDIT) {
        take_k<<<1, 512, 0, b.stream>>>(b.x, slot, bytes, at(b, 0), n,
                                        h == STORE_CREDIT ? at(a, 1) : nullptr, stop, nullptr);
    } else if (h == STORE_WAITVALUE) {
        wait_value((CUstream)b.stream, (CUdeviceptr)at(b, 0), n, CU_STREAM_WAIT_VALUE_GEQ);
    } else {
        await_k<<<1, 1, 0, b.stream>>>(at(b, 0), n, stop, clock_of(h, b, marks));
        if (h == STORE_AWAIT_COPY)
            store_k<<<1, 512, 0, b.stream>>>(b.x, slot, bytes, nullptr, 0, nullptr, stop, nullptr);
    }
    bool in_slot = stage_in_slot(h);
    if (!in_slot && h != STORE_CREDIT)
        TRY(cudaEventRecord(b.empty[i], b.stream));
    mark(b, marks && !clock_of(h, b, marks), 0);
    TRY(cudaGraphLaunch(h == STORE_TAIL ? b.tail[i] : b.stage[in_slot ? i : 0], b.stream));
    mark(b, marks && !clock_of(h, b, marks), 2);
    b.sent += h == STORE_TAIL;
    if (in_slot)
        TRY(cudaEventRecord(b.empty[i], b.stream));
}

static void use(const side &s)
{
    TRY(cudaSetDevice(s.gpu));
}

static void issue(how h, side s[2], bool marks)
{
    for (int i = 0; i < TURNS; i++) {
        side &a = s[i % 2], &b = s[(i + 1) % 2];
        if (h == STORE_GRAPH) {
            use(b);
            TRY(cudaGraphLaunch(b.fused, b.stream));
            continue;
        }
        if (h != STORE_TAIL) {
            use(a);
            send(h, a, b, marks);
        }
        use(b);
        turn(h, b, a, marks);
    }
}

static double elapsed(how h, side s[2], bool chain, bool marks)
{
    cudaEvent_t from, to;
    float ms;

    host_words[0] = 0;
    for (int i = 1; i >= 0; i--) {
        use(s[i]);
        gate_k<<<1, 1, 0, s[i].stream>>>(host_words);
    }
    TRY(cudaEventCreate(&from));
    TRY(cudaEventCreate(&to));
    TRY(cudaEventRecord(from, s[0].stream));
    if (chain && (h == STORE_GRAPH || h == STORE_TAIL)) // the first message
        store_k<<<1, 512, 0, s[0].stream>>>(s[1].slots, s[0].x, bytes, at(s[1], 0), 0,
                                            h == STORE_GRAPH ? at(s[0], 1) : nullptr,
                                            host_words + LINE, at(s[0], 3));
    s[0].sent += chain && h == STORE_TAIL;
    if (chain)
        issue(h, s, marks);
    for (int i = 0; i < TURNS && !chain; i++) {
        TRY(cudaGraphLaunch(s[0].stage[0], s[0].stream));
        mark(s[0], marks, 0);
    }
    use(s[1]);
    if (chain && h == STORE_GRAPH) // and the last
        take_k<<<1, 512, 0, s[1].stream>>>(s[1].x, s[1].slots, bytes, at(s[1], 0), 0, at(s[0], 1),
                                           host_words + LINE, at(s[1], 2));
    if (chain && h == STORE_TAIL) {
        uint32_t i = s[1].taken % SLOTS;
        await_k<<<1, 1, 0, s[1].stream>>>(at(s[1], 0), ++s[1].taken, host_words + LINE, nullptr);
        TRY(cudaEventRecord(s[1].empty[i], s[1].stream));
    }
    use(s[0]);
    TRY(cudaEventRecord(to, s[0].stream));
    *(volatile uint32_t *)host_words = 1;
    TRY(cudaEventSynchronize(to));
    TRY(cudaEventElapsedTime(&ms, from, to));
    use(s[1]);
    TRY(cudaStreamSynchronize(s[1].stream));
    return ms * 1e3 / TURNS;
}

static double median(how h, side s[2], bool chain, bool marks)
{
    double v[REPEATS];

    for (int i = -3; i < REPEATS; i++) {
        double us = elapsed(h, s, chain, marks);
        if (i >= 0)
            v[i] = us;
    }
    std::sort(v, v + REPEATS);
    return v[REPEATS / 2];
}

static void reset(side s[2])
{
    for (int i = 0; i < 2; i++) {
        use(s[i]);
        s[i].sent = s[i].taken = 0;
        TRY(cudaMemset(s[i].flags, 0, 4 * LINE));
        TRY(cudaDeviceSynchronize());
    }
}

static void open_side(side &s, int gpu)
{
    s.gpu = gpu;
    use(s);
    TRY(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking));
    TRY(cudaMalloc(&s.x, bytes));
    TRY(cudaMalloc(&s.slots, SLOTS * bytes));
    TRY(cudaMalloc(&s.flags, 4 * LINE));
    for (int i = 0; i < SLOTS; i++) {
        TRY(cudaEventCreateWithFlags(&s.full[i], cudaEventDisableTiming));
        TRY(cudaEventCreateWithFlags(&s.empty[i], cudaEventDisableTiming));
    }
    for (cudaEvent_t &m : s.mark)
        TRY(cudaEventCreate(&m));
}

static void measure(side s[2])
{
    double alone[2];

    reset(s);
    for (int marks = 0; marks < 2; marks++)
        alone[marks] = median(STORE_AWAIT, s, false, marks);
    printf("%zu bytes: a stage back to back %.2f us, with an event behind it %.2f us\n", bytes,
           alone[0], alone[1]);
    for (int h = 0; h < N_HOW; h++) {
        reset(s);
        double plain = median((how)h, s, true, false) - alone[0];
        reset(s);
        double marked = median((how)h, s, true, true) - alone[0];
        printf("  %-42s %6.2f us, with the engine's events %6.2f us\n", names[h], plain, marked);
    }
}

int main(int argc, char **argv)
{
    int n = 0;
    void *entry;

    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        printf("skipped: no GPU\n");
        return 77;
    }
    TRY(cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &entry, 12000, cudaEnableDefault,
                                         nullptr));
    wait_value = (wait_value_fn)entry;
    TRY(cudaHostAlloc(&host_words, 3 * LINE * sizeof(uint32_t), cudaHostAllocPortable));
    host_words[LINE] = 0;
    int gpus[2] = {0, n > 1};
    for (int i = 0; i < 2 && n > 1; i++) {
        TRY(cudaSetDevice(i));
        TRY(cudaDeviceEnablePeerAccess(!i, 0));
    }
    printf("%d GPUs, %d turns, median of %d\n", n > 1 ? 2 : 1, TURNS, REPEATS);
    for (int a = 1; a < (argc > 1 ? argc : 4); a++) {
        static const char *const usual[] = {"", "4096", "16384", "65536"};
        side s[2] = {};
        bytes = strtoul(argc > 1 ? argv[a] : usual[a], nullptr, 10) / 16 * 16;
        for (int i = 0; i < 2; i++)
            open_side(s[i], gpus[i]);
        for (int i = 0; i < 2; i++) {
            use(s[i]);
            for (int slot = 0; slot < SLOTS; slot++)
                s[i].stage[slot] = capture(s[i], s[i].slots + slot * bytes, nullptr, false);
            for (int slot = 0; slot < SLOTS; slot++)
                s[i].tail[slot] = capture(s[i], s[i].slots + slot * bytes, &s[!i], false);
            s[i].fused = capture(s[i], s[i].x, &s[!i], true);
        }
        measure(s);
    }
    return 0;
}
