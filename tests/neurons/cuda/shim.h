// What the kernels use of CUDA, for g++: the sources of qkformer/neurons/cuda follow this text,
// then a LAUNCHABLE line for every kernel (see tests/host_kernels.py).

#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline

struct Index {
    unsigned x;
};
static thread_local Index blockIdx, threadIdx, blockDim;

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

// Kernel arguments as cuLaunchKernel takes them: a pointer to each.
template <class... A, std::size_t... I>
void launch(void (*kernel)(A...), unsigned threads, void** args, std::index_sequence<I...>) {
    blockDim.x = 256;
    for (unsigned thread = 0; thread < (threads + 255) / 256 * 256; ++thread) {
        blockIdx.x = thread / 256;
        threadIdx.x = thread % 256;
        kernel(*static_cast<A*>(args[I])...);
    }
}

template <class... A>
void launch(void (*kernel)(A...), unsigned threads, void** args) {
    launch(kernel, threads, args, std::index_sequence_for<A...>());
}

#define LAUNCHABLE(kernel) \
    extern "C" void launch_##kernel(unsigned threads, void** args) { launch(kernel, threads, args); }
