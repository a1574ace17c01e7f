// The softmax losses on full-resolution logits (P, K), and what ends every loss: the kernels that
// turn sums over pixels into the loss. Launched by softmax_cuda.py; the formulas are in softmax.h.
//
//   shift         every pixel's logits less their highest: what float32 cannot hold of a logit of
//                 1e4 is lost in log sum exp otherwise. The same of coarse logits.
//   forward       a group of blockDim.x lanes holds one pixel, its lanes neighbouring classes: the
//                 logits are read once. Per block two sums for the mean over pixels.
//   overlap       a thread owns a class and walks over pixels: I, S and T, per block. One read.
//   backward      a group per pixel again: logits read once (for overlaps twice, the second time
//                 from the L1 cache), dlogits written once, scaled by dloss before it is rounded.
//   pixel_mean, overlap_mean   one block adds up the blocks' sums, in order: the loss, its scale
//                 and the derivatives of an overlap stay on the device.
//   label_counts  a histogram in shared memory; integers add up the same in any order.
#include "softmax.h"

// The sum over a group of `lanes` neighbouring lanes, a power of two; every lane gets it.
__device__ __forceinline__ REAL group_sum(REAL value, int lanes) {
  for (int bits = lanes / 2; bits > 0; bits >>= 1)
    value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}

__device__ __forceinline__ REAL shifted(const STORE* z, const REAL* shift, int k) {
  return REAL(z[k]) + (shift ? shift[k] : REAL(0));
}

__global__ void softmax_shift_kernel(const STORE* __restrict__ logits, STORE* __restrict__ below,
                                     int P, int K) {
  const int lanes = blockDim.x;
  const int p = min(int(blockIdx.x * blockDim.y + threadIdx.y), P - 1);  // some twice: no harm
  const STORE* z = logits + p * K;
  REAL highest = z[0];
  for (int k = threadIdx.x; k < K; k += lanes) highest = max(highest, REAL(z[k]));
  for (int bits = lanes / 2; bits > 0; bits >>= 1)
    highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, bits));
  for (int k = threadIdx.x; k < K; k += lanes) below[p * K + k] = STORE(REAL(z[k]) - highest);
}

__global__ void softmax_forward_kernel(
    const STORE* __restrict__ logits, const unsigned char* __restrict__ target,
    const REAL* __restrict__ weight, const REAL* __restrict__ counted,  // (K,), or null
    const REAL* __restrict__ smooth, const REAL* __restrict__ shift,    // (K,), or null
    REAL* __restrict__ lse, REAL* __restrict__ on_target, REAL* __restrict__ sums,
    REAL gamma, REAL smooth_total, int ignore_index, int P, int K) {
  __shared__ REAL of_warps[32];
  const int lanes = blockDim.x;
  REAL loss = 0, denominator = 0;
  // All groups of a block go round equally often: shuffles need every lane of a warp.
  for (int first = blockIdx.x * blockDim.y; first < P; first += gridDim.x * blockDim.y) {
    const int p = first + threadIdx.y;
    const Label label = label_of(target, p, p < P, ignore_index, K);
    const STORE* z = logits + (p < P ? p : 0) * K;
    const REAL z_y = label.is_valid ? shifted(z, shift, label.y) : REAL(0);
    LogSum sum;
    REAL smooth_below = 0;  // sum_k smooth_k (z_y - z_k)
    for (int k = threadIdx.x; k < K; k += lanes) {
      const REAL z_k[1] = {shifted(z, shift, k)};
      sum.add(z_k);
      if (smooth) smooth_below += smooth[k] * (z_y - z_k[0]);
    }
    for (int bits = lanes / 2; bits > 0; bits >>= 1) {
      LogSum other;
      other.highest = __shfl_xor_sync(0xffffffffu, sum.highest, bits);
      other.sum = __shfl_xor_sync(0xffffffffu, sum.sum, bits);
      sum.add(other);
    }
    if (smooth) smooth_below = group_sum(smooth_below, lanes);
    if (threadIdx.x > 0) continue;
    if (!label.is_valid) continue;
    const REAL lse_p = sum.value();
    lse[p] = lse_p;
    if (!weight) continue;
    const REAL log_prob = at_most_zero(z_y - lse_p);
    const PixelTerms terms = pixel_terms(log_prob, weight[label.y], gamma);
    on_target[p] = terms.on_target;
    loss += terms.loss + smooth_below - smooth_total * log_prob;
    denominator += counted[label.y];
  }
  store_mean(loss, denominator, of_warps, sums);
}

__global__ void softmax_overlap_kernel(
    const STORE* __restrict__ logits, const unsigned char* __restrict__ target,
    const REAL* __restrict__ lse, REAL* __restrict__ sums,  // (gridDim.x, 3, K)
    int ignore_index, int P, int K) {
  DYNAMIC_SHARED(REAL, rows);
  const int k = blockIdx.y * blockDim.x + threadIdx.x;
  REAL intersection[1] = {}, total[1] = {}, count[1] = {};
  for (int p = blockIdx.x * blockDim.y + threadIdx.y; p < P && k < K;
       p += gridDim.x * blockDim.y) {
    const Label label = label_of(target, p, true, ignore_index, K);
    if (!label.is_valid) continue;
    const REAL prob = exp(at_most_zero(REAL(logits[p * K + k]) - lse[p]));
    total[0] += prob;
    if (k == label.y) {
      intersection[0] += prob;
      count[0] += 1;
    }
  }
  store_overlap(intersection, total, count, rows, sums + blockIdx.x * 3 * K,
                blockIdx.y * blockDim.x, K);
}

__global__ void softmax_backward_kernel(
    const STORE* __restrict__ logits, const unsigned char* __restrict__ target,
    const REAL* __restrict__ smooth, const REAL* __restrict__ shift,           // (K,), or null
    const REAL* __restrict__ lse, const REAL* __restrict__ on_target,          // (P,)
    const REAL* __restrict__ scale,                                            // (1,), or null
    const REAL* __restrict__ dintersection, const REAL* __restrict__ dtotal,   // (K,), or null
    const REAL* __restrict__ loss_scale,                                       // (1,), or null
    STORE* __restrict__ dlogits, REAL dloss, REAL smooth_total, int ignore_index, int P, int K) {
  const int lanes = blockDim.x, p = blockIdx.x * blockDim.y + threadIdx.y;
  const Label label = label_of(target, p, p < P, ignore_index, K);
  const STORE* z = logits + (p < P ? p : 0) * K;
  const REAL lse_p = label.is_valid ? lse[p] : REAL(0);
  const REAL scale_p = scale ? scale[0] : REAL(1);
  const REAL factor = loss_scale ? dloss * loss_scale[0] : dloss;
  REAL pull = label.is_valid && on_target ? scale_p * on_target[p] : REAL(0);
  REAL mean = 0;  // sum_k p_k dtotal_k
  if (dtotal) {   // the same for all threads
    for (int k = threadIdx.x; k < K; k += lanes)
      mean += exp(min(REAL(z[k]) - lse_p, REAL(0))) * dtotal[k];
    mean = group_sum(mean, lanes);
    if (label.is_valid)
      pull -= exp(min(REAL(z[label.y]) - lse_p, REAL(0))) * dintersection[label.y];
  }
  if (p >= P) return;
  for (int k = threadIdx.x; k < K; k += lanes) {
    REAL dz = 0;
    if (label.is_valid) {
      const REAL prob = exp(min(shifted(z, shift, k) - lse_p, REAL(0)));
      dz = prob * (pull + scale_p * smooth_total - mean + (dtotal ? dtotal[k] : REAL(0)));
      if (k == label.y) dz -= pull;
      if (smooth) dz -= scale_p * smooth[k];
    }
    dlogits[p * K + k] = STORE(factor * dz);
  }
}

// One block. The mean over pixels from sums (2, count): loss (1,), and factor / D in scale (1,). D
// is the sum of counted[y] over the pixels, or over `counts` (K,), those of a whole batch.
__global__ void pixel_mean_kernel(
    const REAL* __restrict__ sums, const int* __restrict__ counts,
    const REAL* __restrict__ counted, REAL* __restrict__ loss, REAL* __restrict__ scale,
    REAL factor, int count, int K) {
  __shared__ REAL of_warps[32];
  REAL sum[2] = {};
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    for (int q = 0; q < 2; q++) sum[q] += sums[q * count + i];
  if (counts) {
    sum[1] = 0;
    for (int k = threadIdx.x; k < K; k += blockDim.x) sum[1] += REAL(counts[k]) * counted[k];
  }
  for (int q = 0; q < 2; q++) sum[q] = block_sum(sum[q], of_warps);
  if (threadIdx.x > 0) return;
  // Nothing to learn from: loss 0, gradient 0. NaN of a loss that is not finite goes into the whole
  // gradient, so that its norm tells of it, too, and the step is skipped.
  loss[0] = sum[1] > 0 ? sum[0] / sum[1] : REAL(0);
  scale[0] = sum[1] > 0 ? factor / sum[1] + 0 * loss[0] : REAL(0);
}

// The sum over a block of `value`, for all threads.
__device__ __forceinline__ REAL sum_for_all(REAL value, REAL* of_warps) {
  value = block_sum(value, of_warps);
  __syncthreads();
  if (threadIdx.x + threadIdx.y == 0) of_warps[0] = value;
  __syncthreads();
  value = of_warps[0];
  __syncthreads();
  return value;
}

// One block (32, 32). From sums (count, 3, K) the Tversky index of every class,
//   TI = (I + smooth) / (I + smooth + alpha (S - I) + beta (T - I)),
// which is dice for alpha = beta = 1/2 and half of dice's smooth; its mean over the classes in
// `overlap` (1,), and dL/dI and dL/dS (K,). loss = lambda_pixels * pixel_loss + lambda_overlap *
// overlap. `share` is 1 / number of parts of a batch.
__global__ void overlap_mean_kernel(
    const REAL* __restrict__ sums, const REAL* __restrict__ weight,
    const REAL* __restrict__ pixel_loss,  // (1,), or null
    REAL* __restrict__ loss, REAL* __restrict__ overlap, REAL* __restrict__ dintersection,
    REAL* __restrict__ dtotal, REAL alpha, REAL beta, REAL smooth, REAL lambda_pixels,
    REAL lambda_overlap, REAL share, bool logarithm, bool all_classes, bool smp, int count,
    int K) {
  DYNAMIC_SHARED(REAL, of_class);  // (3, K): I, S, T
  __shared__ REAL rows[32][33];
  __shared__ REAL of_warps[32];
  const int thread = threadIdx.y * 32 + threadIdx.x;
  for (int first = 0; first < 3 * K; first += 32) {
    const int i = first + threadIdx.x;
    REAL sum = 0;
    for (int block = threadIdx.y; block < count && i < 3 * K; block += 32)
      sum += sums[block * 3 * K + i];
    rows[threadIdx.x][threadIdx.y] = sum;
    __syncthreads();
    sum = warp_sum(rows[threadIdx.y][threadIdx.x]);  // a warp adds up one column
    if (threadIdx.x == 0 && first + threadIdx.y < 3 * K) of_class[first + threadIdx.y] = sum;
    __syncthreads();
  }

  REAL present = 0, weights = 0;
  for (int k = thread; k < K; k += 1024) {
    const bool is_present = of_class[2 * K + k] > 0;
    present += is_present;
    if (is_present || all_classes) weights += weight[k];
  }
  present = sum_for_all(present, of_warps);
  weights = sum_for_all(weights, of_warps);

  REAL value = 0;
  for (int k = thread; k < K; k += 1024) {
    const REAL I = of_class[k], S = of_class[K + k], T = of_class[2 * K + k];
    REAL a = 0;  // the class's share of the mean
    if (present > 0 && weights > 0 && (T > 0 || all_classes))
      a = smp ? REAL(1) / K : weight[k] / weights;
    const REAL Q = I + smooth + alpha * (S - I) + beta * (T - I);
    const bool is_empty = Q == 0;  // not there, not predicted, smooth 0: TI = 1, no gradient
    const REAL index = is_empty ? REAL(1) : (I + smooth) / Q;
    // log dice is cut here, as in dice.py; max would hide NaN from the loss.
    const REAL floored = index < REAL(1e-7) ? REAL(1e-7) : index;
    value += a * (logarithm ? -log(floored) : 1 - index);
    if (is_empty) a = 0;
    if (logarithm) a = index > REAL(1e-7) ? a / floored : REAL(0);
    a *= lambda_overlap * share;
    dintersection[k] = is_empty ? REAL(0) : -a * (1 - (1 - alpha - beta) * index) / Q;
    dtotal[k] = is_empty ? REAL(0) : a * alpha * index / Q;
  }
  value = block_sum(value, of_warps);
  if (thread > 0) return;
  overlap[0] = share * value;
  loss[0] = lambda_overlap * overlap[0] + (pixel_loss ? lambda_pixels * pixel_loss[0] : REAL(0));
}

// counts (K,) += pixels of each class; labels beyond the classes count nowhere.
__global__ void label_counts_kernel(const unsigned char* __restrict__ target,
                                    int* __restrict__ counts, int ignore_index, int P, int K) {
  DYNAMIC_SHARED(int, of_block);
  for (int k = threadIdx.x; k < K; k += blockDim.x) of_block[k] = 0;
  __syncthreads();
  for (int p = blockIdx.x * blockDim.x + threadIdx.x; p < P; p += gridDim.x * blockDim.x) {
    const Label label = label_of(target, p, true, ignore_index, K);
    if (label.is_valid) atomicAdd(of_block + label.y, 1);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < K; k += blockDim.x)
    if (of_block[k]) atomicAdd(counts + k, of_block[k]);
}

__global__ void divided_kernel(const REAL* __restrict__ loss, REAL* __restrict__ share, int parts) {
  share[0] = loss[0] / parts;
}
