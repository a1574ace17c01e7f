// The norm of all gradients, and clipping by it, over the flat buffer: the twin of clipping.py.
//
//   norm   every block adds up the squares of its share; the last one to be done adds the blocks'
//          sums, in a fixed order, so that the result is the same each time. g is read once.
//   clip   reads the norm, and nothing else where it is small enough; else g is read and written.
//
// Four squares are added as REAL, all above that in double: little work, and no digits lost.
#include "common.h"

__device__ __forceinline__ bool is_frozen(const double* table, int group) {
  return table[group] == 0;  // the learning-rate scale
}

template <int N>
__device__ __forceinline__ REAL sum_of_squares(const REAL* g, const unsigned char* group,
                                               const double* table) {
  REAL gi[N], sum = 0;
  load(g, gi);
  const auto groups = *reinterpret_cast<const Pack<unsigned char, N>*>(group);
#pragma unroll
  for (int k = 0; k < N; k++)
    if (!is_frozen(table, groups.at[k])) sum += gi[k] * gi[k];
  return sum;
}

__global__ void grad_norm_kernel(
    const REAL* __restrict__ g, const unsigned char* __restrict__ group,  // (P,), (P,)
    const double* __restrict__ table, const REAL* __restrict__ loss_scale,
    double* sums, unsigned* tickets,  // (gridDim.x,), (1,)
    REAL* __restrict__ norm, int P) {
  __shared__ double of_warps[32];
  __shared__ bool is_last;
  double sum = 0;
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x), step = 4 * gridDim.x * blockDim.x;
  for (int i = first; i < P; i += step) {
    if (i + 4 <= P)
      sum += sum_of_squares<4>(g + i, group + i, table);
    else
      for (int k = i; k < P; k++) sum += sum_of_squares<1>(g + k, group + k, table);
  }
  sum = block_sum(sum, of_warps);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  sum = 0;
  for (int k = threadIdx.x; k < gridDim.x; k += blockDim.x) sum += sums[k];
  sum = block_sum(sum, of_warps);
  if (threadIdx.x == 0) norm[0] = REAL(sqrt(sum) / (loss_scale ? double(loss_scale[0]) : 1.0));
}

template <int N>
__device__ __forceinline__ void scale(REAL* g, const unsigned char* group, const double* table,
                                      REAL factor) {
  REAL gi[N];
  load(g, gi);
  const auto groups = *reinterpret_cast<const Pack<unsigned char, N>*>(group);
#pragma unroll
  for (int k = 0; k < N; k++)
    if (!is_frozen(table, groups.at[k])) gi[k] *= factor;
  store(g, gi);
}

__global__ void clip_grad_kernel(REAL* __restrict__ g, const unsigned char* __restrict__ group,
                                 const double* __restrict__ table, const REAL* __restrict__ norm,
                                 REAL max_norm, int P) {
  const bool is_finite = norm[0] - norm[0] == 0;
  const REAL factor = max_norm / (norm[0] + REAL(1e-6));
  if (!is_finite || !(factor < 1)) return;
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x), step = 4 * gridDim.x * blockDim.x;
  for (int i = first; i < P; i += step)
    if (i + 4 <= P)
      scale<4>(g + i, group + i, table, factor);
    else
      for (int k = i; k < P; k++) scale<1>(g + k, group + k, table, factor);
}
