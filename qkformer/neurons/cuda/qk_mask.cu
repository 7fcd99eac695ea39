// Q-K attention's mask: a neuron is fed with a sum over q, and its spikes let the same elements of
// k pass. The axis summed over lies in memory
//   along:   [groups, summed], VEC elements of one neuron in a pack (a group is a neuron), or
//   across:  [outer, summed, inner], VEC neighbouring neurons in a pack (a group is VEC of them),
// which is token attention in channels last and contiguous, channel attention the other way round.
//
// There may be few neurons with thousands of elements each, or many with few. So a block takes
// `teams` groups, and `slices` threads of it share each group's elements. Neighbours in the block
// are neighbours in memory: slices along, teams across. Every tensor passes once: forward reads q
// and k and writes out, backward reads q, k and grad and writes their gradients.

struct MaskArguments {
    const Pack *q, *k, *grad;
    Pack *out, *grad_q, *grad_k;
    real *partial, *work;  // partial [blocks * teams, VEC across or 1]: of PLIF's gradient
    const real* learned;
    real reciprocal_tau, threshold, reset, alpha;
    unsigned steps, groups, summed, inner, slices, along;
};

// Steps that one sweep over memory takes, all their loads in flight at once. Bounded by registers
// and by shared memory: 16 KiB for a block in float32.
#define MOST_STEPS (16 / VEC)
#if STEPS && STEPS < MOST_STEPS
#define AT_ONCE STEPS
#else
#define AT_ONCE MOST_STEPS
#endif

// For AT_ONCE steps: what a thread adds up, or what the neurons say about its elements.
struct Values {
    real of[AT_ONCE][VEC];
};

// One thread's part in its block. What the threads of a team tell each other stands in `shared`
// [AT_ONCE * VEC, BLOCK], in the column of their first: a neuron's sums, and then its answers.
struct Team {
    real (*shared)[BLOCK];
    unsigned slices, slice, apart, teams, team, lanes, column, row;
    unsigned first, inner, count;  // of the packs that the team shares

    __device__ __forceinline__ Team(real (*shared)[BLOCK], const MaskArguments& a)
        : shared(shared), slices(a.slices), teams(BLOCK / a.slices), inner(a.inner) {
        const unsigned thread = threadIdx.x, along = a.along;
        slice = along ? thread % slices : thread / teams;
        team = along ? thread / slices : thread % teams;
        apart = along ? 1 : teams;  // from slice to slice, in threads
        lanes = along ? 1 : VEC;
        column = thread - slice * apart;
        row = slice < lanes ? slice : 0;
    }
    __device__ __forceinline__ void take(unsigned block, unsigned groups, unsigned summed) {
        const unsigned group = block * teams + team;
        first = group / inner * inner * summed + group % inner;
        count = group < groups ? summed : 0;
    }

    // visit(unsigned pack) for this thread's share.
    template <class Visit>
    __device__ __forceinline__ void sweep(Visit visit) const {
#pragma unroll 2
        for (unsigned e = slice; e < count; e += slices) visit(first + e * inner);
    }

    // The first threads of a team are its neurons; the others go along with currents of zero, for
    // no thread may miss a barrier. A neuron's answer replaces its sum.
    __device__ __forceinline__ bool is_neuron() const { return slice < lanes; }
    __device__ __forceinline__ real sum(int t) const {
        return is_neuron() ? shared[t % AT_ONCE * VEC + row][column] : real(0);
    }
    __device__ __forceinline__ void answer(int t, real value) const {
        if (is_neuron()) shared[t % AT_ONCE * VEC + row][column] = value;
    }

    __device__ __forceinline__ void add_up(const Values& values) const {
        __syncthreads();  // what stands there has been read
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            real whole = 0;
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane) {
                whole += values.of[i][lane];
                if (lanes == VEC) shared[i * VEC + lane][threadIdx.x] = values.of[i][lane];
            }
            if (lanes == 1) shared[i * VEC][threadIdx.x] = whole;
        }
        __syncthreads();
        for (unsigned half = slices / 2; half; half /= 2) {
            if (slice < half) {
#pragma unroll
                for (unsigned i = 0; i < AT_ONCE * VEC; ++i)
                    if (i % VEC < lanes)
                        shared[i][threadIdx.x] += shared[i][threadIdx.x + half * apart];
            }
            __syncthreads();
        }
    }
    __device__ __forceinline__ Values answers() const {
        __syncthreads();
        Values values;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
#pragma unroll
            for (int lane = 0; lane < VEC; ++lane)
                values.of[i][lane] = shared[i * VEC + (lanes == VEC ? lane : 0)][column];
        return values;
    }
};

// each(i, t) for the steps t of the sweep that begins with step `begin`.
template <class Each>
__device__ __forceinline__ void at_once(int begin, int steps, Each each) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i)
        if (begin + i < TIME_STEPS) each(i, begin + i);
}

__device__ __forceinline__ bool ends_sweep(int t, int steps) {
    return t % AT_ONCE == AT_ONCE - 1 || t == TIME_STEPS - 1;
}

// The neurons' current at step t.
__device__ __forceinline__ real current(const Team& team, const Pack* q, size_t step,
                                        int t, int steps) {
    if (t % AT_ONCE == 0) {
        Values sums = {};
        team.sweep([&](unsigned at) {
            at_once(t, steps, [&](int i, int now) {
                const Pack pack = load(q + now * step + at);
#pragma unroll
                for (int lane = 0; lane < VEC; ++lane) sums.of[i][lane] += widen(pack.lane[lane]);
            });
        });
        team.add_up(sums);
    }
    return team.sum(t);
}

extern "C" __global__ void __launch_bounds__(BLOCK) qk_mask(const MaskArguments a) {
    __shared__ real shared[AT_ONCE * VEC][BLOCK];
    const Neuron neuron(a);
    const size_t step = (size_t)a.groups * a.summed;
    const int steps = a.steps;
    Team team(shared, a);
    team.take(blockIdx.x, a.groups, a.summed);
    run<1>(neuron, steps, [&](int t, real* x) { x[0] = current(team, a.q, step, t, steps); },
        [&](int t, const bool* spikes) {
            team.answer(t, spikes[0] ? real(1) : real(0));
            if (!ends_sweep(t, steps)) return;
            const Values mask = team.answers();
            team.sweep([&](unsigned at) {
                at_once(t - t % AT_ONCE, steps, [&](int i, int now) {
                    Pack pack = load(a.k + now * step + at);
#pragma unroll
                    for (int lane = 0; lane < VEC; ++lane)  // a product, for 0 * inf is NaN
                        pack.lane[lane] = narrow(times(widen(pack.lane[lane]), mask.of[i][lane]));
                    a.out[now * step + at] = pack;
                });
            });
        });
}

extern "C" __global__ void __launch_bounds__(BLOCK) qk_mask_backward(const MaskArguments a) {
    __shared__ real shared[AT_ONCE * VEC][BLOCK];
    const Neuron neuron(a);
    const size_t step = (size_t)a.groups * a.summed;
    const int steps = a.steps;
    Team team(shared, a);
    Past<1> past(a);
    real grad_tau = 0;
    for (unsigned block = blockIdx.x; block * team.teams < a.groups; block += gridDim.x) {
        team.take(block, a.groups, a.summed);
        record(neuron, steps, past,
               [&](int t, real* x) { x[0] = current(team, a.q, step, t, steps); });
        backpropagate(neuron, steps, past, grad_tau,
            [&](int t, real* g) {
                if (ends_sweep(t, steps)) {
                    const int begin = t - t % AT_ONCE;
                    __syncthreads();  // the answers of the sweep before have been read
                    at_once(begin, steps, [&](int, int now) {
                        team.answer(now, past.h(now, 0) >= neuron.threshold ? real(1) : real(0));
                    });
                    const Values mask = team.answers();
                    Values sums = {};
                    team.sweep([&](unsigned at) {
                        at_once(begin, steps, [&](int i, int now) {
                            Pack pack = load(a.grad + now * step + at);
                            const Pack key = load(a.k + now * step + at);
#pragma unroll
                            for (int lane = 0; lane < VEC; ++lane) {
                                const real gradient = widen(pack.lane[lane]);
                                sums.of[i][lane] += gradient * widen(key.lane[lane]);
                                pack.lane[lane] = narrow(gradient * mask.of[i][lane]);
                            }
                            a.grad_k[now * step + at] = pack;
                        });
                    });
                    team.add_up(sums);
                }
                g[0] = team.sum(t);
            },
            [&](int t, const real* dx) {  // the same for all that were summed
                team.answer(t, dx[0]);
                if (t % AT_ONCE) return;
                const Values gradient = team.answers();
                team.sweep([&](unsigned at) {
                    at_once(t, steps, [&](int i, int now) {
                        Pack pack;
#pragma unroll
                        for (int lane = 0; lane < VEC; ++lane)
                            pack.lane[lane] = narrow(gradient.of[i][lane]);
                        a.grad_q[now * step + at] = pack;
                    });
                });
            });
    }
    if (team.is_neuron())
        a.partial[(blockIdx.x * team.teams + team.team) * team.lanes + team.row] = grad_tau;
}
