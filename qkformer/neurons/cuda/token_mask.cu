// Q-K token attention's mask: a neuron is fed with the sum of q over a head's channels, and its
// spikes let the token's k pass. q, k, out [T, B, C, N] or [T, B, N, C], C = heads * depth. VEC is 1.

#define TOKEN_ARGUMENTS                                                                      \
    unsigned neurons, unsigned threads, unsigned depth, unsigned tokens, int channels_last

// The channels of neuron i's head at its token, in one time step.
struct Head {
    size_t first, stride;
    __device__ Head(unsigned i, unsigned depth, unsigned tokens, int channels_last) {
        if (channels_last) {  // i = (b * tokens + token) * heads + head
            first = (size_t)i * depth;
            stride = 1;
        } else {  // i = (b * heads + head) * tokens + token
            first = (size_t)(i / tokens) * depth * tokens + i % tokens;
            stride = tokens;
        }
    }
};

__device__ __forceinline__ real sum_of(const scalar* q, const Head& head, unsigned depth) {
    real sum = 0;
    for (unsigned c = 0; c < depth; ++c) sum += widen(q[head.first + c * head.stride]);
    return sum;
}

extern "C" __global__ void token_mask(const scalar* __restrict__ q, const scalar* __restrict__ k,
                                      scalar* __restrict__ out, TOKEN_ARGUMENTS,
                                      NEURON_ARGUMENTS) {
    const unsigned thread = thread_index();
    if (thread >= threads) return;
    const Neuron neuron = NEURON;
    const size_t step = (size_t)neurons * depth;
    for (unsigned i = thread; i < neurons; i += threads) {
        const Head head(i, depth, tokens, channels_last);
        run(neuron, steps, [&](int t, real* x) { x[0] = sum_of(q + t * step, head, depth); },
            [&](int t, const bool* spikes) {
                for (unsigned c = 0; c < depth; ++c) {
                    const size_t at = t * step + head.first + c * head.stride;
                    out[at] = narrow(times(widen(k[at]), spikes[0] ? real(1) : real(0)));
                }
            });
    }
}

// partial [threads]: of PLIF's gradient
extern "C" __global__ void token_mask_backward(
    const scalar* __restrict__ q, const scalar* __restrict__ k, const scalar* __restrict__ grad,
    scalar* __restrict__ grad_q, scalar* __restrict__ grad_k, real* __restrict__ partial,
    real* work, TOKEN_ARGUMENTS, NEURON_ARGUMENTS) {
    const unsigned thread = thread_index();
    if (thread >= threads) return;
    const Neuron neuron = NEURON;
    const size_t step = (size_t)neurons * depth;
    Past past(work, thread, threads, steps);
    real grad_tau = 0;
    for (unsigned i = thread; i < neurons; i += threads) {
        const Head head(i, depth, tokens, channels_last);
        record(neuron, steps, past,
               [&](int t, real* x) { x[0] = sum_of(q + t * step, head, depth); });
        backpropagate(neuron, steps, past, grad_tau,
            [&](int t, real* g) {
                const real mask = past.h(t, 0) >= neuron.threshold ? 1 : 0;
                g[0] = 0;
                for (unsigned c = 0; c < depth; ++c) {
                    const size_t at = t * step + head.first + c * head.stride;
                    const real gradient = widen(grad[at]);
                    g[0] += gradient * widen(k[at]);
                    grad_k[at] = narrow(gradient * mask);
                }
            },
            [&](int t, const real* dx) {  // the same for all that were summed
                for (unsigned c = 0; c < depth; ++c)
                    grad_q[t * step + head.first + c * head.stride] = narrow(dx[0]);
            });
    }
    partial[thread] = grad_tau;
}
