// One thread's neurons through all time steps: neurons/reference.py, operation by operation.

struct Neuron {
    real reciprocal_tau, threshold, reset, alpha;
    // 1 / tau is a number, or read from `learned` (PLIF)
    template <class Arguments>
    __device__ explicit Neuron(const Arguments& a)
        : reciprocal_tau(a.learned ? *a.learned : a.reciprocal_tau),
          threshold(a.threshold),
          reset(a.reset),
          alpha(a.alpha) {}
};

// A constant T lets the compiler unroll the loops over time, load all steps ahead, and keep the
// arrays below in registers.
#if STEPS
#define TIME_STEPS STEPS
#else
#define TIME_STEPS steps
#endif

// h[t] from v[t - 1] and the current. `drive` is what 1 / tau was multiplied by.
__device__ __forceinline__ real charge(const Neuron& neuron, real v, real x, real& drive) {
    drive = x;
    if (KIND == IF) return plus(v, x);
    drive = minus(x, minus(v, neuron.reset));
    return plus(v, times(drive, neuron.reciprocal_tau));
}

// Membrane potentials before the reset, and PLIF's drives, which backward walks through in reverse.
template <int LANES = VEC>
struct Past {
#if STEPS
    real h_[STEPS][LANES], drive_[STEPS][LANES];
    template <class Arguments>
    __device__ explicit Past(const Arguments&) {}
    __device__ __forceinline__ real& h(int t, int lane) { return h_[t][lane]; }
    __device__ __forceinline__ real& drive(int t, int lane) { return drive_[t][lane]; }
#else
    real* work;  // [2, T, LANES, threads]: too long for registers
    unsigned threads, steps;
    template <class Arguments>
    __device__ explicit Past(const Arguments& a)
        : work(a.work + blockIdx.x * BLOCK + threadIdx.x),
          threads(gridDim.x * BLOCK),
          steps(a.steps) {}
    __device__ __forceinline__ real& h(unsigned t, int lane) {
        return work[(size_t)(t * LANES + lane) * threads];
    }
    __device__ __forceinline__ real& drive(unsigned t, int lane) { return h(steps + t, lane); }
#endif
};

// current(t, real x[LANES]) fills in the currents of step t; fired(t, bool s[LANES]) takes the
// spikes.
template <int LANES = VEC, int UNROLL = STEPS ? STEPS : 4, class Current, class Fired>
__device__ __forceinline__ void run(const Neuron& neuron, int steps, Current current, Fired fired) {
    real v[LANES];
#pragma unroll
    for (int lane = 0; lane < LANES; ++lane) v[lane] = neuron.reset;
#pragma unroll UNROLL
    for (int t = 0; t < TIME_STEPS; ++t) {
        real x[LANES], drive;
        bool spikes[LANES];
        current(t, x);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
            const real h = charge(neuron, v[lane], x[lane], drive);
            spikes[lane] = h >= neuron.threshold;
            v[lane] = spikes[lane] ? neuron.reset : h;
        }
        fired(t, spikes);
    }
}

template <int LANES, class Current>
__device__ __forceinline__ void record(const Neuron& neuron, int steps, Past<LANES>& past,
                                       Current current) {
    real v[LANES];
#pragma unroll
    for (int lane = 0; lane < LANES; ++lane) v[lane] = neuron.reset;
#pragma unroll
    for (int t = 0; t < TIME_STEPS; ++t) {
        real x[LANES], drive;
        current(t, x);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
            const real h = charge(neuron, v[lane], x[lane], drive);
            past.h(t, lane) = h;
            if (KIND == PLIF) past.drive(t, lane) = drive;
            v[lane] = h >= neuron.threshold ? neuron.reset : h;
        }
    }
}

// Gradient of the membrane potential from that of the spike.
__device__ __forceinline__ real surrogate(const Neuron& neuron, real gradient, real above) {
    if (SURROGATE == ARCTAN) {
        const real scaled = real(1.5707963267948966) * neuron.alpha * above;
        return quotient(gradient * (neuron.alpha / 2), 1 + scaled * scaled);
    }
    const real sigmoid = quotient(1, 1 + exponential(-neuron.alpha * above));
    return gradient * ((sigmoid - sigmoid * sigmoid) * neuron.alpha);
}

// From the last step to the first: gradient(t, real g[LANES]) fills in that of the spikes,
// emit(t, real g[LANES]) takes that of the currents; PLIF's of 1 / tau is added to `grad_tau`.
template <int LANES, class Gradient, class Emit>
__device__ __forceinline__ void backpropagate(const Neuron& neuron, int steps, Past<LANES>& past,
                                              real& grad_tau, Gradient gradient, Emit emit) {
    const real leak = KIND == IF ? real(1) : 1 - neuron.reciprocal_tau;
    real later[LANES];  // gradient of h[t + 1]
#pragma unroll
    for (int lane = 0; lane < LANES; ++lane) later[lane] = 0;
#pragma unroll
    for (int t = TIME_STEPS - 1; t >= 0; --t) {
        real g[LANES];
        gradient(t, g);
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
            const real h = past.h(t, lane);
            real grad_h = surrogate(neuron, g[lane], h - neuron.threshold);
            if (!(h >= neuron.threshold)) grad_h += later[lane] * leak;  // none through the reset
            if (KIND == PLIF) grad_tau += grad_h * past.drive(t, lane);
            later[lane] = grad_h;
            g[lane] = KIND == IF ? grad_h : grad_h * neuron.reciprocal_tau;
        }
        emit(t, g);
    }
}
