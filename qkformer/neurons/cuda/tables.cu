// What BatchNorm is for each channel, [C] in every row of a table: the map in front of the neuron;
// and of the sums over gradients, what goes to its parameters and to y.
//
// moments, reduce and pooled_backward leave a part of each sum per block; a block here takes COLUMNS
// channels and puts their parts together. Of the defines DTYPE and BLOCK alone play a part.

#define COLUMNS 32

// What the kernels are told; of BatchNorms side by side each has a share of the channels.
struct TableArguments {
    const real* partial;  // [3, parts, C]
    real* table;          // rows of Norm, or of Gradients
    const real *weight, *bias, *conv_bias;
    const real* given;            // the table of Norm, for Gradients
    real *running_mean[3], *running_var[3];
    long long* batches[3];        // how many were counted
    real eps, unbias, momentum;   // momentum < 0: the mean of all batches, of which this is the last
    real reciprocal_count;        // 1 / how many values a channel has; 0 for fixed statistics
    unsigned parts, channels, per_share;
};
enum NormRow { CENTER, SCALE, SHIFT, INVSTD };
enum GradientRow { BIAS, WEIGHT, TAU, CONV_BIAS, BY_MEAN, BY_VARIANCE };

__device__ __forceinline__ unsigned column() {
    return blockIdx.x * COLUMNS + threadIdx.x % COLUMNS;
}

// This thread's channel put together from its parts; true in the thread that goes on with it.
template <class Value>
__device__ __forceinline__ bool put_together(const TableArguments& a, Value (*shared)[BLOCK],
                                             Value& whole) {
    const size_t plane = (size_t)a.parts * a.channels;
    whole = {0, 0, 0};
    if (column() < a.channels) {
#pragma unroll 4
        for (unsigned part = threadIdx.x / COLUMNS; part < a.parts; part += BLOCK / COLUMNS) {
            const real* from = a.partial + (size_t)part * a.channels + column();
            whole.add({from[0], from[plane], from[2 * plane]});
        }
    }
    add_up<1>(shared, &whole, COLUMNS);
    whole = shared[0][threadIdx.x];
    return threadIdx.x < COLUMNS && column() < a.channels;
}

// Statistics of values without the bias of the convolution; the running ones are of values with it.
__device__ __forceinline__ void write_norm(const TableArguments& a, unsigned channel, real mean,
                                           real invstd) {
    real* row = a.table + channel;
    row[CENTER * a.channels] = mean;
    row[SCALE * a.channels] = times(a.weight ? a.weight[channel] : real(1), invstd);
    row[SHIFT * a.channels] = a.bias ? a.bias[channel] : real(0);
    row[INVSTD * a.channels] = invstd;
}

__device__ __forceinline__ real bias_in_front(const TableArguments& a, unsigned channel) {
    return a.conv_bias ? a.conv_bias[channel] : real(0);
}

// After moments: the table in training, and the running statistics.
extern "C" __global__ void __launch_bounds__(BLOCK) batch_norm(const TableArguments a) {
    __shared__ Moments shared[1][BLOCK];
    Moments all;
    if (!put_together(a, shared, all)) return;
    const unsigned channel = column();
    const real variance = all.squares / all.count;
    write_norm(a, channel, all.mean, 1 / square_root(variance + a.eps));
    const unsigned share = channel / a.per_share, own = channel % a.per_share;
    if (!a.running_mean[share]) return;
    real momentum = a.momentum;
    if (momentum < 0) momentum = real(1) / *a.batches[share];
    else if (own == 0 && a.batches[share]) *a.batches[share] += 1;
    real &mean = a.running_mean[share][own], &var = a.running_var[share][own];
    mean += momentum * (all.mean + bias_in_front(a, channel) - mean);
    var += momentum * (variance * a.unbias - var);
}

// The table of running statistics.
extern "C" __global__ void __launch_bounds__(BLOCK) fixed_norm(const TableArguments a) {
    const unsigned channel = blockIdx.x * BLOCK + threadIdx.x;
    if (channel >= a.channels) return;
    const unsigned share = channel / a.per_share, own = channel % a.per_share;
    const real mean = minus(a.running_mean[share][own], bias_in_front(a, channel));
    write_norm(a, channel, mean, 1 / square_root(a.running_var[share][own] + a.eps));
}

// After reduce or pooled_backward: gradients of the parameters, and what that of y needs.
extern "C" __global__ void __launch_bounds__(BLOCK) gradients(const TableArguments a) {
    __shared__ Sums shared[1][BLOCK];
    Sums all;
    if (!put_together(a, shared, all)) return;
    const unsigned channel = column();
    const real scale = a.given ? a.given[SCALE * a.channels + channel] : real(1);
    const real invstd = a.given ? a.given[INVSTD * a.channels + channel] : real(1);
    const bool fixed = a.reciprocal_count == 0;
    real* row = a.table + channel;
    row[BIAS * a.channels] = all.dz;
    row[WEIGHT * a.channels] = all.dz_centered * invstd;
    row[TAU * a.channels] = all.tau;
    row[CONV_BIAS * a.channels] = fixed ? all.dz * scale : real(0);  // BatchNorm takes it out
    row[BY_MEAN * a.channels] = all.dz * a.reciprocal_count;
    row[BY_VARIANCE * a.channels] = all.dz_centered * a.reciprocal_count * invstd * invstd;
}
