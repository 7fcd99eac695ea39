// BatchNorm's affine map in front of the neuron, what its gradient needs, and which thread does what.

// What the kernels of dense.cu, pooled.cu and moments are told; what does not concern one is null.
// y is [rows, C, H, W] in memory [rows, groups, run] or, channels last, [rows, run, groups], of
// packs; a group is a channel or, channels last, VEC of them.
struct Arguments {
    const Pack *y;
    const Pack *given[3];   // what comes: the residual, or the gradient of every share of the output
    Pack *made[3];          // what leaves: every share of the output, or the gradient of y
    unsigned char *places;  // pooled: where in its window each maximum is
    real *partial;          // sums over channels, a part of each block
    real *work;             // membranes of T steps that are too many for registers
    const real *center, *scale, *shift;    // [C] each: BatchNorm's map, null for 0, 1 and 0
    const real *by_mean, *by_variance;     // [C] each: its gradient's; null for fixed statistics
    const real *learned;
    real reciprocal_tau, threshold, reset, alpha;
    unsigned steps, packs, groups, run;  // packs: of y, in a time step
    unsigned tile, tiles, parts;         // see Share
    unsigned height, width;              // pooled: of y
    unsigned heads;                      // of a share of the output, see Share::output
};

struct Norm {
    real center, scale, shift;
    __device__ __forceinline__ void read(const Arguments& a, unsigned channel) {
        center = a.center ? a.center[channel] : real(0);
        scale = a.scale ? a.scale[channel] : real(1);
        shift = a.shift ? a.shift[channel] : real(0);
    }
    __device__ __forceinline__ real centered(scalar y) const { return minus(widen(y), center); }
    // Not scale * y + (shift - scale * mean), which cancels where the mean is large.
    __device__ __forceinline__ real operator()(scalar y) const {
        return plus(times(centered(y), scale), shift);
    }
};

// dz -> dy. In training, mean and variance depend on y: by_mean is the mean of dz over a channel,
// by_variance that of dz * centered(y), over the variance.
struct NormGradient {
    real by_mean, by_variance;
    __device__ __forceinline__ void read(const Arguments& a, unsigned channel) {
        if (!a.by_mean) return;
        by_mean = a.by_mean[channel];
        by_variance = a.by_variance[channel];
    }
    __device__ __forceinline__ real operator()(const Arguments& a, const Norm& norm, real dz,
                                               scalar y) const {
        if (!a.by_mean) return norm.scale * dz;
        return norm.scale * (dz - by_mean - norm.centered(y) * by_variance);
    }
};

#define KEPT (LAST ? VEC : 1)  // channels of a pack

// A thread's share of the packs of a time step: those of one group, every `stride`-th from `first`.
// A block has `tile` neighbouring groups (one, unless channels are last) and shares their packs with
// parts - 1 others; neighbours in a block are neighbours in memory. The grid is [parts, tiles].
struct Share {
    unsigned groups, run, heads, group, first, stride, count;
    __device__ explicit Share(const Arguments& a) : groups(a.groups), run(a.run), heads(a.heads) {
        const unsigned slices = BLOCK / a.tile;
        group = blockIdx.x % a.tiles * a.tile + threadIdx.x % a.tile;
        first = blockIdx.x / a.tiles * slices + threadIdx.x / a.tile;
        stride = a.parts * slices;
        count = group < groups ? a.packs / groups : 0;
    }
    // Index of a pack in y.
    __device__ __forceinline__ unsigned at(unsigned e) const { return at(e, groups, group); }
    // And in its share of the output: in memory as y is or, of several heads, [rows, heads, run,
    // groups of a head], the matrices of attention.
    __device__ __forceinline__ unsigned output(unsigned e) const {
        if (SPLITS == 1) return at(e);
        const unsigned own = groups / SPLITS, within = group % own;
        if (!LAST || heads == 1) return at(e, own, within);
        const unsigned of_head = own / heads;
        const unsigned matrix = e / run * heads + within / of_head;
        return (matrix * run + e % run) * of_head + within % of_head;
    }
    template <class Pointer>
    __device__ __forceinline__ Pointer of(const Pointer* shares) const {
        const unsigned share = SPLITS == 1 ? 0 : group / (groups / SPLITS);
        return share == 0 ? shares[0] : share == 1 ? shares[1] : shares[2];
    }
    __device__ __forceinline__ unsigned channel(int lane) const {
        return LAST ? group * VEC + lane : group;
    }
    template <class Values>
    __device__ __forceinline__ void read(Values* values, const Arguments& a) const {
        if (count == 0) return;
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            if (lane < KEPT) values[lane].read(a, channel(lane));
            else values[lane] = values[0];
        }
    }

  private:
    __device__ __forceinline__ unsigned at(unsigned e, unsigned groups, unsigned group) const {
        return LAST ? e * groups + group : (e / run * groups + group) * run + e % run;
    }
};

// Adds up what the threads of a block have for the same channels: those whose indices differ by
// multiples of `tile`, a power of two. The first `tile` threads then hold the result.
template <int COUNT, class Value>
__device__ __forceinline__ void add_up(Value (*shared)[BLOCK], const Value* own, unsigned tile) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) shared[i][threadIdx.x] = own[i];
    __syncthreads();
    for (unsigned half = BLOCK / 2; half >= tile; half /= 2) {
        if (threadIdx.x < half) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) shared[i][threadIdx.x].add(shared[i][threadIdx.x + half]);
        }
        __syncthreads();
    }
}

// A channel's values, or some of them.
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

// Of each channel: sums of dz, of dz * centered(y), and of PLIF's gradient.
struct Sums {
    real dz, dz_centered, tau;
    __device__ __forceinline__ void add(const Sums& other) {
        dz += other.dz;
        dz_centered += other.dz_centered;
        tau += other.tau;
    }
};

// partial [3, parts, channels], one row of each plane from every block of a tile.
template <class Value>
__device__ __forceinline__ void write_parts(const Arguments& a, const Share& share,
                                            const Value (*shared)[BLOCK]) {
    if (threadIdx.x >= a.tile || share.count == 0) return;
    const size_t channels = (size_t)a.groups * KEPT, plane = a.parts * channels;
    real* part = a.partial + blockIdx.x / a.tiles * channels;
#pragma unroll
    for (int lane = 0; lane < KEPT; ++lane) {
        const real* values = reinterpret_cast<const real*>(&shared[lane][threadIdx.x]);
#pragma unroll
        for (int i = 0; i < 3; ++i) part[i * plane + share.channel(lane)] = values[i];
    }
}

// A thread's sums over its packs, and their way out.
struct ThreadSums {
    Sums of[VEC];
    __device__ ThreadSums() {
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) of[lane] = {0, 0, 0};
    }
    __device__ __forceinline__ void add(int lane, real gradient, real centered) {
        of[lane].dz += gradient;
        of[lane].dz_centered += gradient * centered;
    }
    __device__ __forceinline__ real& tau() { return of[0].tau; }
    __device__ __forceinline__ void write(Sums (*shared)[BLOCK], const Arguments& a,
                                          const Share& share) {
        if (!LAST) {
#pragma unroll
            for (int lane = 1; lane < VEC; ++lane) of[0].add(of[lane]);
        }
        add_up<KEPT>(shared, of, a.tile);
        write_parts(a, share, shared);
    }
};
