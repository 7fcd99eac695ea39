// Count, mean and sum of squares about it of each channel of y, from each block that shares it.
//
// PyTorch's own kernel for contiguous tensors has one block per channel, which leaves most of a GPU
// idle where there are few channels. `packs` is of all of y; KIND and STEPS play no part.

#define AHEAD 4  // packs whose loads are in flight together

extern "C" __global__ void __launch_bounds__(BLOCK) moments(const Arguments a) {
    __shared__ Moments shared[KEPT][BLOCK];
    const Share share(a);
    const Pack origin = load(a.y + (share.first < share.count ? share.at(share.first) : 0));
    real shift[VEC], sum[VEC], squares[VEC], count = 0;
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) {
        shift[lane] = widen(origin.lane[lane]);  // as near to the mean as values are to each other
        sum[lane] = squares[lane] = 0;
    }
    const auto add = [&](const Pack& pack) {
        count += 1;
#pragma unroll
        for (int lane = 0; lane < VEC; ++lane) {
            const real difference = widen(pack.lane[lane]) - shift[lane];
            sum[lane] += difference;
            squares[lane] += difference * difference;
        }
    };
    unsigned e = share.first;
    for (; e + (AHEAD - 1) * share.stride < share.count; e += AHEAD * share.stride) {
        Pack read[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) read[i] = load(a.y + share.at(e + i * share.stride));
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) add(read[i]);
    }
    for (; e < share.count; e += share.stride) add(load(a.y + share.at(e)));
    Moments own[VEC];
#pragma unroll
    for (int lane = 0; lane < VEC; ++lane) {
        own[lane] = {0, 0, 0};
        if (count == 0) continue;
        const real mean = sum[lane] / count, about_mean = squares[lane] - sum[lane] * mean;
        own[lane] = {count, shift[lane] + mean, about_mean < 0 ? real(0) : about_mean};
    }
    if (!LAST) {
#pragma unroll
        for (int lane = 1; lane < VEC; ++lane) own[0].add(own[lane]);
    }
    add_up<KEPT>(shared, own, a.tile);
    write_parts(a, share, shared);
}
