// Batch normalisation with the activation behind it, NHWC, the twin of batch_norm.py. P = N*H*W.
//
// A block is (columns, rows) threads: neighbouring threads hold neighbouring channels, VECTOR of
// them each and at most 32 together, a line of memory; the rows of threads share those of x (P, C).
// Blocks along y are groups of channels, blocks along x share the rows of a group.
//
//   statistics      x is read once. A thread sums over its rows, the block over its threads; the
//                   last block of a group to finish adds up what all blocks found.
//   forward         out = activation((x - mean) * scale + bias): x read once, out written once. A
//                   residual, where there is one, is read once and added on the way.
//   backward_sums   x and dout are read once: the two sums over P that every dx depends on, which
//                   are dweight and dbias too. In evaluation dx needs no sum and is written here.
//   backward_input  dx, in training: x and dout read once, dx written once.
//
// z, the value before the activation, is kept nowhere: the backward kernels make it again from x,
// which costs a multiply-add, where reading it would cost as much as reading x.
//
// Sums have a fixed order, whichever block is last: the same bits each time. Below are the naive
// versions: the formulas as they stand, a block per channel or a thread per element.
#include "activations.h"
#include "last_block.h"

constexpr int THREADS = 256;      // of a block, at most
constexpr int CHANNELS = 32;      // of a block, at most
constexpr int MAX_GROUPS = 4096;  // of channels
constexpr int AT_ONCE = 4;        // rows that a thread reads before it works on the first of them

// How many blocks of each group have finished.
__device__ unsigned finished[MAX_GROUPS];

// ---------------------------------------------------------------- the rows of a thread

struct Rows {
  unsigned first, step, end;
};

// All blocks walk through the rows side by side.
__device__ __forceinline__ Rows interleaved_rows(unsigned P) {
  return {blockIdx.x * blockDim.y + threadIdx.y, gridDim.x * blockDim.y, P};
}

// How many of P rows those are for a whole block.
__device__ __forceinline__ int interleaved_count(int block, int P) {
  const int rows = blockDim.y, round = gridDim.x * rows;
  return P / round * rows + min(max(P % round - block * rows, 0), rows);
}

// Every block takes `chunk` rows, the first block the last of them: what the kernel before this one
// has read last is still in the L2 cache.
__device__ __forceinline__ Rows chunk_from_the_end(unsigned P, unsigned chunk) {
  const unsigned start = (gridDim.x - 1 - blockIdx.x) * chunk;
  return {start + threadIdx.y, blockDim.y, min(P, start + chunk)};
}

// Read row p, the rows a step further ..., as far as there are any, from channel c on.
template <int N, int VECTOR>
__device__ __forceinline__ void load_rows(const STORE* from, const Rows& rows, unsigned p, int C,
                                          int c, REAL (&to)[N][VECTOR]) {
#pragma unroll
  for (int k = 0; k < N; k++)
    if (p + k * rows.step < rows.end) load(from + (p + k * rows.step) * C + c, to[k]);
}

// ---------------------------------------------------------------- sums over threads and blocks

// Count, mean and sum of squared deviations of some values, for each of VECTOR channels.
template <int VECTOR>
struct Moments {
  REAL count, mean[VECTOR], squares[VECTOR];

  static constexpr int SIZE = 1 + 2 * VECTOR;  // numbers
  __device__ REAL& operator[](int i) {
    return i == 0 ? count : i <= VECTOR ? mean[i - 1] : squares[i - 1 - VECTOR];
  }

  // Chan, Golub and LeVeque (1979): no number here is larger than the values and their deviations,
  // so a large mean costs no digits.
  __device__ void add(const Moments& other) {
    const REAL total = count + other.count;
    const REAL share = total > 0 ? other.count / total : REAL(0);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
      const REAL difference = other.mean[v] - mean[v];
      mean[v] += difference * share;
      squares[v] += other.squares[v] + difference * difference * count * share;
    }
    count = total;
  }
};

// The sums of dz and of dz * (x - mean), for each of VECTOR channels.
template <int VECTOR>
struct Sums {
  REAL dz[VECTOR], product[VECTOR];

  static constexpr int SIZE = 2 * VECTOR;
  __device__ REAL& operator[](int i) { return i < VECTOR ? dz[i] : product[i - VECTOR]; }

  __device__ void add(const Sums& other) {
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
      dz[v] += other.dz[v];
      product[v] += other.product[v];
    }
  }
};

// Add up over the rows of threads, the upper half to the lower half until one is left: row 0.
template <class T>
__device__ __forceinline__ void add_rows(T& mine) {
  __shared__ REAL brought[T::SIZE][THREADS / 2];
  const int row = threadIdx.y;
  for (int rows = blockDim.y; rows > 1;) {
    const int half = (rows + 1) / 2;
    __syncthreads();  // the numbers brought before have been read
    if (row >= half && row < rows)
#pragma unroll
      for (int i = 0; i < T::SIZE; i++)
        brought[i][(row - half) * blockDim.x + threadIdx.x] = mine[i];
    __syncthreads();
    if (row + half < rows) {
      T other;
#pragma unroll
      for (int i = 0; i < T::SIZE; i++) other[i] = brought[i][row * blockDim.x + threadIdx.x];
      mine.add(other);
    }
    rows = half;
  }
}

// The two numbers of a channel that a block found, for others to read.
template <int VECTOR>
__device__ __forceinline__ void write_share(REAL* shares, int C, int c, const REAL (&a)[VECTOR],
                                            const REAL (&b)[VECTOR]) {
  if (threadIdx.y > 0 || c >= C) return;
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    shares[2 * blockIdx.x * C + c + v] = a[v];
    shares[(2 * blockIdx.x + 1) * C + c + v] = b[v];
  }
}

template <int VECTOR>
__device__ __forceinline__ void read_share(const REAL* shares, int block, int C, int c,
                                           REAL (&a)[VECTOR], REAL (&b)[VECTOR]) {
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    a[v] = shares[2 * block * C + c + v];
    b[v] = shares[(2 * block + 1) * C + c + v];
  }
}

// Whether this block is the last of its group to come here.
__device__ __forceinline__ bool is_last_of_group() {
  return is_last_block(&finished[blockIdx.y], gridDim.x);
}

// Spread the numbers of row 0 over as many threads as there are channels: each gets the two of its
// own and returns its channel, or -1 if it has none.
template <int VECTOR>
__device__ __forceinline__ int one_channel(int C, REAL (&a)[VECTOR], REAL (&b)[VECTOR]) {
  __shared__ REAL of_channels[2][CHANNELS];
  if (threadIdx.y == 0) {
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
      of_channels[0][threadIdx.x * VECTOR + v] = a[v];
      of_channels[1][threadIdx.x * VECTOR + v] = b[v];
    }
  }
  __syncthreads();
  const int width = blockDim.x * VECTOR, i = threadIdx.y * blockDim.x + threadIdx.x;
  const int channel = blockIdx.y * width + i;
  if (i >= width || channel >= C) return -1;
  a[0] = of_channels[0][i];
  b[0] = of_channels[1][i];
  return channel;
}

// ---------------------------------------------------------------- forward

template <int VECTOR>
__global__ void batch_norm_statistics_kernel(
    const STORE* __restrict__ x, REAL* shares,  // (gridDim.x, 2, C)
    const REAL* running_mean, const REAL* running_var,
    REAL* new_running_mean, REAL* new_running_var,  // may be the arrays above
    REAL* __restrict__ mean, REAL* __restrict__ inv_std, int P, int C, REAL momentum, REAL eps) {
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  const bool has_channels = c < C;  // a thread without any only keeps the barriers
  const Rows rows = interleaved_rows(has_channels ? P : 0);

  // Deviations from the thread's first value: small, whatever the mean. Were that value the odd one
  // out, the true sum of squares would be as large as the numbers subtracted here.
  int count = 0;
  REAL origin[VECTOR] = {}, sum[VECTOR] = {}, squares[VECTOR] = {};
  if (rows.first < rows.end) load(x + rows.first * C + c, origin);
  for (unsigned p = rows.first; p < rows.end; p += AT_ONCE * rows.step) {
    REAL value[AT_ONCE][VECTOR];
    load_rows(x, rows, p, C, c, value);
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      if (p + k * rows.step >= rows.end) break;
      count++;
#pragma unroll
      for (int v = 0; v < VECTOR; v++) {
        const REAL d = value[k][v] - origin[v];
        sum[v] += d;
        squares[v] += d * d;
      }
    }
  }
  Moments<VECTOR> moments = {};
  if (count) {
    moments.count = REAL(count);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
      const REAL mean_deviation = sum[v] / moments.count;
      const REAL about_mean = squares[v] - sum[v] * mean_deviation;
      moments.mean[v] = origin[v] + mean_deviation;
      moments.squares[v] = about_mean < 0 ? REAL(0) : about_mean;  // rounding; NaN stays
    }
  }
  add_rows(moments);
  write_share(shares, C, c, moments.mean, moments.squares);
  if (!is_last_of_group()) return;

  moments = {};
  for (int first = threadIdx.y; first < gridDim.x && has_channels; first += 4 * blockDim.y) {
    Moments<VECTOR> share[4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int block = first + k * blockDim.y;
      if (block >= gridDim.x) break;
      share[k].count = REAL(interleaved_count(block, P));
      read_share(shares, block, C, c, share[k].mean, share[k].squares);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) moments.add(share[k]);
  }
  add_rows(moments);
  const int channel = one_channel(C, moments.mean, moments.squares);
  if (channel < 0) return;
  const REAL old_mean = running_mean[channel], old_var = running_var[channel];
  const REAL unbiased = moments.squares[0] / (P - 1);
  mean[channel] = moments.mean[0];
  inv_std[channel] = 1 / sqrt(moments.squares[0] / P + eps);
  new_running_mean[channel] = (1 - momentum) * old_mean + momentum * moments.mean[0];
  new_running_var[channel] = (1 - momentum) * old_var + momentum * unbiased;
}

// What turns x of VECTOR channels into z, and back.
template <int VECTOR>
struct Channels {
  REAL mean[VECTOR], scale[VECTOR], bias[VECTOR];

  // fma, so that forward and backward round alike, and agree on which side of a kink z lies.
  __device__ REAL z(int v, REAL x) const { return fma(x - mean[v], scale[v], bias[v]); }
};

// In training `inv_std` is read; in evaluation `running_var`, and `inv_std` written for backward.
template <int ACTIVATION, int VECTOR>
__global__ void batch_norm_forward_kernel(
    const STORE* __restrict__ x, const REAL* __restrict__ mean,
    const REAL* __restrict__ running_var, REAL* __restrict__ inv_std,
    const REAL* __restrict__ weight, const REAL* __restrict__ bias,
    const STORE* __restrict__ residual,  // (P, C), or null
    STORE* __restrict__ out, int P, int C, int chunk, REAL eps) {
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= C) return;
  Channels<VECTOR> channels;
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    channels.mean[v] = mean[c + v];
    channels.scale[v] = running_var ? running_var[c + v] : inv_std[c + v];
    channels.bias[v] = bias[c + v];
  }
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    if (running_var) channels.scale[v] = 1 / sqrt(channels.scale[v] + eps);
    if (running_var && blockIdx.x == 0 && threadIdx.y == 0) inv_std[c + v] = channels.scale[v];
    channels.scale[v] *= weight[c + v];
  }
  const Rows rows = chunk_from_the_end(P, chunk);
  for (unsigned p = rows.first; p < rows.end; p += AT_ONCE * rows.step) {
    REAL value[AT_ONCE][VECTOR], addend[AT_ONCE][VECTOR] = {};
    load_rows(x, rows, p, C, c, value);
    if (residual) load_rows(residual, rows, p, C, c, addend);
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      if (p + k * rows.step >= rows.end) break;
#pragma unroll
      for (int v = 0; v < VECTOR; v++)
        value[k][v] = activation<ACTIVATION>(channels.z(v, value[k][v])) + addend[k][v];
      store(out + (p + k * rows.step) * C + c, value[k]);
    }
  }
}

// ---------------------------------------------------------------- backward

template <int VECTOR>
__device__ __forceinline__ Channels<VECTOR> load_channels(
    const REAL* mean, const REAL* inv_std, const REAL* weight, const REAL* bias, int c) {
  Channels<VECTOR> channels;
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    channels.mean[v] = mean[c + v];
    channels.scale[v] = weight[c + v] * inv_std[c + v];
    channels.bias[v] = bias[c + v];
  }
  return channels;
}

// In `dz`, dout becomes dz = dout * activation'(z); in `deviation`, x becomes x - mean.
template <int ACTIVATION, int VECTOR>
__device__ __forceinline__ void through_activation(const Channels<VECTOR>& channels,
                                                   REAL (&dz)[VECTOR],
                                                   REAL (&deviation)[VECTOR]) {
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    dz[v] *= activation_slope<ACTIVATION>(channels.z(v, deviation[v]));
    deviation[v] -= channels.mean[v];
  }
}

template <int ACTIVATION, int VECTOR>
__global__ void batch_norm_backward_sums_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ x, const REAL* __restrict__ mean,
    const REAL* __restrict__ inv_std, const REAL* __restrict__ weight,
    const REAL* __restrict__ bias, REAL* shares,  // (gridDim.x, 2, C)
    STORE* __restrict__ dx,                       // in evaluation, else null
    REAL* __restrict__ mean_dz, REAL* __restrict__ slope,  // for dx in training
    REAL* __restrict__ dweight, REAL* __restrict__ dbias, int P, int C) {
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  const bool has_channels = c < C;
  const Rows rows = interleaved_rows(P);
  Sums<VECTOR> sums = {};
  if (has_channels) {
    const auto channels = load_channels<VECTOR>(mean, inv_std, weight, bias, c);
    for (unsigned p = rows.first; p < rows.end; p += AT_ONCE * rows.step) {
      REAL dz[AT_ONCE][VECTOR], deviation[AT_ONCE][VECTOR];
      load_rows(dout, rows, p, C, c, dz);
      load_rows(x, rows, p, C, c, deviation);
#pragma unroll
      for (int k = 0; k < AT_ONCE; k++) {
        if (p + k * rows.step >= rows.end) break;
        through_activation<ACTIVATION>(channels, dz[k], deviation[k]);
#pragma unroll
        for (int v = 0; v < VECTOR; v++) {
          sums.dz[v] += dz[k][v];
          sums.product[v] += dz[k][v] * deviation[k][v];
          dz[k][v] *= channels.scale[v];
        }
        if (dx) store(dx + (p + k * rows.step) * C + c, dz[k]);
      }
    }
  }
  add_rows(sums);
  write_share(shares, C, c, sums.dz, sums.product);
  if (!is_last_of_group()) return;

  sums = {};
  for (int first = threadIdx.y; first < gridDim.x && has_channels; first += 4 * blockDim.y) {
    Sums<VECTOR> share[4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (first + k * blockDim.y < gridDim.x)
        read_share(shares, first + k * blockDim.y, C, c, share[k].dz, share[k].product);
#pragma unroll
    for (int k = 0; k < 4; k++) sums.add(share[k]);
  }
  add_rows(sums);
  const int channel = one_channel(C, sums.dz, sums.product);
  if (channel < 0) return;
  const REAL of_xhat = sums.product[0] * inv_std[channel];  // the sum of dz * xhat
  dweight[channel] += of_xhat;
  dbias[channel] += sums.dz[0];
  mean_dz[channel] = sums.dz[0] / P;
  slope[channel] = of_xhat * inv_std[channel] / P;
}

// dx = scale * (dz - mean(dz) - xhat * mean(dz * xhat)); the last product is (x - mean) * slope.
template <int ACTIVATION, int VECTOR>
__global__ void batch_norm_backward_input_kernel(
    const STORE* __restrict__ dout, const STORE* __restrict__ x, const REAL* __restrict__ mean,
    const REAL* __restrict__ inv_std, const REAL* __restrict__ weight,
    const REAL* __restrict__ bias, const REAL* __restrict__ mean_dz,
    const REAL* __restrict__ slope, STORE* __restrict__ dx, int P, int C, int chunk) {
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= C) return;
  const auto channels = load_channels<VECTOR>(mean, inv_std, weight, bias, c);
  REAL mean_of[VECTOR], slope_of[VECTOR];
#pragma unroll
  for (int v = 0; v < VECTOR; v++) {
    mean_of[v] = mean_dz[c + v];
    slope_of[v] = slope[c + v];
  }
  const Rows rows = chunk_from_the_end(P, chunk);
  for (unsigned p = rows.first; p < rows.end; p += AT_ONCE * rows.step) {
    REAL dz[AT_ONCE][VECTOR], deviation[AT_ONCE][VECTOR];
    load_rows(dout, rows, p, C, c, dz);
    load_rows(x, rows, p, C, c, deviation);
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      if (p + k * rows.step >= rows.end) break;
      through_activation<ACTIVATION>(channels, dz[k], deviation[k]);
#pragma unroll
      for (int v = 0; v < VECTOR; v++)
        dz[k][v] = channels.scale[v] * (dz[k][v] - mean_of[v] - deviation[k][v] * slope_of[v]);
      store(dx + (p + k * rows.step) * C + c, dz[k]);
    }
  }
}

// ---------------------------------------------------------------- naive
//
// Sums: a block per channel, whose threads read numbers C apart, so most of each line of memory is
// read for nothing; the statistics take two passes. The rest: a thread per element.

__global__ void batch_norm_statistics_naive_kernel(
    const STORE* x, const REAL* running_mean, const REAL* running_var, REAL* new_running_mean,
    REAL* new_running_var, REAL* mean, REAL* inv_std, int P, int C, REAL momentum, REAL eps) {
  __shared__ REAL of_warps[32], mean_of_block;
  const int c = blockIdx.x;
  REAL sum = 0, squares = 0;
  for (int p = threadIdx.x; p < P; p += blockDim.x) sum += REAL(x[p * C + c]);
  sum = block_sum(sum, of_warps);
  if (threadIdx.x == 0) mean_of_block = sum / P;
  __syncthreads();
  for (int p = threadIdx.x; p < P; p += blockDim.x) {
    const REAL deviation = REAL(x[p * C + c]) - mean_of_block;
    squares += deviation * deviation;
  }
  squares = block_sum(squares, of_warps);
  if (threadIdx.x > 0) return;
  mean[c] = mean_of_block;
  inv_std[c] = 1 / sqrt(squares / P + eps);
  new_running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean_of_block;
  new_running_var[c] = (1 - momentum) * running_var[c] + momentum * squares / (P - 1);
}

__global__ void batch_norm_inv_std_naive_kernel(const REAL* running_var, REAL* inv_std, int C,
                                                REAL eps) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c < C) inv_std[c] = 1 / sqrt(running_var[c] + eps);
}

template <int ACTIVATION>
__global__ void batch_norm_forward_naive_kernel(
    const STORE* x, const REAL* mean, const REAL* inv_std, const REAL* weight, const REAL* bias,
    const STORE* residual, STORE* out, int P, int C) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, c = i % C;
  if (i >= P * C) return;
  const REAL xhat = (REAL(x[i]) - mean[c]) * inv_std[c];
  const REAL addend = residual ? REAL(residual[i]) : REAL(0);
  out[i] = STORE(activation<ACTIVATION>(xhat * weight[c] + bias[c]) + addend);
}

template <int ACTIVATION>
__global__ void batch_norm_backward_sums_naive_kernel(
    const STORE* dout, const STORE* x, const REAL* mean, const REAL* inv_std, const REAL* weight,
    const REAL* bias, REAL* mean_dz, REAL* mean_dz_xhat, REAL* dweight, REAL* dbias,
    int P, int C) {
  __shared__ REAL of_warps[32];
  const int c = blockIdx.x;
  REAL sum_dz = 0, sum_dz_xhat = 0;
  for (int p = threadIdx.x; p < P; p += blockDim.x) {
    const REAL xhat = (REAL(x[p * C + c]) - mean[c]) * inv_std[c];
    const REAL slope = activation_slope<ACTIVATION>(xhat * weight[c] + bias[c]);
    const REAL dz = REAL(dout[p * C + c]) * slope;
    sum_dz += dz;
    sum_dz_xhat += dz * xhat;
  }
  sum_dz = block_sum(sum_dz, of_warps);
  sum_dz_xhat = block_sum(sum_dz_xhat, of_warps);
  if (threadIdx.x > 0) return;
  dbias[c] += sum_dz;
  dweight[c] += sum_dz_xhat;
  mean_dz[c] = sum_dz / P;
  mean_dz_xhat[c] = sum_dz_xhat / P;
}

template <int ACTIVATION>
__global__ void batch_norm_backward_input_naive_kernel(
    const STORE* dout, const STORE* x, const REAL* mean, const REAL* inv_std, const REAL* weight,
    const REAL* bias, const REAL* mean_dz, const REAL* mean_dz_xhat, STORE* dx, int P, int C,
    bool training) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, c = i % C;
  if (i >= P * C) return;
  const REAL xhat = (REAL(x[i]) - mean[c]) * inv_std[c];
  REAL dz = REAL(dout[i]) * activation_slope<ACTIVATION>(xhat * weight[c] + bias[c]);
  if (training) dz -= mean_dz[c] + xhat * mean_dz_xhat[c];
  dx[i] = STORE(weight[c] * inv_std[c] * dz);
}
