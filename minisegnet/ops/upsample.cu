// Bilinear resizing, NHWC, the twin of upsample.py.
//
// Where an output reads, and with which shares, is the same for all images and channels: it is
// looked up in small tables, made in float64 on the host. A block works on a piece of one row, and
// neighbouring threads hold neighbouring channels, then columns, VECTOR channels each.
//
//   forward    a thread makes one output of four inputs. Enlarging, neighbours read the same ones:
//              x comes from memory about once, out is written once.
//   backward   the exact transpose as a gather: a thread makes dx of one pixel and adds up, in a
//              fixed order, what all outputs that had read it send back. dout comes from memory
//              about once, and up to four times from the caches; dx is written once.
#include "common.h"

template <int VECTOR>
__global__ void upsample_bilinear_forward_kernel(
    const STORE* __restrict__ x, STORE* __restrict__ out,
    const int* __restrict__ first_row, const REAL* __restrict__ row_share,        // (OH,)
    const int* __restrict__ first_column, const REAL* __restrict__ column_share,  // (OW,)
    int H, int W, int C, int OH, int OW) {
  const int vectors = C / VECTOR;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;  // in the row
  if (i >= OW * vectors) return;
  const int c = i % vectors * VECTOR, ow = i / vectors, oh = blockIdx.x % OH, n = blockIdx.x / OH;

  const int top = first_row[oh], bottom = min(top + 1, H - 1);
  const int left = first_column[ow], right = min(left + 1, W - 1);
  const REAL v = row_share[oh], u = column_share[ow];
  const STORE* top_row = x + (n * H + top) * W * C + c;
  const STORE* bottom_row = x + (n * H + bottom) * W * C + c;
  REAL top_left[VECTOR], top_right[VECTOR], bottom_left[VECTOR], bottom_right[VECTOR];
  load(top_row + left * C, top_left);
  load(top_row + right * C, top_right);
  load(bottom_row + left * C, bottom_left);
  load(bottom_row + right * C, bottom_right);
  REAL value[VECTOR];
#pragma unroll
  for (int k = 0; k < VECTOR; k++)
    value[k] = (1 - v) * ((1 - u) * top_left[k] + u * top_right[k])
               + v * ((1 - u) * bottom_left[k] + u * bottom_right[k]);
  store(out + blockIdx.x * OW * C + i * VECTOR, value);
}

template <int VECTOR>
__global__ void upsample_bilinear_backward_kernel(
    const STORE* __restrict__ dout, STORE* __restrict__ dx,
    const int* __restrict__ row_start, const int* __restrict__ row_stop,        // (H,)
    const REAL* __restrict__ row_weight,                                        // (H, row_taps)
    const int* __restrict__ column_start, const int* __restrict__ column_stop,  // (W,)
    const REAL* __restrict__ column_weight,                                     // (W, column_taps)
    int H, int W, int C, int OH, int OW, int row_taps, int column_taps) {
  const int vectors = C / VECTOR;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;  // in the row
  if (i >= W * vectors) return;
  const int c = i % vectors * VECTOR, w = i / vectors, h = blockIdx.x % H, n = blockIdx.x / H;

  const int ow0 = column_start[w], columns = column_stop[w] - ow0;
  const REAL* weights = column_weight + w * column_taps;
  REAL sum[VECTOR] = {};
  for (int oh = row_start[h]; oh < row_stop[h]; oh++) {
    const STORE* row = dout + ((n * OH + oh) * OW + ow0) * C + c;
    REAL of_row[VECTOR] = {};
#pragma unroll 4
    for (int k = 0; k < columns; k++) {
      REAL d[VECTOR];
      load(row + k * C, d);
#pragma unroll
      for (int v = 0; v < VECTOR; v++) of_row[v] += weights[k] * d[v];
    }
    const REAL weight = row_weight[h * row_taps + oh - row_start[h]];
#pragma unroll
    for (int v = 0; v < VECTOR; v++) sum[v] += weight * of_row[v];
  }
  store(dx + blockIdx.x * W * C + i * VECTOR, sum);
}
