// The gate of squeeze-and-excitation, the twin of squeeze_excite.py.
//
// A layer at a time this would be fourteen launches on a few thousand numbers, each of which takes
// longer to start than to run. Here a block is an image: its numbers stay in shared memory from
// one layer to the next, and it reads every weight once, mostly from the L2 cache.
//
//   forward           times_columns: neighbouring threads own neighbouring outputs, and so read
//                     neighbouring weights; where threads are left they share the inputs of each
//                     output.
//   backward_input    times_rows: the same weights transposed. A warp owns ROWS outputs and its
//                     lanes share the inputs, again neighbouring weights.
//   backward_weight   a thread owns a weight: the sum over the N images in order, no atomics.
#include "activations.h"

constexpr int THREADS = 1024;  // of a block, at most
constexpr int ROWS = 4;        // outputs of a warp at a time: as many sums are on their way

// use(o, sum over i of vector[i] * weight[i, o]) for every output o. `vector` (inputs,) and `sums`
// (blockDim.x,) are in shared memory.
template <class F>
__device__ __forceinline__ void times_columns(const REAL* vector, const REAL* __restrict__ weight,
                                              int inputs, int outputs, REAL* sums, F&& use) {
  const int width = min(outputs, int(blockDim.x)), rows = blockDim.x / width;
  const int row = threadIdx.x / width, column = threadIdx.x % width;
  for (int first = 0; first < outputs; first += width) {
    const int o = first + column;
    REAL sum = 0;
    if (row < rows && o < outputs) {
#pragma unroll 8
      for (int i = row; i < inputs; i += rows) sum += vector[i] * weight[i * outputs + o];
    }
    sums[threadIdx.x] = sum;  // others read it only where rows > 1: in one round, then
    __syncthreads();
    if (row > 0 || o >= outputs) continue;
    for (int r = 1; r < rows; r++) sum += sums[r * width + column];
    use(o, sum);
  }
  __syncthreads();  // what `use` wrote is there for all
}

// use(o, sum over i of vector[i] * weight[o, i]) for every output o.
template <class F>
__device__ __forceinline__ void times_rows(const REAL* vector, const REAL* __restrict__ weight,
                                           int inputs, int outputs, F&& use) {
  const int lane = threadIdx.x % 32;
  for (int first = threadIdx.x / 32 * ROWS; first < outputs; first += blockDim.x / 32 * ROWS) {
    REAL sum[ROWS] = {};
#pragma unroll 4
    for (int i = lane; i < inputs; i += 32)
#pragma unroll
      for (int k = 0; k < ROWS; k++)
        if (first + k < outputs) sum[k] += vector[i] * weight[(first + k) * inputs + i];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
      sum[k] = warp_sum(sum[k]);
      if (lane == k && first + k < outputs) use(first + k, sum[k]);
    }
  }
  __syncthreads();  // what `use` wrote is there for all
}

__global__ void __launch_bounds__(THREADS, 1) squeeze_excite_gate_forward_kernel(
    const STORE* __restrict__ pooled, const REAL* __restrict__ weight1,
    const REAL* __restrict__ bias1, const REAL* __restrict__ weight2,
    const REAL* __restrict__ bias2, STORE* __restrict__ gate,
    REAL* __restrict__ hidden, REAL* __restrict__ z,  // (N, S) and (N, C), for backward
    int C, int S) {
  DYNAMIC_SHARED(REAL, channels);  // (C,), then (S,), then (blockDim.x,)
  REAL* squeezed = channels + C;
  REAL* sums = squeezed + S;
  const int n = blockIdx.x;
  for (int c = threadIdx.x; c < C; c += blockDim.x) channels[c] = REAL(pooled[n * C + c]);
  __syncthreads();
  times_columns(channels, weight1, C, S, sums, [&](int s, REAL sum) {
    squeezed[s] = hidden[n * S + s] = activation<RELU>(sum + bias1[s]);
  });
  times_columns(squeezed, weight2, S, C, sums, [&](int c, REAL sum) {
    z[n * C + c] = sum + bias2[c];
    gate[n * C + c] = STORE(activation<HARDSIGMOID>(sum + bias2[c]));
  });
}

__global__ void __launch_bounds__(THREADS, 1) squeeze_excite_gate_backward_input_kernel(
    const STORE* __restrict__ dgate, const REAL* __restrict__ weight1,
    const REAL* __restrict__ weight2, const REAL* __restrict__ hidden, const REAL* __restrict__ z,
    REAL* __restrict__ dz, REAL* __restrict__ dhidden,  // (N, C) and (N, S), for backward_weight
    STORE* __restrict__ dpooled, int C, int S) {
  DYNAMIC_SHARED(REAL, channels);  // (C,), then (S,)
  REAL* squeezed = channels + C;
  const int n = blockIdx.x;
  for (int c = threadIdx.x; c < C; c += blockDim.x)
    channels[c] = dz[n * C + c] =
        REAL(dgate[n * C + c]) * activation_slope<HARDSIGMOID>(z[n * C + c]);
  __syncthreads();
  times_rows(channels, weight2, C, S, [&](int s, REAL sum) {
    squeezed[s] = dhidden[n * S + s] = sum * activation_slope<RELU>(hidden[n * S + s]);
  });
  times_rows(squeezed, weight1, S, C, [&](int c, REAL sum) {
    dpooled[n * C + c] = STORE(sum);
  });
}

// dweight (I, O) += sum over n of x[n, i] * d[n, o], at item = i * O + o; dbias (O,) += that of d.
template <class T>
__device__ __forceinline__ void add_weight_gradient(const T* __restrict__ x,
                                                    const REAL* __restrict__ d,
                                                    REAL* __restrict__ dweight,
                                                    REAL* __restrict__ dbias, int item, int N,
                                                    int I, int O) {
  const int i = item / O, o = item % O;
  REAL sum = 0, total = 0;
#pragma unroll 8
  for (int n = 0; n < N; n++) {
    sum += REAL(x[n * I + i]) * d[n * O + o];
    total += d[n * O + o];
  }
  dweight[item] += sum;
  if (i == 0) dbias[o] += total;
}

__global__ void squeeze_excite_gate_backward_weight_kernel(
    const STORE* __restrict__ pooled, const REAL* __restrict__ hidden,
    const REAL* __restrict__ dz, const REAL* __restrict__ dhidden, REAL* __restrict__ dweight1,
    REAL* __restrict__ dbias1, REAL* __restrict__ dweight2, REAL* __restrict__ dbias2,
    int N, int C, int S) {
  const int item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item < C * S)
    add_weight_gradient(pooled, dhidden, dweight1, dbias1, item, N, C, S);
  else if (item < 2 * C * S)
    add_weight_gradient(hidden, dz, dweight2, dbias2, item - C * S, N, S, C);
}
