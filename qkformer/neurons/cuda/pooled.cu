// BatchNorm -> 3x3 max pool of stride 2 and padding 1 -> neuron. VEC is 1.
//
// y is [T, B, C, H, W], or [1, B, C, H, W] where it is repeated over time; a neuron belongs to a
// window of [B, C, H', W'], H' = ceil(H / 2). Nothing pooled is kept: windows are read again.

#define POOL_ARGUMENTS unsigned channels, int height, int width, int channels_last

struct Image {
    unsigned channels;
    int height, width;
    bool channels_last;
    __device__ __forceinline__ size_t pixels() const { return (size_t)height * width; }
    // Index of (h, w) in the plane of image b and channel c.
    __device__ __forceinline__ size_t at(unsigned b, unsigned c, int h, int w) const {
        const size_t pixel = (size_t)h * width + w;
        return channels_last ? (b * pixels() + pixel) * channels + c
                             : ((size_t)b * channels + c) * pixels() + pixel;
    }
};

struct Place {
    unsigned b, c;
    int h, w;
    __device__ Place(const Image& image, unsigned i) {
        if (image.channels_last) {
            c = i % image.channels;
            i /= image.channels;
        }
        w = i % image.width;
        i /= image.width;
        h = i % image.height;
        b = i / image.height;
        if (!image.channels_last) {
            c = b % image.channels;
            b /= image.channels;
        }
    }
};

// Largest of the window, its place (0 to 8, row by row) and the value of y there. As in PyTorch
// the first of equals wins, and the last NaN wins over all.
__device__ __forceinline__ real window_max(const scalar* y, const Image& image, const Norm& norm,
                                           const Place& place, int& index) {
    real best = 0;
    index = -1;
#pragma unroll
    for (int k = 0; k < 9; ++k) {
        const int h = 2 * place.h - 1 + k / 3, w = 2 * place.w - 1 + k % 3;
        if (h < 0 || w < 0 || h >= image.height || w >= image.width) continue;
        const real z = norm(y[image.at(place.b, place.c, h, w)]);
        if (index < 0 || z > best || z != z) {
            best = z;
            index = k;
        }
    }
    return best;
}

extern "C" __global__ void pooled_forward(const scalar* __restrict__ y,
                                          const scalar* __restrict__ residual,
                                          scalar* __restrict__ out, unsigned neurons,
                                          unsigned inputs, int repeated, POOL_ARGUMENTS,
                                          NORM_ARGUMENTS, NEURON_ARGUMENTS) {
    const unsigned i = thread_index();
    if (i >= neurons) return;
    const Neuron neuron = NEURON;
    const Image image = {channels, height, width, channels_last != 0};
    const Image pooled = {channels, (height + 1) / 2, (width + 1) / 2, channels_last != 0};
    const Place place(pooled, i);
    Norm norm;
    norm.read(NORM, place.c);
    real current = 0;
    run(neuron, steps,
        [&](int t, real* x) {
            int index;
            if (t == 0 || !repeated)
                current = window_max(y + (size_t)t * inputs, image, norm, place, index);
            x[0] = current;
        },
        [&](int t, const bool* spikes) {
            const size_t at = (size_t)t * neurons + i;
            out[at] = narrow(plus(residual ? widen(residual[at]) : real(0),
                                  spikes[0] ? real(1) : real(0)));
        });
}

// Gradient at the windows' maxima, [T or 1, B, C, H', W'], their places, and BatchNorm's sums:
// dz is zero everywhere else.
extern "C" __global__ void pooled_backward(
    const scalar* __restrict__ y, const scalar* __restrict__ grad, scalar* __restrict__ grad_max,
    unsigned char* index_of_max, real* __restrict__ partial, real* work, unsigned neurons,
    unsigned inputs, unsigned per_group, unsigned threads, int repeated, POOL_ARGUMENTS,
    NORM_ARGUMENTS, NEURON_ARGUMENTS) {
    const unsigned thread = thread_index();
    if (thread >= threads) return;
    const Neuron neuron = NEURON;
    const Image image = {channels, height, width, channels_last != 0};
    const Image pooled = {channels, (height + 1) / 2, (width + 1) / 2, channels_last != 0};
    const Layout layout = {channels, channels_last ? 1 : (unsigned)pooled.pixels()};
    const Share share(layout, thread, per_group);
    Norm norm;
    norm.read(NORM, share.group);
    Sums sums;
    Past past(work, thread, threads, steps);
    for (unsigned e = share.first; e < neurons / share.groups; e += share.stride) {
        const unsigned i = share.pack(e);
        const Place place(pooled, i);
        real current = 0, total = 0;
        record(neuron, steps, past, [&](int t, real* x) {
            if (t == 0 || !repeated) {
                int index;
                current = window_max(y + (size_t)t * inputs, image, norm, place, index);
                index_of_max[(size_t)t * neurons + i] = (unsigned char)index;
            }
            x[0] = current;
        });
        backpropagate(neuron, steps, past, sums.tau,
            [&](int t, real* g) { g[0] = widen(grad[(size_t)t * neurons + i]); },
            [&](int t, const real* dz) {
                total = repeated ? total + dz[0] : dz[0];
                if (repeated && t > 0) return;
                const size_t at = (size_t)t * neurons + i;
                const int k = index_of_max[at];
                const int h = 2 * place.h - 1 + k / 3, w = 2 * place.w - 1 + k % 3;
                const scalar y_max = y[(size_t)t * inputs + image.at(place.b, place.c, h, w)];
                sums.add(0, total, norm.centered(y_max));
                grad_max[at] = narrow(total);
            });
    }
    sums.write(partial, layout.channels_last(), thread, threads);
}

// Gradient of y from those of the at most four windows that each element is in.
extern "C" __global__ void pooled_gather(const scalar* __restrict__ y,
                                         const scalar* __restrict__ grad_max,
                                         const unsigned char* __restrict__ index_of_max,
                                         scalar* __restrict__ dy, const real* sums,
                                         real reciprocal_count, unsigned neurons, unsigned inputs,
                                         int rows, POOL_ARGUMENTS, NORM_ARGUMENTS) {
    const unsigned i = thread_index();
    if (i >= inputs) return;
    const Image image = {channels, height, width, channels_last != 0};
    const Image pooled = {channels, (height + 1) / 2, (width + 1) / 2, channels_last != 0};
    const Place place(image, i);
    Norm norm;
    norm.read(NORM, place.c);
    NormGradient norm_gradient;
    norm_gradient.read(norm, sums, channels, place.c, reciprocal_count);
    for (int t = 0; t < rows; ++t) {
        real dz = 0;
        for (int h = place.h / 2; h <= (place.h + 1) / 2 && h < pooled.height; ++h)
            for (int w = place.w / 2; w <= (place.w + 1) / 2 && w < pooled.width; ++w) {
                const size_t at = (size_t)t * neurons + pooled.at(place.b, place.c, h, w);
                const int k = (place.h - (2 * h - 1)) * 3 + place.w - (2 * w - 1);
                if (index_of_max[at] == k) dz += widen(grad_max[at]);
            }
        const size_t at = (size_t)t * inputs + i;
        dy[at] = narrow(norm_gradient(norm, dz, y[at]));
    }
}
