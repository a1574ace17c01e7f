// Convolution, NHWC, the twin of conv2d.py. Two ways, as there: the definition, one thread per
// output, where few numbers make an output; else a matrix product (cuBLAS) between two kernels that
// rearrange. Every number is one thread's and is added up in a fixed order: no atomics, the same
// bits each time.
//
//   forward          a thread makes STRIP outputs of one row, VECTOR channels of each: STRIP inputs
//                    and VECTOR weights are read for STRIP * VECTOR multiply-adds. x is read
//                    KH*KW*OC/VECTOR times, from the L1 cache but for the first time.
//   backward_input   a thread makes dx of one pixel and channel from the outputs that read it.
//   backward_weight  a thread adds up x * dout for one tap, one input channel and VECTOR output
//                    channels, over every count-th row of the outputs; `sum` adds the shares.
//   im2col           a thread copies what one tap saw of one pixel: all KH*KW*C inputs of an output
//                    come to lie in a row, and cols * weight is the convolution.
//   col2im           its transpose: a thread gathers the dcols of one pixel into dx.
//   backward_bias    a block adds up its share of the rows of dout by column; then `sum`.
//
// A tap reads h = oh * stride + kh * dilation - padding_h, and w likewise; the paddings may be
// negative.
#include "common.h"
#include "sums.h"
#include "windows.h"

constexpr int STRIP = 4;

template <int VECTOR>
__global__ void conv2d_forward_kernel(
    const STORE* __restrict__ x, const REAL* __restrict__ weight,  // (KH, KW, C, OC)
    const REAL* __restrict__ bias,  // or null
    STORE* __restrict__ out, int N, int H, int W, int C, int OH, int OW, int OC, int KH, int KW,
    int stride, int dilation, int padding_h, int padding_w) {
  const int o = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  const int strips = (OW + STRIP - 1) / STRIP;
  const int strip = blockIdx.x * blockDim.y + threadIdx.y;
  if (o >= OC || strip >= N * OH * strips) return;
  const int ow0 = strip % strips * STRIP, oh = strip / strips % OH, n = strip / strips / OH;

  REAL sum[STRIP][VECTOR];
#pragma unroll
  for (int i = 0; i < STRIP; i++)
#pragma unroll
    for (int v = 0; v < VECTOR; v++) sum[i][v] = bias ? bias[o + v] : REAL(0);
  for (int kh = 0; kh < KH; kh++) {
    const int h = oh * stride + kh * dilation - padding_h;
    if (h < 0 || h >= H) continue;
    for (int kw = 0; kw < KW; kw++) {
      const int w0 = ow0 * stride + kw * dilation - padding_w;
      const REAL* tap = weight + (kh * KW + kw) * C * OC + o;
#pragma unroll 3
      for (int c = 0; c < C; c++) {
        REAL value[STRIP];
#pragma unroll
        for (int i = 0; i < STRIP; i++) {
          const int w = w0 + i * stride;
          value[i] = w >= 0 && w < W ? REAL(x[((n * H + h) * W + w) * C + c]) : REAL(0);
        }
#pragma unroll
        for (int v = 0; v < VECTOR; v++)
#pragma unroll
          for (int i = 0; i < STRIP; i++) sum[i][v] += value[i] * tap[c * OC + v];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < STRIP; i++)
    if (ow0 + i < OW) store(out + ((n * OH + oh) * OW + ow0 + i) * OC + o, sum[i]);
}

__global__ void conv2d_backward_input_kernel(
    const STORE* __restrict__ dout, const REAL* __restrict__ weight, STORE* __restrict__ dx,
    int N, int H, int W, int C, int OH, int OW, int OC, int KH, int KW,
    int stride, int dilation, int padding_h, int padding_w) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= N * H * W * C) return;
  const int c = i % C, w = i / C % W, h = i / C / W % H, n = i / C / W / H;
  REAL sum = 0;
  for (int kh = 0; kh < KH; kh++) {
    const int oh = output_of(h, kh, OH, stride, padding_h, dilation);
    for (int kw = 0; kw < KW; kw++) {
      const int ow = output_of(w, kw, OW, stride, padding_w, dilation);
      if (oh < 0 || ow < 0) continue;
      const STORE* from = dout + ((n * OH + oh) * OW + ow) * OC;
      const REAL* tap = weight + ((kh * KW + kw) * C + c) * OC;
      for (int o = 0; o < OC; o++) sum += REAL(from[o]) * tap[o];
    }
  }
  dx[i] = STORE(sum);
}

template <int VECTOR>
__global__ void conv2d_backward_weight_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ x,
    REAL* __restrict__ shares,  // (gridDim.x * blockDim.y, KH, KW, C, OC)
    int N, int H, int W, int C, int OH, int OW, int OC, int KH, int KW,
    int stride, int dilation, int padding_h, int padding_w) {
  const int vectors = OC / VECTOR, item = blockIdx.y * blockDim.x + threadIdx.x;
  if (item >= KH * KW * C * vectors) return;
  const int o = item % vectors * VECTOR, k = item / vectors;
  const int c = k % C, kw = k / C % KW, kh = k / C / KW;
  // The outputs [first, last) of a row read inputs, the others padding.
  const int offset = kw * dilation - padding_w;
  const int first = offset < 0 ? (stride - 1 - offset) / stride : 0;
  const int last = offset < W ? min(OW, (W - 1 - offset) / stride + 1) : 0;
  const int share = blockIdx.x * blockDim.y + threadIdx.y, count = gridDim.x * blockDim.y;
  REAL sum[VECTOR] = {};
  for (int row = share; row < N * OH; row += count) {
    const int n = row / OH, h = row % OH * stride + kh * dilation - padding_h;
    if (h < 0 || h >= H) continue;
#pragma unroll 4
    for (int ow = first; ow < last; ow++) {
      REAL d[VECTOR];
      load(dout + (row * OW + ow) * OC + o, d);
      const REAL value = REAL(x[((n * H + h) * W + ow * stride + offset) * C + c]);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) sum[v] += value * d[v];
    }
  }
#pragma unroll
  for (int v = 0; v < VECTOR; v++) shares[(share * KH * KW * C + k) * OC + o + v] = sum[v];
}

// ---------------------------------------------------------------- sums over rows

// total += the sum over the rows of `shares` (P, size), by one row of blocks.
__global__ void conv2d_sum_kernel(const REAL* __restrict__ shares, REAL* __restrict__ total,
                                  int P, int size) {
  DYNAMIC_SHARED(REAL, rows);  // (blockDim.y, blockDim.x)
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  const REAL sum = column_sum(shares, P, size, column, rows);
  if (threadIdx.y == 0 && column < size) total[column] += sum;
}

// dbias += the sum over the rows of dout (P, OC), or where several blocks share them, those shares.
__global__ void conv2d_backward_bias_kernel(
    const STORE* __restrict__ dout, REAL* __restrict__ dbias,
    REAL* __restrict__ shares,  // (gridDim.x, OC), null if gridDim.x is 1
    int P, int OC) {
  DYNAMIC_SHARED(REAL, rows);  // (blockDim.y, blockDim.x)
  const int o = blockIdx.y * blockDim.x + threadIdx.x;
  const REAL sum = column_sum(dout, P, OC, o, rows);
  if (threadIdx.y > 0 || o >= OC) return;
  if (shares) shares[blockIdx.x * OC + o] = sum;
  else dbias[o] += sum;
}

// ---------------------------------------------------------------- around matrix products

// The columns of the outputs first ... first + P - 1, counted over all images.
template <int VECTOR>
__global__ void conv2d_im2col_kernel(
    const STORE* __restrict__ x,
    STORE* __restrict__ cols,  // (P, KH * KW, C), a tap per blockIdx.y
    int first, int P, int H, int W, int C, int OH, int OW, int KW,
    int stride, int dilation, int padding_h, int padding_w) {
  const int p = blockIdx.x * blockDim.y + threadIdx.y;
  if (p >= P) return;
  const int ow = (first + p) % OW, oh = (first + p) / OW % OH, n = (first + p) / OW / OH;
  const int h = oh * stride + int(blockIdx.y) / KW * dilation - padding_h;
  const int w = ow * stride + int(blockIdx.y) % KW * dilation - padding_w;
  const bool inside = h >= 0 && h < H && w >= 0 && w < W;
  const int from = ((n * H + h) * W + w) * C, to = (p * gridDim.y + blockIdx.y) * C;
#pragma unroll 4
  for (int c = threadIdx.x * VECTOR; c < C; c += blockDim.x * VECTOR) {
    REAL value[VECTOR] = {};
    if (inside) load(x + from + c, value);
    store(cols + to + c, value);
  }
}

// dx of N whole images from their dcols (N, OH, OW, KH, KW, C).
template <int VECTOR>
__global__ void conv2d_col2im_kernel(
    const STORE* __restrict__ dcols, STORE* __restrict__ dx,
    int N, int H, int W, int C, int OH, int OW, int KH, int KW,
    int stride, int dilation, int padding_h, int padding_w) {
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  const int p = blockIdx.x * blockDim.y + threadIdx.y;
  if (c >= C || p >= N * H * W) return;
  const int w = p % W, h = p / W % H, n = p / W / H;
  REAL sum[VECTOR] = {};
  for (int kh = 0; kh < KH; kh++) {
    const int oh = output_of(h, kh, OH, stride, padding_h, dilation);
    if (oh < 0) continue;
    for (int kw = 0; kw < KW; kw++) {
      const int ow = output_of(w, kw, OW, stride, padding_w, dilation);
      if (ow < 0) continue;
      REAL value[VECTOR];
      load(dcols + ((((n * OH + oh) * OW + ow) * KH + kh) * KW + kw) * C + c, value);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) sum[v] += value[v];
    }
  }
  store(dx + p * C + c, sum);
}

// turned[kh, kw, o, c] = weight[KH - 1 - kh, KW - 1 - kw, c, o]: the kernel that slides over dout.
__global__ void conv2d_turn_kernel(const REAL* __restrict__ weight, STORE* __restrict__ turned,
                                   int taps, int C, int OC) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= taps * C * OC) return;
  const int c = i % C, o = i / C % OC, tap = i / C / OC;
  turned[i] = STORE(weight[((taps - 1 - tap) * C + c) * OC + o]);
}

// The weights in the type of the activations: both factors of a product are of one type.
template <int VECTOR>
__global__ void conv2d_bias_kernel(STORE* __restrict__ out, const REAL* __restrict__ bias,
                                   int P, int OC) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (i >= P * OC) return;
  const int o = i % OC;  // VECTOR divides OC: the channels of a vector are one pixel's
  REAL value[VECTOR];
  load(out + i, value);
#pragma unroll
  for (int v = 0; v < VECTOR; v++) value[v] += bias[o + v];
  store(out + i, value);
}
