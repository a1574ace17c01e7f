// Every channel of an image times a number of its own, the twin of channel_scale.py.
//
// Neighbouring threads hold neighbouring channels, VECTOR of them each; the rows of a block share
// `chunk` pixels of one image, and a thread walks down its own.
//
//   forward          x is read once and out written once, the gate once per thread.
//   backward_input   the same of dout and dx; what each pixel has of the mean's gradient is added
//                    on the way.
//   The gate's gradient is a sum over pixels: pooling.cu makes it, reading dout and x once.
#include "common.h"

template <int VECTOR>
__device__ __forceinline__ void scale_pixels(const STORE* __restrict__ from,
                                             STORE* __restrict__ to, const REAL (&factor)[VECTOR],
                                             const REAL (&addend)[VECTOR], int n, int c,
                                             int P, int C, int count, int chunk) {
  const int first = blockIdx.x % count * chunk;
#pragma unroll 4
  for (int p = first + threadIdx.y; p < min(first + chunk, P); p += blockDim.y) {
    REAL value[VECTOR];
    load(from + (n * P + p) * C + c, value);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) value[v] = value[v] * factor[v] + addend[v];
    store(to + (n * P + p) * C + c, value);
  }
}

template <int VECTOR>
__global__ void channel_scale_forward_kernel(const STORE* __restrict__ x,
                                             const STORE* __restrict__ gate,
                                             STORE* __restrict__ out, int P, int C,
                                             int count, int chunk) {
  const int n = blockIdx.x / count, c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= C) return;
  REAL factor[VECTOR], addend[VECTOR] = {};
  load(gate + n * C + c, factor);
  scale_pixels(x, out, factor, addend, n, c, P, C, count, chunk);
}

template <int VECTOR>
__global__ void channel_scale_backward_input_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ gate,
    const STORE* __restrict__ dmean,  // (N, C), or null
    STORE* __restrict__ dx, int P, int C, int count, int chunk) {
  const int n = blockIdx.x / count, c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= C) return;
  REAL factor[VECTOR], addend[VECTOR] = {};
  load(gate + n * C + c, factor);
  if (dmean) load(dmean + n * C + c, addend);
#pragma unroll
  for (int v = 0; v < VECTOR; v++) addend[v] /= P;
  scale_pixels(dout, dx, factor, addend, n, c, P, C, count, chunk);
}
