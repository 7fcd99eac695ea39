// Count, mean and sum of squares about it of each channel of y, from each block that shares it.
//
// PyTorch's own kernel for contiguous tensors has one block per channel, which leaves most of a GPU
// idle where there are few channels. `packs` is of all of y; KIND and STEPS play no part.

#define AHEAD 4   // packs whose loads are in flight together
#define CHUNK 64  // packs that are summed about one value, which may be far from all others

extern "C" __global__ void __launch_bounds__(BLOCK, 3) moments(const Arguments a) {
    __shared__ Moments shared[KEPT][BLOCK];
    const Share share(a);
    Moments own[VEC];
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) own[lane] = {0, 0, 0};
#pragma unroll 1
    for (unsigned begin = share.first; begin < share.count; begin += CHUNK * share.stride) {
        const unsigned left = (share.count - begin + share.stride - 1) / share.stride;
        const int count = left < CHUNK ? left : CHUNK;
        const Pack origin = load(a.y + share.at(begin));
        real shift[VEC], sum[VEC], squares[VEC];
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            shift[lane] = widen(origin.lane[lane]);  // as near to the mean as values to each other
            sum[lane] = squares[lane] = 0;
        }
        const auto add = [&](const Pack& pack) {
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane) {
                const real difference = widen(pack.lane[lane]) - shift[lane];
                sum[lane] += difference;
                squares[lane] += difference * difference;
            }
        };
        int i = 0;
#pragma unroll 1
        for (; i + AHEAD <= count; i += AHEAD) {
            Pack read[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k)
                read[k] = load(a.y + share.at(begin + (i + k) * share.stride));
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) add(read[k]);
        }
#pragma unroll 1
        for (; i < count; ++i) add(load(a.y + share.at(begin + i * share.stride)));
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            const real mean = sum[lane] / count, about_mean = squares[lane] - sum[lane] * mean;
            own[lane].add({real(count), shift[lane] + mean, about_mean < 0 ? real(0) : about_mean});
        }
    }
    if (!LAST) {
#pragma unroll
        for (int lane = 1; lane < VEC; ++lane) own[0].add(own[lane]);
    }
    add_up<KEPT>(shared, own, a.tile);
    write_parts(a, share, shared);
}
