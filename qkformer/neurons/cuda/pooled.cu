// BatchNorm -> 3x3 max pool of stride 2 and padding 1 -> neuron. VEC is 1.
//
// y is [T, B, C, H, W], or [1, B, C, H, W] where it is repeated over time; a neuron belongs to a
// window of [B, C, H', W'], H' = ceil(H / 2). Nothing pooled is kept: windows are read again.

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

struct Pool {
    Image image, pooled;
    unsigned neurons, inputs;
    __device__ explicit Pool(const Arguments& a)
        : image{a.groups, (int)a.height, (int)a.width, LAST != 0},
          pooled{a.groups, ((int)a.height + 1) / 2, ((int)a.width + 1) / 2, LAST != 0},
          neurons(a.packs),
          inputs(a.packs / a.run * (a.height * a.width)) {}
};

__device__ __forceinline__ const scalar* elements(const Pack* packs) { return packs->lane; }
__device__ __forceinline__ scalar* elements(Pack* packs) { return packs->lane; }

extern "C" __global__ void __launch_bounds__(BLOCK) pooled_forward(const Arguments a) {
    const Neuron neuron(a);
    const Pool pool(a);
    const Share share(a);
    const scalar *y = elements(a.y), *residual = a.given[0] ? elements(a.given[0]) : nullptr;
    scalar* out = elements(a.made[0]);
    Norm norm;
    share.read(&norm, a);
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        const unsigned i = share.at(e);
        const Place place(pool.pooled, i);
        real current = 0;
        run(neuron, a.steps,
            [&](int t, real* x) {
                int index;
                if (t == 0 || !REPEATED)
                    current =
                        window_max(y + (size_t)t * pool.inputs, pool.image, norm, place, index);
                x[0] = current;
            },
            [&](int t, const bool* spikes) {
                const size_t at = (size_t)t * pool.neurons + i;
                out[at] = narrow(plus(residual ? widen(residual[at]) : real(0),
                                      spikes[0] ? real(1) : real(0)));
            });
    }
}

// Gradient at the windows' maxima, [T or 1, B, C, H', W'], their places, and BatchNorm's sums:
// dz is zero everywhere else.
extern "C" __global__ void __launch_bounds__(BLOCK) pooled_backward(const Arguments a) {
    __shared__ Sums shared[KEPT][BLOCK];
    const Neuron neuron(a);
    const Pool pool(a);
    const Share share(a);
    const scalar *y = elements(a.y), *grad = elements(a.given[0]);
    scalar* grad_max = elements(a.made[0]);
    Norm norm;
    share.read(&norm, a);
    ThreadSums sums;
    Past<> past(a);
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        const unsigned i = share.at(e);
        const Place place(pool.pooled, i);
        real current = 0, total = 0;
        record(neuron, a.steps, past, [&](int t, real* x) {
            if (t == 0 || !REPEATED) {
                int index;
                current = window_max(y + (size_t)t * pool.inputs, pool.image, norm, place, index);
                a.places[(size_t)t * pool.neurons + i] = (unsigned char)index;
            }
            x[0] = current;
        });
        backpropagate(neuron, a.steps, past, sums.tau(),
            [&](int t, real* g) { g[0] = widen(grad[(size_t)t * pool.neurons + i]); },
            [&](int t, const real* dz) {
                total = REPEATED ? total + dz[0] : dz[0];
                if (REPEATED && t > 0) return;
                const size_t at = (size_t)t * pool.neurons + i;
                const int k = a.places[at];
                const int h = 2 * place.h - 1 + k / 3, w = 2 * place.w - 1 + k % 3;
                const scalar y_max =
                    y[(size_t)t * pool.inputs + pool.image.at(place.b, place.c, h, w)];
                sums.add(0, total, norm.centered(y_max));
                grad_max[at] = narrow(total);
            });
    }
    sums.write(shared, a, share);
}

// Gradient of y from those of the at most four windows that each element is in.
extern "C" __global__ void __launch_bounds__(BLOCK) pooled_gather(const Arguments a) {
    const Pool pool(a);
    const unsigned i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= pool.inputs) return;
    const scalar *y = elements(a.y), *grad_max = elements(a.given[0]);
    scalar* dy = elements(a.made[0]);
    const Place place(pool.image, i);
    Norm norm;
    norm.read(a, place.c);
    NormGradient norm_gradient;
    norm_gradient.read(a, place.c);
    const int rows = REPEATED ? 1 : a.steps;
    for (int t = 0; t < rows; ++t) {
        real dz = 0;
        for (int h = place.h / 2; h <= (place.h + 1) / 2 && h < pool.pooled.height; ++h)
            for (int w = place.w / 2; w <= (place.w + 1) / 2 && w < pool.pooled.width; ++w) {
                const size_t at =
                    (size_t)t * pool.neurons + pool.pooled.at(place.b, place.c, h, w);
                const int k = (place.h - (2 * h - 1)) * 3 + place.w - (2 * w - 1);
                if (a.places[at] == k) dz += widen(grad_max[at]);
            }
        const size_t at = (size_t)t * pool.inputs + i;
        dy[at] = narrow(norm_gradient(a, norm, dz, y[at]));
    }
}
