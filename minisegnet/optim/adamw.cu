// AdamW over the flat buffer of all parameters, the twin of adamw.py: one launch per step.
//
// A thread updates four neighbouring parameters at a time, then those one grid further: p, g, m and
// v are read once, p, m and v written once. What is the same for all parameters of a group (the
// decay, the rate over the bias correction) a block computes once, a thread per group, in double.
//
// The learning rate and the number of the step are read from memory, not from the launch: so the
// same launch can be run again for the next step.
#include "common.h"

constexpr int GROUPS = 256;

struct Options {
  REAL beta1, one_minus_beta1, beta2, one_minus_beta2, eps, root2, inverse_scale;
};

template <int N>
__device__ __forceinline__ void update(REAL* p, const REAL* g, REAL* m, REAL* v,
                                       const unsigned char* group, const REAL* decay,
                                       const REAL* rate, const Options& o) {
  REAL pi[N], gi[N], mi[N], vi[N];
  load(p, pi);
  load(g, gi);
  load(m, mi);
  load(v, vi);
  const auto groups = *reinterpret_cast<const Pack<unsigned char, N>*>(group);
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int k = groups.at[i];
    if (rate[k] < 0) continue;  // frozen
    const REAL gradient = gi[i] * o.inverse_scale;
    mi[i] = o.beta1 * mi[i] + o.one_minus_beta1 * gradient;
    vi[i] = o.beta2 * vi[i] + o.one_minus_beta2 * (gradient * gradient);
    pi[i] = decay[k] * pi[i] - rate[k] * (mi[i] / (sqrt(vi[i]) / o.root2 + o.eps));
  }
  store(p, pi);
  store(m, mi);
  store(v, vi);
}

__global__ void adamw_update_kernel(
    REAL* __restrict__ p, const REAL* __restrict__ g, REAL* __restrict__ m, REAL* __restrict__ v,
    const unsigned char* __restrict__ group, const double* __restrict__ table,  // (P,), (2, GROUPS)
    const double* __restrict__ lr, const REAL* __restrict__ norm,
    const REAL* __restrict__ loss_scale, int* counts, unsigned* tickets,
    double beta1, double beta2, REAL eps, double weight_decay, bool decay_norm_and_bias, int P) {
  __shared__ double correction1, root2;         // 1 - beta1^t, sqrt(1 - beta2^t)
  __shared__ REAL decay[GROUPS], rate[GROUPS];  // rate is -1 where a group is frozen
  const bool skip = norm && !(norm[0] - norm[0] == 0);  // infinite or NaN
  if (threadIdx.x == 0) {
    const double t = counts[0] + 1;
    correction1 = 1 - pow(beta1, t);
    root2 = sqrt(1 - pow(beta2, t));
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    // Whoever draws the last ticket knows that all blocks have read the number of the step.
    if (atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1) counts[skip]++;
  }
  if (skip) return;
  for (int k = threadIdx.x; k < GROUPS; k += blockDim.x) {
    const double scale = table[k];
    if (scale < 0) continue;  // no such group
    const bool decays = decay_norm_and_bias || table[GROUPS + k] == 0;
    decay[k] = decays ? REAL(1 - lr[0] * scale * weight_decay) : REAL(1);
    rate[k] = scale > 0 ? REAL(lr[0] * scale / correction1) : REAL(-1);
  }
  __syncthreads();
  const Options options = {
      REAL(beta1), REAL(1 - beta1), REAL(beta2), REAL(1 - beta2), eps, REAL(root2),
      loss_scale ? REAL(1) / loss_scale[0] : REAL(1)};
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x), step = 4 * gridDim.x * blockDim.x;
  for (int i = first; i < P; i += step) {
    if (i + 4 <= P)
      update<4>(p + i, g + i, m + i, v + i, group + i, decay, rate, options);
    else
      for (int k = i; k < P; k++)
        update<1>(p + k, g + k, m + k, v + k, group + k, decay, rate, options);
  }
}
