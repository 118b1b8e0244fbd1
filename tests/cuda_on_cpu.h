// Enough of CUDA to run the kernels of kernels/cuda on the CPU, a block after another.
//
// Each thread of a block is a fiber; a fiber runs until it waits, for its block (__syncthreads) or its warp
// (what ends in _sync, and products), and then the next one of its warp runs. A warp runs until all of it waits for the block, so that
// warps are as far apart as barriers let them be; the first warp goes first, or the last: where a barrier is missing,
// the two differ. Shared memory holds NaN when a block begins, and what lies behind it is watched. It is an error
// where threads of a block do not all come to a barrier, and where one touches memory that is not there. Subnormal
// numbers are zero, as CuPy has NVRTC make them. Only headers that are compiled in no time are included.

#pragma once
#include <ucontext.h>

#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;

static const unsigned MOST = 128;  // threads of a block
static const unsigned UNWRITTEN = 0x7fc0dead;  // a NaN
alignas(128) float memory[58 << 10];  // the shared memory of kernels, 232 KiB: what they declare extern

inline int min(int a, int b) { return a < b ? a : b; }
inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
inline float power_of_two(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

struct Barrier { unsigned size, arrived, generation; };
struct Fiber {
    ucontext_t context;
    const Barrier *waits_for;
    unsigned generation;
    bool done, vote;
    float given[6];
};
static Fiber fibers[MOST];
static char stacks[MOST][128 << 10];
static Barrier block_barrier, warp_barriers[MOST / 32];
static ucontext_t scheduler;
static sigjmp_buf before_the_block;
static void **arguments;
static void body();  // calls the kernel with the arguments

inline void wait(Barrier &barrier) {
    Fiber &self = fibers[threadIdx.x];
    self.waits_for = &barrier;
    self.generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.generation++;
    }
    swapcontext(&self.context, &scheduler);
}

inline void __syncthreads() { wait(block_barrier); }

inline unsigned __ballot_sync(unsigned, bool vote) {
    const unsigned first = threadIdx.x / 32 * 32;
    Barrier &barrier = warp_barriers[first / 32];
    fibers[threadIdx.x].vote = vote;
    wait(barrier);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; lane++) ballot |= (unsigned)fibers[first + lane].vote << lane;
    wait(barrier);
    return ballot;
}

inline void __syncwarp() { wait(warp_barriers[threadIdx.x / 32]); }

// Return what another thread of the warp gave.
inline float __shfl_sync(unsigned, float value, int lane) {
    const unsigned first = threadIdx.x / 32 * 32;
    Barrier &barrier = warp_barriers[first / 32];
    fibers[threadIdx.x].given[0] = value;
    wait(barrier);
    const float found = fibers[first + lane % 32].given[0];
    wait(barrier);
    return found;
}

inline float __shfl_xor_sync(unsigned all, float value, int mask) {
    return __shfl_sync(all, value, threadIdx.x % 32 ^ mask);
}

// Return a sum that is rounded toward zero: tensor cores are said to do so.
inline float toward_zero(double sum) {
    float found = (float)sum;
    if (std::fabs((double)found) <= std::fabs(sum)) return found;
    unsigned bits = __float_as_uint(found);
    return __uint_as_float(bits - 1);
}

// Add a (16, 8) times b (8, 8) to c (16, 8), spread over a warp as mma.m16n8k8 has it, whose inputs have ten bits.
inline void multiply(float c[4], const float a[4], float b_0, float b_1) {
    const unsigned first = threadIdx.x / 32 * 32, group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    Barrier &barrier = warp_barriers[first / 32];
    float *given = fibers[threadIdx.x].given;
    for (int i = 0; i < 6; i++)
        given[i] = __uint_as_float(__float_as_uint(i < 4 ? a[i] : i == 4 ? b_0 : b_1) & 0xffffe000u);
    wait(barrier);
    for (int i = 0; i < 4; i++) {
        double sum = c[i];
        for (unsigned k = 0; k < 8; k++) {
            const float *row = fibers[first + group * 4 + k % 4].given;
            const float *column = fibers[first + (2 * member + i % 2) * 4 + k % 4].given;
            sum += (double)row[i / 2 + k / 4 * 2] * (double)column[4 + k / 4];
        }
        c[i] = toward_zero(sum);
    }
    wait(barrier);
}

inline void enter() {
    body();
    fibers[threadIdx.x].done = true;
    swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

// Let each thread of a warp run until it waits; return whether any did, and count those that came to an end.
inline bool run_warp(unsigned warp, bool reversed, unsigned &done) {
    bool moved = false;
    for (unsigned i = 0; i < 32; i++) {
        const unsigned t = warp * 32 + (reversed ? 31 - i : i);
        Fiber &fiber = fibers[t];
        if (fiber.done || (fiber.waits_for && fiber.waits_for->generation == fiber.generation)) continue;
        moved = true;
        threadIdx = {t, 0, 0};
        swapcontext(&scheduler, &fiber.context);
        done += fiber.done;
    }
    return moved;
}

// Run one block; return whether all of its threads came to an end.
inline bool run_block(unsigned threads, bool reversed) {
    blockDim = {threads, 1, 1};
    block_barrier = {threads, 0, 0};
    for (Barrier &barrier : warp_barriers) barrier = {32, 0, 0};
    for (unsigned t = 0; t < threads; t++) {
        Fiber &fiber = fibers[t];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks[t];
        fiber.context.uc_stack.ss_size = sizeof(stacks[t]);
        fiber.waits_for = nullptr;
        fiber.done = false;
        makecontext(&fiber.context, enter, 0);
    }
    unsigned done = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (unsigned i = 0; i < threads / 32; i++)
            while (run_warp(reversed ? threads / 32 - 1 - i : i, reversed, done)) moved = true;
    }
    return done == threads;
}

template <class Type> const char *name_of(Type) { return sizeof(Type) == 8 ? "int64 " : "int32 "; }
template <class Type> const char *name_of(Type *) { return "uint64 "; }

// Return the numpy types of a kernel's parameters, each followed by a space; pointers are uint64.
template <class... Types> const char *names_of(void (*)(Types...)) {
    static char names[1024];
    names[0] = 0;
    (std::strcat(names, name_of(Types())), ...);
    return names;
}

template <class... Types, std::size_t... Places>
void call(void (*kernel)(Types...), std::index_sequence<Places...>) { kernel(*(Types *)arguments[Places]...); }

template <class... Types> std::index_sequence_for<Types...> places(void (*)(Types...)) { return {}; }

// Run the block at blockIdx, subnormal numbers flushed to zero.
inline bool run_flushed(unsigned threads, bool reversed) {
#ifdef __SSE__
    const unsigned mode = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(mode | 0x8040);
    const bool whole = run_block(threads, reversed);
    __builtin_ia32_ldmxcsr(mode);
    return whole;
#else
    return run_block(threads, reversed);
#endif
}

inline void leave_the_block(int) { siglongjmp(before_the_block, 1); }

// Run the kernel over a grid, blocks in order or in reverse, too. Return what is wrong, or null.
inline const char *run(unsigned blocks_x, unsigned blocks_y, unsigned threads, unsigned shared_bytes, bool reversed) {
    if (threads > MOST || threads % 32) return "threads are warps, and not as many as that";
    if (shared_bytes > sizeof(memory)) return "more shared memory than there is";
    gridDim = {blocks_x, blocks_y, 1};
    const struct Caught {  // while this function runs
        void (*before)(int) = std::signal(SIGSEGV, leave_the_block);
        ~Caught() { std::signal(SIGSEGV, before); }
    } caught;
    if (sigsetjmp(before_the_block, 1)) return "touched memory that is not there";
    for (unsigned i = 0; i < blocks_x * blocks_y; i++) {
        const unsigned block = reversed ? blocks_x * blocks_y - 1 - i : i;
        blockIdx = {block % blocks_x, block / blocks_x, 0};
        for (float &word : memory) std::memcpy(&word, &UNWRITTEN, 4);
        if (!run_flushed(threads, reversed)) return "some threads wait at a barrier that others never come to";
        for (std::size_t word = shared_bytes / 4; word < sizeof(memory) / 4; word++)
            if (std::memcmp(&memory[word], &UNWRITTEN, 4)) return "written behind the shared memory that was asked for";
    }
    return nullptr;
}

// After a kernel: make the library's functions for it. given: where each argument is.
#define RUN(kernel) \
    static void body() { call(kernel, places(kernel)); } \
    extern "C" const char *names() { return names_of(kernel); } \
    extern "C" unsigned size_of_shared() { return sizeof(Shared); } \
    extern "C" const char *run_kernel( \
        unsigned blocks_x, unsigned blocks_y, unsigned threads, unsigned shared_bytes, bool reversed, void **given \
    ) { \
        arguments = given; \
        return run(blocks_x, blocks_y, threads, shared_bytes, reversed); \
    }
