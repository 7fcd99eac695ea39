// (BatchNorm ->) neuron over y [T, M], or [1, M] where it is repeated over time; M = B * C * H * W
// neurons in packs of VEC. Of `splits` shares of the channels, each leaves as [T, M / splits].

// What a thread reads of [T, M] at one pack. Of a constant T all steps at once, so that all loads
// are in flight together.
template <bool ONCE>
struct Rows {
    const Pack* from;
    size_t step;
#if STEPS
    Pack read[ONCE ? 1 : STEPS];
#endif
    __device__ __forceinline__ Rows(const Pack* from, size_t step) : from(from), step(step) {
#if STEPS
        if (!from) return;
#pragma unroll
        for (int t = 0; t < (ONCE ? 1 : STEPS); ++t) read[t] = load(from + t * step);
#endif
    }
    __device__ __forceinline__ Pack operator[](int t) const {
#if STEPS
        return read[ONCE ? 0 : t];
#else
        return load(from + (ONCE ? 0 : t) * step);
#endif
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK) forward(const Arguments a) {
    const Neuron neuron(a);
    const Share share(a);
    Norm norm[VEC];
    share.read(norm, a);
    const size_t step = a.packs / SPLITS;
    Pack* const spiked = share.of(a.made);
#pragma unroll 1
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        const unsigned at = share.output(e);
        const Rows<REPEATED> y(a.y + share.at(e), a.packs);
        const Rows<false> residual(a.given[0] ? a.given[0] + at : nullptr, step);
        run(neuron, a.steps,
            [&](int t, real* x) {
                const Pack pack = y[t];
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) x[lane] = norm[lane](pack.lane[lane]);
            },
            [&](int t, const bool* spikes) {
                Pack sum;
                if (residual.from) sum = residual[t];
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) {
                    const real below = residual.from ? widen(sum.lane[lane]) : real(0);
                    sum.lane[lane] = narrow(plus(below, spikes[lane] ? real(1) : real(0)));
                }
                spiked[at + t * step] = sum;
            });
    }
}

// The neurons of one pack, forward and backward: emit(t, real dz[VEC], const Pack& y).
template <class Emit>
__device__ __forceinline__ void both_ways(const Arguments& a, const Neuron& neuron,
                                          const Share& share, const Norm* norm, Past<>& past,
                                          unsigned e, real& grad_tau, Emit emit) {
    const Rows<REPEATED> y(a.y + share.at(e), a.packs);
    const Rows<false> grad(share.of(a.given) + share.output(e), a.packs / SPLITS);
    record(neuron, a.steps, past, [&](int t, real* x) {
        const Pack pack = y[t];
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) x[lane] = norm[lane](pack.lane[lane]);
    });
    backpropagate(neuron, a.steps, past, grad_tau,
        [&](int t, real* g) {
            const Pack pack = grad[t];
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane) g[lane] = widen(pack.lane[lane]);
        },
        [&](int t, const real* dz) { emit(t, dz, y[t]); });
}

// Sums over the gradient dz of BatchNorm's output (of the neuron's currents).
extern "C" __global__ void __launch_bounds__(BLOCK, 2) reduce(const Arguments a) {
    __shared__ Sums shared[KEPT][BLOCK];
    const Neuron neuron(a);
    const Share share(a);
    Norm norm[VEC];
    share.read(norm, a);
    ThreadSums sums;
    Past<> past(a);
#pragma unroll 1
    for (unsigned e = share.first; e < share.count; e += share.stride)
        both_ways(a, neuron, share, norm, past, e, sums.tau(),
                  [&](int, const real* dz, const Pack& y) {
#pragma unroll
                      for (int lane = 0; lane < VEC; ++lane)
                          sums.add(lane, dz[lane], norm[lane].centered(y.lane[lane]));
                  });
    sums.write(shared, a, share);
}

// Gradient of y, [T, M] or, where y is repeated, [1, M].
extern "C" __global__ void __launch_bounds__(BLOCK, 2) backward(const Arguments a) {
    const Neuron neuron(a);
    const Share share(a);
    Norm norm[VEC];
    NormGradient norm_gradient[VEC];
    share.read(norm, a);
    share.read(norm_gradient, a);
    Past<> past(a);
#pragma unroll 1
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        Pack* const dy = a.made[0] + share.at(e);
        real total[VEC], grad_tau = 0;
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) total[lane] = 0;
        both_ways(a, neuron, share, norm, past, e, grad_tau,
                  [&](int t, const real* dz, const Pack& y) {
                      Pack out;
#pragma unroll
                      for (int lane = 0; lane < VEC; ++lane) {
                          total[lane] = REPEATED ? total[lane] + dz[lane] : dz[lane];
                          out.lane[lane] = narrow(
                              norm_gradient[lane](a, norm[lane], total[lane], y.lane[lane]));
                      }
                      if (t == 0 || !REPEATED) dy[(size_t)t * a.packs] = out;
                  });
    }
}
