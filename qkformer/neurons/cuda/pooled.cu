// BatchNorm -> 3x3 max pool of stride 2 and padding 1 -> neuron.
//
// y is [T, B, C, H, W], VEC is 1 (-DLAST=0), or [T, B, H, W, C] in packs of VEC channels (-DLAST=1);
// T is 1 where y is repeated over time. A neuron belongs to a window of [B, C, H', W'],
// H' = ceil(H / 2). Nothing pooled is kept: windows are read again.

struct Pixel {
    unsigned plane, h, w, c;  // plane: b (channels last) or b * C + c; c: in packs
};

// Sizes of a time step of y, or of what is pooled, in packs: 32 bits hold every index.
struct Image {
    unsigned channels, height, width;
    __device__ Image(unsigned channels, unsigned height, unsigned width)
        : channels(channels), height(height), width(width) {}
    __device__ explicit Image(const Arguments& a) : Image(a.groups, a.height, a.width) {}
    __device__ __forceinline__ unsigned column() const { return LAST ? channels : 1; }
    __device__ __forceinline__ unsigned row() const { return width * column(); }
    __device__ __forceinline__ unsigned at(const Pixel& pixel) const {
        return (pixel.plane * height + pixel.h) * row() + pixel.w * column() + LAST * pixel.c;
    }
    // The i-th of one group of channels, in [B, H, W].
    __device__ __forceinline__ Pixel pixel(unsigned i, unsigned c) const {
        const unsigned h = i / width, b = h / height;
        return {LAST ? b : b * channels + c, h % height, i % width, c};
    }
    __device__ __forceinline__ Image pooled() const {
        return {channels, (height + 1) / 2, (width + 1) / 2};
    }
};

// Of each lane a place in its window, 0 to 8, row by row.
struct alignas(VEC) Places {
    unsigned char lane[VEC];
};

// Where the nine elements of a window are. Instead of padding the row or column beside it is read
// once more and keeps its own places: so nothing hangs on how often it is read, and no load on a
// branch.
struct Window {
    unsigned at[9], place[9];
    __device__ Window(const Image& image, const Pixel& of) {
        const Pixel center = {of.plane, 2 * of.h, 2 * of.w, of.c};
        const int up = center.h > 0, down = center.h + 1 < image.height;
        const int left = center.w > 0, right = center.w + 1 < image.width;
#pragma unroll
        for (int k = 0; k < 9; ++k) {
            const int h = k < 3 ? -up : k < 6 ? 0 : down;
            const int w = k % 3 == 0 ? -left : k % 3 == 1 ? 0 : right;
            at[k] = image.at(center) + h * image.row() + w * image.column();
            place[k] = 4 + 3 * h + w;
        }
    }
};

// BatchNorm and pool of a thread's channels.
struct Pool {
    Norm norm[VEC];
    real order[VEC];  // 1, or -1 where BatchNorm turns the order of y around, or NaN: weight 0

    __device__ Pool(const Arguments& a, const Share& share) {
        share.read(norm, a);
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            const real scale = norm[lane].scale;
            order[lane] = scale > 0 ? real(1) : scale < 0 ? real(-1) : __uint_as_float(0x7fc00000);
        }
    }

    // The y of BatchNorm's largest value in a window. As in PyTorch the first of equals wins, and
    // the last NaN wins over all.
    __device__ __forceinline__ Pack max(const Pack* y, const Window& window,
                                        Places& places) const {
        Pack in[9], best;
#pragma unroll
        for (int k = 0; k < 9; ++k) in[k] = load(y + window.at[k]);
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            real z[9];
#pragma unroll
            for (int k = 0; k < 9; ++k) z[k] = order[lane] * widen(in[k].lane[lane]);
            real largest = z[0];
#pragma unroll
            for (int k = 1; k < 9; ++k) largest = larger(largest, z[k]);
            unsigned place = window.place[8];
#pragma unroll
            for (int k = 7; k >= 0; --k)
                if (z[k] == largest) place = window.place[k];
            real found = order[lane] * largest;
            if (largest != largest) {  // seldom: by the definition
                found = widen(in[0].lane[lane]);
                place = window.place[0];
                largest = norm[lane](in[0].lane[lane]);
#pragma unroll
                for (int k = 1; k < 9; ++k) {
                    const real value = norm[lane](in[k].lane[lane]);
                    if (!(value > largest || value != value)) continue;
                    found = widen(in[k].lane[lane]);
                    place = window.place[k];
                    largest = value;
                }
            }
            best.lane[lane] = narrow(found);
            places.lane[lane] = (unsigned char)place;
        }
        return best;
    }

    __device__ __forceinline__ void currents(const Pack& y, real* x) const {
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) x[lane] = norm[lane](y.lane[lane]);
    }
};

// Packs of a time step of y.
__device__ __forceinline__ size_t inputs(const Arguments& a) {
    return a.packs / a.run * (a.height * a.width);
}

// The loop over time is rolled: a window's loads are enough to wait for at once.
extern "C" __global__ void __launch_bounds__(BLOCK) pooled_forward(const Arguments a) {
    const Neuron neuron(a);
    const Share share(a);
    const Image image(a), pooled = image.pooled();
    const Pool pool(a, share);
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        const Pixel pixel = pooled.pixel(e, share.group);
        const Window window(image, pixel);
        const unsigned i = pooled.at(pixel);
        const Pack* y = a.y;
        Pack best;
        run<VEC, 1>(neuron, a.steps,
            [&](int t, real* x) {
                Places places;
                if (t == 0 || !REPEATED) best = pool.max(y, window, places);
                y += inputs(a);  // 64 bits wide, once for all loads
                pool.currents(best, x);
            },
            [&](int t, const bool* spikes) {
                const size_t at = (size_t)t * a.packs + i;
                Pack sum;
                if (a.given[0]) sum = load(a.given[0] + at);
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) {
                    const real below = a.given[0] ? widen(sum.lane[lane]) : real(0);
                    sum.lane[lane] = narrow(plus(below, spikes[lane] ? real(1) : real(0)));
                }
                a.made[0][at] = sum;
            });
    }
}

// A pack of each time step: in registers, or in memory where there are too many.
template <class Pointer>
struct Series {
    Pointer memory;
    unsigned packs;
#if STEPS
    Pack pack[STEPS];
    __device__ __forceinline__ Pack get(int t) const { return pack[t]; }
    __device__ __forceinline__ void read() {
#pragma unroll
        for (int t = 0; t < STEPS; ++t) pack[t] = load(memory + (size_t)t * packs);
    }
    // From the last to the first by a rolled loop, in which registers have no index.
    __device__ __forceinline__ void put(int, const Pack& first) {
#pragma unroll
        for (int t = STEPS - 1; t > 0; --t) pack[t] = pack[t - 1];
        pack[0] = first;
    }
#else
    __device__ __forceinline__ Pack get(unsigned t) const { return memory[(size_t)t * packs]; }
    __device__ __forceinline__ void read() {}
    __device__ __forceinline__ void put(unsigned t, const Pack& pack) {
        memory[(size_t)t * packs] = pack;
    }
#endif
    __device__ Series(Pointer memory, unsigned packs) : memory(memory), packs(packs) {}
};

// Gradient at the windows' maxima, [T or 1, B, C, H', W'], their places, and BatchNorm's sums:
// dz is zero everywhere else.
extern "C" __global__ void __launch_bounds__(BLOCK, STEPS > 4 ? 1 : 2) pooled_backward(const Arguments a) {
    __shared__ Sums shared[KEPT][BLOCK];
    const Neuron neuron(a);
    const Share share(a);
    const Image image(a), pooled = image.pooled();
    const Pool pool(a, share);
    Places* const places_of_max = reinterpret_cast<Places*>(a.places);
    ThreadSums sums;
    Past<> past(a);
    const int last = REPEATED ? 0 : (STEPS ? STEPS : (int)a.steps) - 1;
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        const Pixel pixel = pooled.pixel(e, share.group);
        const Window window(image, pixel);
        const unsigned i = pooled.at(pixel);
        Series<Pack*> maxima(a.made[0] + i, a.packs);  // until their gradient takes their place
        Series<const Pack*> grads(a.given[0] + i, a.packs);
        const Pack* row = a.y + last * inputs(a);
#pragma unroll 1
        for (int t = last; t >= 0; --t, row -= inputs(a)) {
            Places places;
            maxima.put(t, pool.max(row, window, places));
            places_of_max[(size_t)t * a.packs + i] = places;
        }
        grads.read();
        record(neuron, a.steps, past,
               [&](int t, real* x) { pool.currents(maxima.get(REPEATED ? 0 : t), x); });
        real total[VEC];
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) total[lane] = 0;
        backpropagate(neuron, a.steps, past, sums.tau(),
            [&](int t, real* g) {
                const Pack pack = grads.get(t);
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) g[lane] = widen(pack.lane[lane]);
            },
            [&](int t, const real* dz) {
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane)
                    total[lane] = REPEATED ? total[lane] + dz[lane] : dz[lane];
                if (REPEATED && t > 0) return;
                const Pack max = maxima.get(t);
                Pack gradient;
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) {
                    sums.add(lane, total[lane], pool.norm[lane].centered(max.lane[lane]));
                    gradient.lane[lane] = narrow(total[lane]);
                }
                a.made[0][(size_t)t * a.packs + i] = gradient;
            });
    }
    sums.write(shared, a, share);
}

// Gradient of y. A thread has the elements (2h, 2w) to (2h + 1, 2w + 1): no window but (h, w) and
// those below and to the right of it has any of them.
extern "C" __global__ void __launch_bounds__(BLOCK, 3) pooled_gather(const Arguments a) {
    const Share share(a);
    const Image image(a), pooled = image.pooled();
    const Places* const places_of_max = reinterpret_cast<const Places*>(a.places);
    Norm norm[VEC];
    NormGradient norm_gradient[VEC];
    share.read(norm, a);
    share.read(norm_gradient, a);
    for (unsigned e = share.first; e < share.count; e += share.stride) {
        const Pixel pixel = pooled.pixel(e, share.group);
        const unsigned i = pooled.at(pixel);
        // Four elements and four windows: the own, that to the right, that below, and both. Where
        // one is outside its place is taken by the own.
        unsigned element[4], window[4];
        bool is_window[4];
        const unsigned own = image.at({pixel.plane, 2 * pixel.h, 2 * pixel.w, pixel.c});
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const unsigned down = n / 2, right = n % 2;
            const bool inside = 2 * pixel.h + down < a.height && 2 * pixel.w + right < a.width;
            element[n] = inside ? own + down * image.row() + right * image.column() : own;
            is_window[n] = pixel.h + down < pooled.height && pixel.w + right < pooled.width;
            window[n] = is_window[n] ? i + down * pooled.row() + right * pooled.column() : i;
        }
#pragma unroll 1
        for (int t = 0; t < (REPEATED ? 1 : (int)a.steps); ++t) {
            const Pack *y = a.y + t * inputs(a), *grad_max = a.given[0] + (size_t)t * a.packs;
            Pack* const dy = a.made[0] + t * inputs(a);
            Pack in[4], gradient[4];
            Places places[4];
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                in[n] = load(y + element[n]);
                gradient[n] = load(grad_max + window[n]);
                places[n] = places_of_max[(size_t)t * a.packs + window[n]];
            }
#pragma unroll
            for (int n = 1; n < 4; ++n)
                if (!is_window[n]) gradient[n] = {};
#pragma unroll
            for (int n = 3; n >= 0; --n) {  // the own last, over what stands for those outside
                Pack out;
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) {
                    real dz = 0;
#pragma unroll
                    for (int m = 0; m < 4; ++m) {
                        if (m & ~n) continue;  // window m begins behind element n
                        const int place = 3 * (1 + n / 2 - m / 2 * 2) + 1 + n % 2 - m % 2 * 2;
                        if (places[m].lane[lane] == place) dz += widen(gradient[m].lane[lane]);
                    }
                    out.lane[lane] = narrow(norm_gradient[lane](a, norm[lane], dz, in[n].lane[lane]));
                }
                dy[element[n]] = out;
            }
        }
    }
}
