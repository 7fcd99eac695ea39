// What the kernels use of CUDA, for g++: the sources of qkformer/neurons/cuda follow this text,
// then a LAUNCHABLE line for every kernel (see tests/host_kernels.py).

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <type_traits>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct Index {
    unsigned x;
};
static thread_local Index blockIdx, threadIdx, gridDim;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float half_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value = std::ldexp(float(mantissa + (exponent ? 1024 : 0)), (exponent ? exponent : 1) - 25);
    if (exponent == 31) value = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -value : value;
}

// As the device's cvt.rn: to nearest, ties to even.
inline unsigned short float_to_half(float value) {
    const unsigned sign = __float_as_uint(value) >> 16 & 0x8000;
    const float size = std::fabs(value);
    if (value != value) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    int exponent = -13;
    if (size >= 0x1p-14f) std::frexp(size, &exponent);  // size < 2^exponent
    const int unit = exponent - 11;                     // of the last place
    const unsigned places = unsigned(std::nearbyint(std::ldexp(size, -unit)));  // <= 2048
    return sign | (places + ((unit + 24) << 10));  // a carry moves into the exponent
}

// A block's threads, where they wait for each other: coroutines of one thread, each of which runs
// to its next barrier before the next one's turn. Every other block takes them last to first, so
// that a missing barrier shows whoever should have waited for whom.
struct Coroutine {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done;
};
static thread_local struct {
    ucontext_t scheduler;
    Coroutine thread[BLOCK];
    void (*body)(const void*);
    const void* argument;
} block;

inline void __syncthreads() {
    swapcontext(&block.thread[threadIdx.x].context, &block.scheduler);
}

static void run_thread() {
    block.body(block.argument);
    block.thread[threadIdx.x].done = true;
}

template <class Body>
void run_block(const Body& body) {
    constexpr std::size_t stack = 1 << 16;
    block.body = [](const void* argument) { (*static_cast<const Body*>(argument))(); };
    block.argument = &body;
    for (Coroutine& thread : block.thread) {
        if (!thread.stack) thread.stack.reset(new char[stack]);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = stack;
        thread.context.uc_link = &block.scheduler;
        makecontext(&thread.context, run_thread, 0);
        thread.done = false;
    }
    for (unsigned ended = 0; ended == 0;) {
        for (unsigned turn = 0; turn < BLOCK; ++turn) {
            threadIdx.x = blockIdx.x % 2 ? BLOCK - 1 - turn : turn;
            swapcontext(&block.scheduler, &block.thread[threadIdx.x].context);
            ended += block.thread[threadIdx.x].done;
        }
        if (ended && ended < BLOCK) {
            std::fputs("threads of a block ended while others wait at a barrier\n", stderr);
            std::abort();
        }
    }
}

// Each takes one struct, of whose size the caller makes sure.
template <bool has_barriers, class Arguments>
bool launch(void (*kernel)(Arguments), unsigned blocks, const void* argument, std::size_t size) {
    if (size != sizeof(Arguments)) return false;
    const auto body = [=] { kernel(*static_cast<const std::remove_const_t<Arguments>*>(argument)); };
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        if (has_barriers) run_block(body);
        else for (threadIdx.x = 0; threadIdx.x < BLOCK; ++threadIdx.x) body();
    }
    return true;
}

#define LAUNCHABLE(kernel, has_barriers)                                                    \
    extern "C" bool launch_##kernel(unsigned blocks, const void* argument, unsigned size) { \
        return launch<has_barriers>(kernel, blocks, argument, size);                        \
    }
