// BatchNorm's affine map in front of the neuron, and what its gradient needs.

// Any of the five may be null: a neuron alone is one with the identity in front. `conv_bias` is that
// of the convolution, which left it out; `mean` is of values that have it.
#define NORM_ARGUMENTS                                                                       \
    const real* weight, const real* bias, const real* mean, const real* invstd,              \
        const real* conv_bias
#define NORM weight, bias, mean, invstd, conv_bias

struct Norm {
    real center, invstd, scale, shift;
    __device__ __forceinline__ void read(NORM_ARGUMENTS, unsigned channel) {
        center = minus(mean ? mean[channel] : real(0), conv_bias ? conv_bias[channel] : real(0));
        this->invstd = invstd ? invstd[channel] : real(1);
        scale = times(weight ? weight[channel] : real(1), this->invstd);
        shift = bias ? bias[channel] : real(0);
    }
    __device__ __forceinline__ real centered(scalar y) const { return minus(widen(y), center); }
    // Not scale * y + (shift - scale * mean), which cancels where the mean is large.
    __device__ __forceinline__ real operator()(scalar y) const {
        return plus(times(centered(y), scale), shift);
    }
};

// dz -> dy. In training, mean and variance depend on y; `sums` [2, channels] holds the sums of dz
// and of dz * centered(y) over the `count` values of a channel. It is null for fixed statistics.
struct NormGradient {
    bool constant;
    real by_mean, by_variance;
    __device__ __forceinline__ void read(const Norm& norm, const real* sums, unsigned channels,
                                         unsigned channel, real reciprocal_count) {
        constant = !sums;
        if (constant) return;
        by_mean = sums[channel] * reciprocal_count;
        by_variance = sums[channels + channel] * reciprocal_count * norm.invstd * norm.invstd;
    }
    __device__ __forceinline__ real operator()(const Norm& norm, real dz, scalar y) const {
        if (constant) return norm.scale * dz;
        return norm.scale * (dz - by_mean - norm.centered(y) * by_variance);
    }
};

// Where in memory the neurons of one time step are: [B, C, inner] (contiguous) or [B, inner, C]
// (channels last), as packs of VEC that never hold two channels in the first case.
struct Layout {
    unsigned channels, inner;  // inner: H * W in memory behind a channel; 1 for channels last
    __device__ __forceinline__ bool channels_last() const { return inner == 1; }
    __device__ __forceinline__ unsigned channel(unsigned pack) const {  // of the first lane
        return channels_last() ? pack * VEC % channels : pack * VEC / inner % channels;
    }
    __device__ __forceinline__ void read(Norm* norm, unsigned channel, NORM_ARGUMENTS) const {
        norm[0].read(NORM, channel);
#pragma unroll
        for (int lane = 1; lane < VEC; ++lane) {
            if (channels_last()) norm[lane].read(NORM, channel + lane);
            else norm[lane] = norm[0];
        }
    }
};

// Where a pack's spikes and their gradient are: at [T, M], or, where `splits` neighbouring shares of
// the channels are tensors of their own, at [T, M / splits] of one of them.
struct Output {
    size_t first, step;
    unsigned share;
    __device__ Output(const Layout& layout, unsigned splits, unsigned packs, unsigned i)
        : first(i), step(packs / splits), share(0) {
        if (splits == 1) return;
        const unsigned channels = layout.channels / splits, element = i * VEC;
        const unsigned row = element / layout.inner, channel = row % layout.channels;
        const unsigned inside =
            (row / layout.channels * channels + channel % channels) * layout.inner +
            element % layout.inner;
        first = inside / VEC;
        share = channel / channels;
    }
    __device__ __forceinline__ size_t at(int t) const { return first + t * step; }
    template <class Pointer>
    __device__ __forceinline__ Pointer of(Pointer a, Pointer b, Pointer c) const {
        return share == 0 ? a : share == 1 ? b : c;
    }
};

// A sum over each channel, without shared memory: a thread takes every `stride`-th pack of one
// group (a channel, or VEC of them for channels last) and writes one partial sum per channel.
// Threads that are neighbours read neighbouring memory in either layout.
struct Share {
    unsigned group, groups, first, stride, run;
    __device__ Share(const Layout& layout, unsigned thread, unsigned per_group) : stride(per_group) {
        const bool last = layout.channels_last();
        run = last ? 1 : layout.inner / VEC;
        groups = last ? layout.channels / VEC : layout.channels;
        group = last ? thread % groups : thread / per_group;
        first = last ? thread / groups : thread % per_group;
    }
    __device__ __forceinline__ unsigned pack(unsigned element) const {
        return (element / run * groups + group) * run + element % run;
    }
    __device__ __forceinline__ unsigned channel(const Layout& layout) const {
        return layout.channels_last() ? group * VEC : group;
    }
};

// partial [3, threads(, VEC for channels last)]: of dz, of dz * centered(y), of PLIF's gradient.
struct Sums {
    real dz[VEC], dz_centered[VEC], tau;
    __device__ Sums() : tau(0) {
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) dz[lane] = dz_centered[lane] = 0;
    }
    __device__ __forceinline__ void add(int lane, real gradient, real centered) {
        dz[lane] += gradient;
        dz_centered[lane] += gradient * centered;
    }
    __device__ __forceinline__ void write(real* partial, bool channels_last, unsigned thread,
                                          unsigned threads) {
        const size_t kept = channels_last ? VEC : 1;
        const size_t plane = threads * kept, at = thread * kept;
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {  // unrolled: an index would cost the registers
            if (channels_last) {
                partial[at + lane] = dz[lane];
                partial[plane + at + lane] = dz_centered[lane];
                partial[2 * plane + at + lane] = lane ? real(0) : tau;
            } else if (lane) {
                dz[0] += dz[lane];
                dz_centered[0] += dz_centered[lane];
            }
        }
        if (channels_last) return;
        partial[at] = dz[0];
        partial[plane + at] = dz_centered[0];
        partial[2 * plane + at] = tau;
    }
};
