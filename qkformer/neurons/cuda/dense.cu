// (BatchNorm ->) neuron over y [T, M], M = B * C * H * W neurons in packs of VEC.
//
// repeated: y is [1, M] and every time step has the same current (a static image).
// splits: see Output, whose tensors are `first`, `second` and `third`; what goes in stays together.

extern "C" __global__ void forward(const Pack* __restrict__ y, const Pack* __restrict__ residual,
                                   Pack* __restrict__ first, Pack* __restrict__ second,
                                   Pack* __restrict__ third, unsigned packs, int repeated,
                                   unsigned channels, unsigned inner, unsigned splits,
                                   NORM_ARGUMENTS, NEURON_ARGUMENTS) {
    const unsigned i = thread_index();
    if (i >= packs) return;
    const Neuron neuron = NEURON;
    const Layout layout = {channels, inner};
    Norm norm[VEC];
    layout.read(norm, layout.channel(i), NORM);
    const Output output(layout, splits, packs, i);
    Pack* __restrict__ spiked = output.of(first, second, third);
    Pack stored;
    run(neuron, steps,
        [&](int t, real* x) {
            if (t == 0 || !repeated) stored = y[(size_t)t * packs + i];
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane) x[lane] = norm[lane](stored.lane[lane]);
        },
        [&](int t, const bool* spikes) {
            Pack sum;
            if (residual) sum = residual[output.at(t)];
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane)
                sum.lane[lane] = narrow(plus(residual ? widen(sum.lane[lane]) : real(0),
                                             spikes[lane] ? real(1) : real(0)));
            spiked[output.at(t)] = sum;
        });
}

// Sums over the gradient dz of BatchNorm's output (of the neuron's currents).
extern "C" __global__ void reduce(const Pack* __restrict__ y, const Pack* __restrict__ first,
                                  const Pack* __restrict__ second,
                                  const Pack* __restrict__ third, real* __restrict__ partial,
                                  real* work, unsigned packs, unsigned per_group,
                                  unsigned threads, int repeated, unsigned channels,
                                  unsigned inner, unsigned splits, NORM_ARGUMENTS,
                                  NEURON_ARGUMENTS) {
    const unsigned thread = thread_index();
    if (thread >= threads) return;
    const Neuron neuron = NEURON;
    const Layout layout = {channels, inner};
    const Share share(layout, thread, per_group);
    Norm norm[VEC];
    layout.read(norm, share.channel(layout), NORM);
    Sums sums;
    Past past(work, thread, threads, steps);
    for (unsigned e = share.first; e < packs / share.groups; e += share.stride) {
        const unsigned i = share.pack(e);
        const Output output(layout, splits, packs, i);
        const Pack* __restrict__ grad = output.of(first, second, third);
        Pack stored;
        record(neuron, steps, past, [&](int t, real* x) {
            if (t == 0 || !repeated) stored = y[(size_t)t * packs + i];
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane) x[lane] = norm[lane](stored.lane[lane]);
        });
        backpropagate(neuron, steps, past, sums.tau,
            [&](int t, real* g) {
                const Pack pack = grad[output.at(t)];
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) g[lane] = widen(pack.lane[lane]);
            },
            [&](int t, const real* dz) {
                if (!repeated) stored = y[(size_t)t * packs + i];
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane)
                    sums.add(lane, dz[lane], norm[lane].centered(stored.lane[lane]));
            });
    }
    sums.write(partial, layout.channels_last(), thread, threads);
}

// Gradient of y, [T, M] or, where y is repeated, [1, M].
extern "C" __global__ void backward(const Pack* __restrict__ y, const Pack* __restrict__ first,
                                    const Pack* __restrict__ second,
                                    const Pack* __restrict__ third, Pack* __restrict__ dy, real* work, const real* sums,
                                    real reciprocal_count, unsigned packs, unsigned threads,
                                    int repeated, unsigned channels, unsigned inner,
                                    unsigned splits, NORM_ARGUMENTS, NEURON_ARGUMENTS) {
    const unsigned thread = thread_index();
    if (thread >= threads) return;
    const Neuron neuron = NEURON;
    const Layout layout = {channels, inner};
    Past past(work, thread, threads, steps);
    for (unsigned i = thread; i < packs; i += threads) {
        const unsigned channel = layout.channel(i);
        Norm norm[VEC];
        layout.read(norm, channel, NORM);
        NormGradient norm_gradient[VEC];
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane)
            norm_gradient[lane].read(norm[lane], sums, channels,
                                     layout.channels_last() ? channel + lane : channel,
                                     reciprocal_count);
        const Output output(layout, splits, packs, i);
        const Pack* __restrict__ grad = output.of(first, second, third);
        Pack stored;
        record(neuron, steps, past, [&](int t, real* x) {
            if (t == 0 || !repeated) stored = y[(size_t)t * packs + i];
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane) x[lane] = norm[lane](stored.lane[lane]);
        });
        real total[VEC], grad_tau = 0;
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) total[lane] = 0;
        backpropagate(neuron, steps, past, grad_tau,
            [&](int t, real* g) {
                const Pack pack = grad[output.at(t)];
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) g[lane] = widen(pack.lane[lane]);
            },
            [&](int t, const real* dz) {
                if (!repeated) stored = y[(size_t)t * packs + i];
                Pack out;
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) {
                    total[lane] += dz[lane];
                    const real whole = repeated ? total[lane] : dz[lane];
                    out.lane[lane] =
                        narrow(norm_gradient[lane](norm[lane], whole, stored.lane[lane]));
                }
                if (t == 0 || !repeated) dy[(size_t)t * packs + i] = out;
            });
    }
}
