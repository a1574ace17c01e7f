// Transposed convolution, NHWC, the twin of conv_transpose2d.py, where the windows lie side by
// side: KH = KW = stride, no padding. A matrix product makes the window of every input pixel, and
// this puts them in place: a thread copies VECTOR channels of one output pixel, which is in one
// window only, and adds the bias. One read and one write, the windows from the L2 cache.
//
// Overlapping windows, and the way back, are convolutions: conv2d.cu.
#include "common.h"

template <int VECTOR>
__global__ void conv_transpose2d_forward_kernel(
    const STORE* __restrict__ windows,  // (rows, W, KH, KW, OC)
    const REAL* __restrict__ bias,      // or null
    STORE* __restrict__ out,            // (rows, KH, W, KW, OC), size elements
    int size, int W, int OC, int KH, int KW) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (i >= size) return;
  const int o = i % OC, kw = i / OC % KW, w = i / OC / KW % W;
  const int kh = i / OC / KW / W % KH, row = i / OC / KW / W / KH;
  REAL value[VECTOR];
  load(windows + (((row * W + w) * KH + kh) * KW + kw) * OC + o, value);
#pragma unroll
  for (int v = 0; v < VECTOR; v++) value[v] += bias ? bias[o + v] : REAL(0);
  store(out + i, value);
}
