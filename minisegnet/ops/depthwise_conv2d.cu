// Depthwise convolution, NHWC, the twin of depthwise_conv2d.py.
//
// Neighbouring threads hold neighbouring channels, VECTOR of them each, so that a warp reads and
// writes whole lines of memory. Every output is one thread's: no atomics, the same bits each time.
//
//   forward       a thread makes STRIP outputs of one row; a tap's weights are loaded once for all
//                 of them. x is read KH*KW times, nearly always from the L1 cache; out written once.
//   backward      a thread walks over input pixels; at each it gathers the outputs that had read it.
//                 One pass: dout is read KH*KW times (from L1), x once, dx written once, and x * dout
//                 adds up in registers to the thread's share of dweight.
//   sum           the shares of all blocks, in order, are added to dweight.
//
// KERNEL is 3 or 5, or 0 for any size: then the taps are not unrolled, and the weight gradient has
// a kernel of its own (backward_weight), where a thread owns one tap of one channel.
#include "common.h"
#include "sums.h"
#include "windows.h"

constexpr int STRIP = 4;

template <int KERNEL, int VECTOR>
__global__ void depthwise_conv2d_forward_kernel(
    const STORE* __restrict__ x, const REAL* __restrict__ weight, STORE* __restrict__ out,
    int N, int H, int W, int C, int OH, int OW, int KH, int KW,
    int stride, int padding, int dilation) {
  if (KERNEL) KH = KW = KERNEL;  // known when compiled: the loops below are unrolled
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  const int strips = (OW + STRIP - 1) / STRIP;
  const int strip = blockIdx.x * blockDim.y + threadIdx.y;
  if (c >= C || strip >= N * OH * strips) return;
  const int ow0 = strip % strips * STRIP, oh = strip / strips % OH, n = strip / strips / OH;

  REAL sum[STRIP][VECTOR] = {};
#pragma unroll
  for (int kh = 0; kh < KH; kh++) {
    const int h = oh * stride + kh * dilation - padding;
    if (h < 0 || h >= H) continue;
#pragma unroll
    for (int kw = 0; kw < KW; kw++) {
      const REAL* tap = weight + (kh * KW + kw) * C + c;
#pragma unroll
      for (int i = 0; i < STRIP; i++) {
        const int w = (ow0 + i) * stride + kw * dilation - padding;
        if (w < 0 || w >= W || ow0 + i >= OW) continue;
        REAL value[VECTOR];
        load(x + ((n * H + h) * W + w) * C + c, value);
#pragma unroll
        for (int v = 0; v < VECTOR; v++) sum[i][v] += value[v] * tap[v];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < STRIP; i++)
    if (ow0 + i < OW) store(out + ((n * OH + oh) * OW + ow0 + i) * C + c, sum[i]);
}

template <int KERNEL, int VECTOR>
__global__ void depthwise_conv2d_backward_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ x, const REAL* __restrict__ weight,
    STORE* __restrict__ dx, REAL* __restrict__ shares,  // (gridDim.x, KERNEL, KERNEL, C)
    int N, int H, int W, int C, int OH, int OW, int stride, int padding, int dilation) {
  DYNAMIC_SHARED(REAL, rows);  // (blockDim.y, blockDim.x * VECTOR)
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  REAL dweight[KERNEL * KERNEL][VECTOR] = {};
  const int pixels = c < C ? N * H * W : 0;  // a thread beyond the channels only keeps the barriers
  for (int p = blockIdx.x * blockDim.y + threadIdx.y; p < pixels; p += gridDim.x * blockDim.y) {
    const int w = p % W, h = p / W % H, n = p / W / H;
    REAL value[VECTOR], sum[VECTOR] = {};
    load(x + p * C + c, value);
#pragma unroll
    for (int kh = 0; kh < KERNEL; kh++) {
      const int oh = output_of(h, kh, OH, stride, padding, dilation);
      if (oh < 0) continue;
#pragma unroll
      for (int kw = 0; kw < KERNEL; kw++) {
        const int ow = output_of(w, kw, OW, stride, padding, dilation);
        if (ow < 0) continue;
        REAL d[VECTOR];
        load(dout + ((n * OH + oh) * OW + ow) * C + c, d);
#pragma unroll
        for (int v = 0; v < VECTOR; v++) {
          sum[v] += d[v] * weight[(kh * KERNEL + kw) * C + c + v];
          dweight[kh * KERNEL + kw][v] += value[v] * d[v];
        }
      }
    }
    store(dx + p * C + c, sum);
  }

  // The threads of a column hold shares of the same channels: add them up, tap by tap.
  const int width = blockDim.x * VECTOR;
#pragma unroll
  for (int k = 0; k < KERNEL * KERNEL; k++) {
    __syncthreads();  // the rows of the tap before have been read
#pragma unroll
    for (int v = 0; v < VECTOR; v++)
      rows[threadIdx.y * width + threadIdx.x * VECTOR + v] = dweight[k][v];
    __syncthreads();
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += blockDim.x * blockDim.y) {
      const int channel = blockIdx.y * width + i;
      if (channel >= C) continue;
      REAL sum = 0;
      for (int row = 0; row < blockDim.y; row++) sum += rows[row * width + i];
      shares[(blockIdx.x * KERNEL * KERNEL + k) * C + channel] = sum;
    }
  }
}

// dweight += the sum over the rows of `shares` (P, size), by one row of blocks.
__global__ void depthwise_conv2d_sum_kernel(const REAL* __restrict__ shares,
                                            REAL* __restrict__ dweight, int P, int size) {
  DYNAMIC_SHARED(REAL, rows);  // (blockDim.y, blockDim.x)
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  const REAL sum = column_sum(shares, P, size, column, rows);
  if (threadIdx.y == 0 && column < size) dweight[column] += sum;
}

// Any kernel size: a thread makes dx of one pixel and channel.
__global__ void depthwise_conv2d_backward_input_kernel(
    const STORE* __restrict__ dout, const REAL* __restrict__ weight, STORE* __restrict__ dx,
    int N, int H, int W, int C, int OH, int OW, int KH, int KW,
    int stride, int padding, int dilation) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= N * H * W * C) return;
  const int c = i % C, w = i / C % W, h = i / C / W % H, n = i / C / W / H;
  REAL sum = 0;
  for (int kh = 0; kh < KH; kh++) {
    const int oh = output_of(h, kh, OH, stride, padding, dilation);
    for (int kw = 0; kw < KW; kw++) {
      const int ow = output_of(w, kw, OW, stride, padding, dilation);
      if (oh >= 0 && ow >= 0)
        sum += REAL(dout[((n * OH + oh) * OW + ow) * C + c]) * weight[(kh * KW + kw) * C + c];
    }
  }
  dx[i] = STORE(sum);
}

// Any kernel size: a block makes dweight of one tap and 32 channels, its rows share the pixels.
__global__ void depthwise_conv2d_backward_weight_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ x, REAL* __restrict__ dweight,
    int N, int H, int W, int C, int OH, int OW, int KW, int stride, int padding, int dilation) {
  __shared__ REAL rows[8][32];
  const int kh = blockIdx.y / KW, kw = blockIdx.y % KW, c = blockIdx.x * 32 + threadIdx.x;
  REAL sum = 0;
  for (int p = threadIdx.y; p < N * OH * OW && c < C; p += 8) {
    const int ow = p % OW, oh = p / OW % OH, n = p / OW / OH;
    const int h = oh * stride + kh * dilation - padding, w = ow * stride + kw * dilation - padding;
    if (h < 0 || h >= H || w < 0 || w >= W) continue;
    sum += REAL(x[((n * H + h) * W + w) * C + c]) * REAL(dout[p * C + c]);
  }
  rows[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= C) return;
  for (int row = 1; row < 8; row++) sum += rows[row][threadIdx.x];
  dweight[blockIdx.y * C + c] += sum;
}
