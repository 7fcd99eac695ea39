// Scalars of a tensor and the arithmetic on them.
//
// The .cuh files of this folder and one .cu file are joined by loader.py and compiled with
//   -DDTYPE=  FLOAT32, FLOAT16, BFLOAT16 or FLOAT64: the tensors' elements
//   -DKIND=   IF, LIF or PLIF
//   -DSTEPS=  T, or 0 for a T that is known at launch only
//   -DVEC=    neighbouring elements of a thread, which it reads and writes at once
//   -DBLOCK=  threads of a block, a power of two
//   -DSURROGATE=  SIGMOID or ARCTAN
//   -DLAST=   1 where channels are innermost in memory, else 0
//   -DREPEATED=  1 where y holds one time step that stands for all, else 0
//   -DSPLITS= that many shares of the channels leave as tensors of their own
// Each kernel takes one struct, which launch.py packs: pointers first, then reals, then 32-bit
// integers. They need no header, neither CUDA's nor C++'s, and no warp operations. So the same text
// is compiled by g++ and tested without a GPU (tests/neurons/cuda); what is special to the device
// stands under __CUDACC__.

#define FLOAT32 0
#define FLOAT16 1
#define BFLOAT16 2
#define FLOAT64 3

#define IF 0
#define LIF 1
#define PLIF 2

#define SIGMOID 0
#define ARCTAN 1

// scalar: as stored. real: as computed with; the dtype of membranes, BatchNorm and sums.
#if DTYPE == FLOAT64
typedef double scalar;
typedef double real;
#elif DTYPE == FLOAT32
typedef float scalar;
typedef float real;
#else
typedef unsigned short scalar;  // the bits
typedef float real;
#endif

struct alignas(sizeof(scalar) * VEC) Pack {  // at most 16 bytes: what a thread can load at once
    scalar lane[VEC];
};

// Of memory that nothing writes while the kernel runs: the compiler may move it before any store.
#ifdef __CUDACC__
template <int SIZE> struct Word;
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

__device__ __forceinline__ Pack load(const Pack* from) {
    union {
        Word<sizeof(Pack)>::type word;
        Pack pack;
    } both;
    both.word = __ldg(reinterpret_cast<const Word<sizeof(Pack)>::type*>(from));
    return both.pack;
}
#else
inline Pack load(const Pack* from) { return *from; }
#endif

#ifdef __CUDACC__
__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ __forceinline__ float bfloat_to_float(unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ unsigned short float_to_bfloat(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
__device__ __forceinline__ unsigned short float_to_bfloat(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return 0x7fc0;  // rounding might carry a NaN's bits into infinity
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
}
#endif

__device__ __forceinline__ real widen(scalar x) {
#if DTYPE == FLOAT16
    return half_to_float(x);
#elif DTYPE == BFLOAT16
    return bfloat_to_float(x);
#else
    return x;
#endif
}

__device__ __forceinline__ scalar narrow(real x) {
#if DTYPE == FLOAT16
    return float_to_half(x);
#elif DTYPE == BFLOAT16
    return float_to_bfloat(x);
#else
    return x;
#endif
}

// Each rounds once. The compiler may contract a * b + c to one rounding, which would move inputs
// that lie on the threshold to its other side; these it may not.
// CuPy adds -ftz=true to its compiler's options, last, and CUDA 12 refuses a second -ftz: float32
// below 1.2e-38 counts as zero. Added to numbers of a threshold's size it rounds away anyhow.
#if DTYPE == FLOAT64
__device__ __forceinline__ real plus(real a, real b) { return __dadd_rn(a, b); }
__device__ __forceinline__ real minus(real a, real b) { return __dsub_rn(a, b); }
__device__ __forceinline__ real times(real a, real b) { return __dmul_rn(a, b); }
__device__ __forceinline__ real square_root(real a) { return sqrt(a); }
#else
__device__ __forceinline__ real plus(real a, real b) { return __fadd_rn(a, b); }
__device__ __forceinline__ real minus(real a, real b) { return __fsub_rn(a, b); }
__device__ __forceinline__ real times(real a, real b) { return __fmul_rn(a, b); }
__device__ __forceinline__ real square_root(real a) { return sqrtf(a); }
#endif

// For gradients only, where they cannot move a spike: to a few units in the last place, in a fifth
// of the instructions.
#if defined(__CUDACC__) && DTYPE != FLOAT64
__device__ __forceinline__ real quotient(real a, real b) { return __fdividef(a, b); }
__device__ __forceinline__ real exponential(real a) { return __expf(a); }
#else
__device__ __forceinline__ real quotient(real a, real b) { return a / b; }
__device__ __forceinline__ real exponential(real a) { return exp(a); }
#endif

// The larger one, or NaN where there is one.
__device__ __forceinline__ real larger(real a, real b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && DTYPE != FLOAT64
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
#else
    return a > b || a != a ? a : b;
#endif
}
