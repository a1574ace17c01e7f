// The moving average of all weights, and of all buffers, the twin of ema.py: one launch per step.
// A thread moves four neighbours, then those one grid further: average and value are read once,
// average is written once. The number of updates is read from memory, so that the same launch can
// be run again.
#include "common.h"

template <int N>
__device__ __forceinline__ void move_towards(REAL* average, const REAL* value, REAL share,
                                             bool is_first) {
  REAL a[N], v[N];
  load(average, a);
  load(value, v);
#pragma unroll
  for (int k = 0; k < N; k++)  // so written, what has not moved stays as it is, to the last bit
    a[k] = is_first ? v[k] : a[k] + (v[k] - a[k]) * share;
  store(average, a);
}

__device__ __forceinline__ void move_all(REAL* average, const REAL* value, int size, REAL share,
                                         bool is_first) {
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  for (int i = first; i < size; i += 4 * gridDim.x * blockDim.x)
    if (i + 4 <= size)
      move_towards<4>(average + i, value + i, share, is_first);
    else
      for (int k = i; k < size; k++) move_towards<1>(average + k, value + k, share, is_first);
}

__global__ void ema_update_kernel(
    REAL* __restrict__ average, const REAL* __restrict__ value, int P,         // (P,), (P,)
    REAL* __restrict__ buffer_average, const REAL* __restrict__ buffer, int B,  // (B,), (B,)
    int* count, unsigned* tickets, double decay) {
  __shared__ REAL share;
  __shared__ bool is_first;
  if (threadIdx.x == 0) {
    const double t = count[0], d = min(decay, (1 + t) / (10 + t));
    is_first = t == 0;
    share = REAL(1 - d);
    __threadfence();
    // Whoever draws the last ticket knows that all blocks have read the number of updates.
    if (atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1) count[0]++;
  }
  __syncthreads();
  move_all(average, value, P, share, is_first);
  move_all(buffer_average, buffer, B, share, is_first);
}
