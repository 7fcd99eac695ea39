// Mean and variance of each channel of y [N, C, inner] or [N, inner, C].
//
// PyTorch's own kernel for contiguous tensors has one block per channel, which leaves most of a
// GPU idle where there are few channels. Here every thread makes a mean and a sum of squares about
// it from its share, and one or two rounds put them together; STEPS and KIND play no part.

struct Moments {
    real count, mean, squares;  // squares: sum of (y - mean)^2

    // Chan et al. 1979: nothing cancels.
    __device__ __forceinline__ void add(const Moments& other) {
        if (other.count == 0) return;
        const real total = count + other.count, difference = other.mean - mean;
        mean += difference * (other.count / total);
        squares += other.squares + difference * difference * (count * other.count / total);
        count = total;
    }
};

// Planes [3, channels, parts] (contiguous) or [3, parts, channels] (channels last).
struct Parts {
    real* data;
    unsigned channels, parts;
    bool channels_last;
    __device__ __forceinline__ size_t at(unsigned channel, unsigned part) const {
        return channels_last ? (size_t)part * channels + channel : (size_t)channel * parts + part;
    }
    __device__ __forceinline__ Moments read(unsigned channel, unsigned part) const {
        const size_t plane = (size_t)channels * parts, i = at(channel, part);
        return {data[i], data[plane + i], data[2 * plane + i]};
    }
    __device__ __forceinline__ void write(unsigned channel, unsigned part, const Moments& m) {
        const size_t plane = (size_t)channels * parts, i = at(channel, part);
        data[i] = m.count;
        data[plane + i] = m.mean;
        data[2 * plane + i] = m.squares;
    }
};

extern "C" __global__ void moments(const Pack* __restrict__ y, real* partial, unsigned packs,
                                   unsigned per_group, unsigned threads, unsigned channels,
                                   unsigned inner) {
    const unsigned thread = thread_index();
    if (thread >= threads) return;
    const Layout layout = {channels, inner};
    const Share share(layout, thread, per_group);
    const Pack origin = y[share.pack(share.first)];
    real shift[VEC], sum[VEC], squares[VEC];
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) {
        shift[lane] = widen(origin.lane[lane]);  // as near to the mean as values are to each other
        sum[lane] = squares[lane] = 0;
    }
    const unsigned end = packs / share.groups;
#pragma unroll 4
    for (unsigned e = share.first; e < end; e += share.stride) {
        const Pack pack = y[share.pack(e)];
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            const real difference = widen(pack.lane[lane]) - shift[lane];
            sum[lane] += difference;
            squares[lane] += difference * difference;
        }
    }
    const real count = (end - share.first + share.stride - 1) / share.stride;
    Parts parts = {partial, channels, per_group, layout.channels_last()};
    Moments all = {0, 0, 0};
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) {
        const real about_mean = squares[lane] - sum[lane] * (sum[lane] / count);
        const Moments own = {count, shift[lane] + sum[lane] / count,
                             about_mean < 0 ? real(0) : about_mean};
        if (layout.channels_last()) parts.write(share.channel(layout) + lane, share.first, own);
        else all.add(own);
    }
    if (!layout.channels_last()) parts.write(share.channel(layout), share.first, all);
}

extern "C" __global__ void combine(real* from, real* into, unsigned from_parts,
                                   unsigned into_parts, unsigned channels, int channels_last) {
    const unsigned thread = thread_index();
    if (thread >= channels * into_parts) return;
    const Parts source = {from, channels, from_parts, channels_last != 0};
    Parts target = {into, channels, into_parts, channels_last != 0};
    const unsigned channel = channels_last ? thread % channels : thread / into_parts;
    const unsigned first = channels_last ? thread / channels : thread % into_parts;
    Moments all = {0, 0, 0};
    for (unsigned part = first; part < from_parts; part += into_parts)
        all.add(source.read(channel, part));
    target.write(channel, first, all);
}

// mean, variance * unbias and 1 / sqrt(variance + eps), [channels] each
extern "C" __global__ void finish(real* from, real* mean, real* variance, real* invstd,
                                  unsigned from_parts, unsigned channels, int channels_last,
                                  real eps, real unbias) {
    const unsigned channel = thread_index();
    if (channel >= channels) return;
    const Parts source = {from, channels, from_parts, channels_last != 0};
    Moments all = {0, 0, 0};
    for (unsigned part = 0; part < from_parts; ++part) all.add(source.read(channel, part));
    mean[channel] = all.mean;
    const real biased = all.squares / all.count;
    variance[channel] = biased * unbias;
    invstd[channel] = 1 / square_root(biased + eps);
}
