// What the losses share, on full logits (softmax.cu) and on coarse ones (upsampled.cu).
//
// All losses on a device are one family. With p = softmax(z) of a pixel and y its class:
//
//   mean over pixels   sum_i w[y] (1 - p_y)^gamma (-log p_y) / D; cross-entropy with gamma = 0
//   overlap            a function of I_k = sum p_k [k == y], S_k = sum p_k and T_k = sum [k == y]
//
// and so is their gradient, with two numbers per pixel and two tables over the classes:
//
//   dz_k = p_k (on_target + smooth_total - mean + dtotal_k) - on_target [k == y] - smooth_k
//
//   on_target     how hard the pixel pulls on its class, in overlaps -p_y dL/dI_y
//   smooth        (K,) label smoothing, e/K w; smooth_total is its sum
//   dtotal, mean  (K,) dL/dS_k, and sum_k p_k dL/dS_k of the pixel
//
// p is not kept: lse = log sum exp z is, one number per pixel, and p_k = exp(z_k - lse).
#pragma once
#include "common.h"

// Below every logit, and exp of it is 0; infinity minus infinity would be NaN.
constexpr REAL NOTHING = REAL(-3e38);

// log sum exp, a few classes at a time, whatever their size.
struct LogSum {
  REAL highest = NOTHING, sum = 0;  // sum of exp(z - highest)

  template <int N>
  __device__ __forceinline__ void add(const REAL (&z)[N]) {
    REAL top = highest;
#pragma unroll
    for (int i = 0; i < N; i++) top = max(top, z[i]);
    if (top > highest) {  // seldom, after the first classes
      sum *= exp(highest - top);
      highest = top;
    }
#pragma unroll
    for (int i = 0; i < N; i++) sum += exp(z[i] - highest);
  }

  __device__ __forceinline__ void add(const LogSum& other) {
    const REAL top = max(highest, other.highest);
    sum = sum * exp(highest - top) + other.sum * exp(other.highest - top);
    highest = top;
  }

  __device__ __forceinline__ REAL value() const { return highest + log(sum); }
};

// Rounding must not make a probability exceed 1. NaN stays, where min would hide it from the loss:
// in what the loss is summed up from. The backward pass gets it with the sums, and may take min.
__device__ __forceinline__ REAL at_most_zero(REAL log_prob) {
  return log_prob > 0 ? REAL(0) : log_prob;
}

// The class of a pixel, and whether it counts. A label beyond the classes is treated as ignored.
struct Label {
  int y;
  bool is_valid;
};

__device__ __forceinline__ Label label_of(const unsigned char* target, int p, bool is_inside,
                                          int ignore_index, int K) {
  const int y = is_inside ? int(target[p]) : ignore_index;
  return {y, y != ignore_index && y < K};
}

// What a pixel adds to the mean, and how hard it pulls.
struct PixelTerms {
  REAL loss, on_target;
};

// The factor is written as (1-p)^gamma (1 + gamma p ratio) with ratio = -log(p) / (1-p), which goes
// to 1 as p -> 1: finite for every gamma >= 0, see focal.py.
__device__ __forceinline__ PixelTerms pixel_terms(REAL log_prob, REAL weight, REAL gamma) {
  if (gamma == 0) return {-weight * log_prob, weight};
  const REAL miss = -expm1(log_prob);  // 1 - p, exact near 0
  const REAL modulation = weight * pow(miss, gamma);
  // At miss = 0 the ratio does not matter: modulation is 0.
  const REAL ratio = -log_prob / (miss > 0 ? miss : REAL(1));
  return {-modulation * log_prob, modulation * (1 + gamma * exp(log_prob) * ratio)};
}

// A thread's I, S and T of CLASSES classes k0 + x + v*blockDim.x, added over the rows of a block
// (blockDim.x, rows) in a fixed order; `rows` is shared memory for 3 * CLASSES numbers per thread,
// `sums` (3, K) are the block's.
template <int CLASSES>
__device__ __forceinline__ void store_overlap(const REAL (&intersection)[CLASSES],
                                              const REAL (&total)[CLASSES],
                                              const REAL (&count)[CLASSES], REAL* rows,
                                              REAL* sums, int k0, int K) {
  const int width = 3 * CLASSES * blockDim.x;
#pragma unroll
  for (int v = 0; v < CLASSES; v++) {
    REAL* of_row = rows + threadIdx.y * width + v * blockDim.x + threadIdx.x;
    of_row[0] = intersection[v];
    of_row[CLASSES * blockDim.x] = total[v];
    of_row[2 * CLASSES * blockDim.x] = count[v];
  }
  __syncthreads();
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += blockDim.x * blockDim.y) {
    const int quantity = i / (CLASSES * blockDim.x), k = k0 + i % (CLASSES * blockDim.x);
    if (k >= K) continue;
    REAL sum = 0;
    for (int row = 0; row < blockDim.y; row++) sum += rows[row * width + i];
    sums[quantity * K + k] = sum;
  }
}

// A block's sums of loss and denominator, into `sums` (2, gridDim.x).
__device__ __forceinline__ void store_mean(REAL loss, REAL denominator, REAL* of_warps,
                                           REAL* sums) {
  loss = block_sum(loss, of_warps);
  denominator = block_sum(denominator, of_warps);
  if (threadIdx.x + threadIdx.y > 0) return;
  sums[blockIdx.x] = loss;
  sums[gridDim.x + blockIdx.x] = denominator;
}
