// Every channel of an image times a number of its own, the twin of channel_scale.py.
//
// Neighbouring threads hold neighbouring channels, VECTOR of them each; the rows of a block share
// `chunk` pixels of one image, and a thread walks down its own. See pooling.cu, which sums alike.
//
//   forward    x is read once and out written once, the gate once per thread.
//   backward   one pass: dout and x are read once, dx is written once, and dout * x adds up in
//              registers, then over the rows of the block, to dgate or to this chunk's share of it.
#include "common.h"

template <int VECTOR>
__global__ void channel_scale_forward_kernel(const STORE* __restrict__ x,
                                             const STORE* __restrict__ gate,
                                             STORE* __restrict__ out, int P, int C,
                                             int count, int chunk) {
  const int n = blockIdx.x / count, first = blockIdx.x % count * chunk;
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= C) return;
  REAL factor[VECTOR];
  load(gate + n * C + c, factor);
#pragma unroll 4
  for (int p = first + threadIdx.y; p < min(first + chunk, P); p += blockDim.y) {
    REAL value[VECTOR];
    load(x + (n * P + p) * C + c, value);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) value[v] *= factor[v];
    store(out + (n * P + p) * C + c, value);
  }
}

template <int VECTOR>
__global__ void channel_scale_backward_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ x, const STORE* __restrict__ gate,
    STORE* __restrict__ dx, STORE* __restrict__ dgate,
    REAL* __restrict__ shares,  // (N, count, C); none if count is 1
    int P, int C, int count, int chunk) {
  DYNAMIC_SHARED(REAL, rows);  // (blockDim.y, blockDim.x * VECTOR)
  const int n = blockIdx.x / count, first = blockIdx.x % count * chunk;
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  REAL sum[VECTOR] = {};
  if (c < C) {  // a thread beyond the channels only keeps the barriers
    REAL factor[VECTOR];
    load(gate + n * C + c, factor);
#pragma unroll 4
    for (int p = first + threadIdx.y; p < min(first + chunk, P); p += blockDim.y) {
      REAL d[VECTOR], value[VECTOR];
      load(dout + (n * P + p) * C + c, d);
      load(x + (n * P + p) * C + c, value);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) {
        sum[v] += d[v] * value[v];
        d[v] *= factor[v];
      }
      store(dx + (n * P + p) * C + c, d);
    }
  }

  const int width = blockDim.x * VECTOR;
#pragma unroll
  for (int v = 0; v < VECTOR; v++) rows[threadIdx.y * width + threadIdx.x * VECTOR + v] = sum[v];
  __syncthreads();
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += blockDim.x * blockDim.y) {
    const int channel = blockIdx.y * width + i;
    if (channel >= C) continue;
    REAL total = 0;
    for (int row = 0; row < blockDim.y; row++) total += rows[row * width + i];
    if (count == 1) dgate[n * C + channel] = STORE(total);
    else shares[blockIdx.x * C + channel] = total;
  }
}
