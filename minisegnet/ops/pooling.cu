// Pooling over all pixels and over windows, and repeating, the twin of pooling.py.
//
// Neighbouring threads hold neighbouring channels, VECTOR of them each. Nothing is added up by
// atomics, so that the bits are the same each time.
//
//   sum_pixels      x (N, P pixels, C) is cut into chunks of pixels. A thread adds up every row-th
//                   pixel of its chunk in registers, and the rows of a block are added in order.
//                   Where an image has several chunks, the last of its blocks to finish adds up
//                   the shares of all. x is read once, and `factor` where x is multiplied by it.
//   repeat_pixels   the opposite: a thread writes its channels to every row-th pixel of a chunk.
//   max_pool2d      forward: a thread makes one output; neighbouring windows overlap in the L1
//                   cache. backward: a thread makes dx of one pixel: it looks at the windows that
//                   hold the pixel and adds up the dout of those that it won.
//
// Average pooling is sum_pixels forward and repeat_pixels backward; divisor is then P.
#include "common.h"
#include "last_block.h"

constexpr int MAX_SUMS = 512;  // images times groups of channels, where each has several blocks

// How many blocks of each sum have finished.
__device__ unsigned finished[MAX_SUMS];

// Add up over the rows of threads: `use(channel, total)` is called once for each of the channels.
template <int VECTOR, class F>
__device__ __forceinline__ void add_rows(const REAL (&sum)[VECTOR], REAL* rows, int C, F&& use) {
  const int width = blockDim.x * VECTOR;
#pragma unroll
  for (int v = 0; v < VECTOR; v++) rows[threadIdx.y * width + threadIdx.x * VECTOR + v] = sum[v];
  __syncthreads();
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += blockDim.x * blockDim.y) {
    const int channel = blockIdx.y * width + i;
    if (channel >= C) continue;
    REAL total = 0;
    for (int row = 0; row < blockDim.y; row++) total += rows[row * width + i];
    use(channel, total);
  }
}

template <int VECTOR, bool MULTIPLIES>
__global__ void sum_pixels_kernel(const STORE* __restrict__ x,
                                  const STORE* __restrict__ factor,  // as x; null if not MULTIPLIES
                                  STORE* __restrict__ out,
                                  REAL* shares,  // (N, count, C); null if count is 1
                                  int P, int C, int count, int chunk, REAL divisor) {
  DYNAMIC_SHARED(REAL, rows);  // (blockDim.y, blockDim.x * VECTOR)
  const int n = blockIdx.x / count, first = blockIdx.x % count * chunk;
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  const int end = c < C ? min(first + chunk, P) : 0;  // beyond the channels: only the barriers
  REAL sum[VECTOR] = {};
#pragma unroll 4
  for (int p = first + threadIdx.y; p < end; p += blockDim.y) {
    REAL value[VECTOR], other[VECTOR];
    load(x + (n * P + p) * C + c, value);
    if (MULTIPLIES) load(factor + (n * P + p) * C + c, other);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) sum[v] += MULTIPLIES ? value[v] * other[v] : value[v];
  }
  add_rows(sum, rows, C, [&](int channel, REAL total) {
    if (count == 1) out[n * C + channel] = STORE(total / divisor);
    else shares[blockIdx.x * C + channel] = total;
  });
  if (count == 1 || !is_last_block(&finished[n * gridDim.y + blockIdx.y], count)) return;

#pragma unroll
  for (int v = 0; v < VECTOR; v++) sum[v] = 0;
#pragma unroll 4
  for (int k = threadIdx.y; k < (c < C ? count : 0); k += blockDim.y)
#pragma unroll
    for (int v = 0; v < VECTOR; v++) sum[v] += shares[(n * count + k) * C + c + v];
  add_rows(sum, rows, C, [&](int channel, REAL total) {
    out[n * C + channel] = STORE(total / divisor);
  });
}

template <int VECTOR, bool ADDS>
__global__ void repeat_pixels_kernel(const STORE* __restrict__ x, STORE* __restrict__ out,
                                     int P, int C, int count, int chunk, REAL divisor) {
  const int n = blockIdx.x / count, first = blockIdx.x % count * chunk;
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= C) return;
  REAL value[VECTOR];
  load(x + n * C + c, value);
#pragma unroll
  for (int v = 0; v < VECTOR; v++) value[v] /= divisor;
#pragma unroll 4
  for (int p = first + threadIdx.y; p < min(first + chunk, P); p += blockDim.y) {
    STORE* to = out + (n * P + p) * C + c;
    if (ADDS) {
      REAL sum[VECTOR];
      load(to, sum);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) sum[v] += value[v];
      store(to, sum);
    } else {
      store(to, value);
    }
  }
}

// The winners beside VECTOR outputs are written and read in one go as well.
template <int VECTOR>
using Winners = Pack<short, VECTOR>;

template <int VECTOR>
__global__ void max_pool2d_forward_kernel(
    const STORE* __restrict__ x, STORE* __restrict__ out,
    short* __restrict__ winner,  // kh * K + kw of the tap that held the maximum
    int N, int H, int W, int C, int OH, int OW, int K, int stride, int padding) {
  const int vectors = C / VECTOR;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= N * OH * OW * vectors) return;
  const int c = i % vectors * VECTOR, ow = i / vectors % OW, oh = i / vectors / OW % OH;
  const int n = i / vectors / OW / OH;

  REAL best[VECTOR] = {};
  Winners<VECTOR> won;
#pragma unroll
  for (int v = 0; v < VECTOR; v++) won.at[v] = -1;  // even -inf wins over nothing
  for (int kh = 0; kh < K; kh++) {
    const int h = oh * stride + kh - padding;
    if (h < 0 || h >= H) continue;
    for (int kw = 0; kw < K; kw++) {
      const int w = ow * stride + kw - padding;
      if (w < 0 || w >= W) continue;
      REAL value[VECTOR];
      load(x + ((n * H + h) * W + w) * C + c, value);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) {
        if (value[v] > best[v] || isnan(value[v]) || won.at[v] < 0) {
          best[v] = value[v];
          won.at[v] = kh * K + kw;
        }
      }
    }
  }
  store(out + i * VECTOR, best);
  *reinterpret_cast<Winners<VECTOR>*>(winner + i * VECTOR) = won;
}

template <int VECTOR>
__global__ void max_pool2d_backward_kernel(
    const STORE* __restrict__ dout, const short* __restrict__ winner, STORE* __restrict__ dx,
    int N, int H, int W, int C, int OH, int OW, int K, int stride, int padding) {
  const int vectors = C / VECTOR;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= N * H * W * vectors) return;
  const int c = i % vectors * VECTOR, w = i / vectors % W, h = i / vectors / W % H;
  const int n = i / vectors / W / H;

  // The windows that hold the pixel: oh * stride <= h + padding < oh * stride + K.
  const int below = h + padding - K + 1, left = w + padding - K + 1;
  const int oh0 = below > 0 ? (below + stride - 1) / stride : 0;
  const int ow0 = left > 0 ? (left + stride - 1) / stride : 0;
  REAL sum[VECTOR] = {};
  for (int oh = min((h + padding) / stride, OH - 1); oh >= oh0; oh--) {
    for (int ow = min((w + padding) / stride, OW - 1); ow >= ow0; ow--) {
      const int tap = (h + padding - oh * stride) * K + w + padding - ow * stride;
      const int o = ((n * OH + oh) * OW + ow) * C + c;
      const Winners<VECTOR> won = *reinterpret_cast<const Winners<VECTOR>*>(winner + o);
      REAL d[VECTOR];
      load(dout + o, d);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) sum[v] += won.at[v] == tap ? d[v] : REAL(0);
    }
  }
  store(dx + i * VECTOR, sum);
}
