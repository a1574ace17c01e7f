// The losses on coarse logits (N, h, w, K) enlarged to (N, H, W): the large logits never exist,
// only two to four numbers per fine pixel do. Launched by upsampled_cuda.py; formulas in softmax.h.
//
// Where a fine pixel lies between the coarse ones is computed in integers, exactly, so that all
// kernels agree: a pixel belongs to the cell between the coarse pixels (i, j) and (i+1, j+1).
//
//   forward, coefficients, prediction
//                 a thread holds one fine pixel. A block works on a piece of a fine row: the two
//                 coarse rows around it are read once, blended and put into shared memory, from
//                 where every thread blends its two columns, class by class.
//   overlap       a thread owns CLASSES classes and walks over cells: four coarse logits per class
//                 in registers serve all pixels of a cell. Neighbouring threads hold neighbouring
//                 classes: they read the same pixel, in one broadcast.
//   backward      the same walk over the (tile+1)^2 cells around a tile of coarse pixels: what a
//                 cell gives to its four corners goes through shared memory, and every coarse pixel
//                 collects from four cells. No atomics; exp is taken (tile+1)^2 / tile^2 times per
//                 fine pixel and class, 1.27 for tile = 8.
#include "softmax.h"

constexpr int CLASSES = 4;  // of one thread that walks over cells

// Where a fine pixel reads: coarse pixels first and first + 1, the second with `share`.
struct Source {
  int first;
  REAL share;
};

// max(0, (at + 0.5) * in / out - 0.5) in units of 1 / (2 out).
__device__ __forceinline__ int position_of(int at, int in, int out) {
  return max((2 * at + 1) * in - out, 0);
}

// The share of the second, where the first is known; the last coarse pixel has no second.
__device__ __forceinline__ REAL share_of(int at, int first, int in, int out) {
  const REAL share = REAL(position_of(at, in, out) - 2 * out * first) * (REAL(1) / (2 * out));
  return first == in - 1 ? REAL(0) : share;
}

__device__ __forceinline__ Source source_of(int at, int in, int out) {
  const int first = min(position_of(at, in, out) / (2 * out), in - 1);
  return {first, share_of(at, first, in, out)};
}

// The first fine pixel whose source is `first` or beyond.
__device__ __forceinline__ int start_of(int first, int in, int out) {
  if (first <= 0) return 0;
  if (first >= in) return out;
  return max((2 * first + 1) * out - in + 2 * in - 1, 0) / (2 * in);  // rounded up
}

__device__ __forceinline__ REAL blend(REAL a, REAL b, REAL share) { return a + share * (b - a); }

// A piece of a fine row, its pixels one per thread.
struct Piece {
  int n, Y, X, p;  // p counts all fine pixels
  bool is_inside;
  Source row, column;
  int first_column, columns;  // coarse ones, that the piece reads
};

__device__ __forceinline__ Piece piece_of(int job, int length, int pieces, int h, int w, int H,
                                          int W) {
  Piece piece;
  const int X0 = job % pieces * length, last = min(X0 + length, W) - 1;
  piece.Y = job / pieces % H;
  piece.n = job / pieces / H;
  piece.X = min(X0 + int(threadIdx.x), last);
  piece.is_inside = X0 + int(threadIdx.x) <= last;
  piece.p = (piece.n * H + piece.Y) * W + piece.X;
  piece.row = source_of(piece.Y, h, H);
  piece.column = source_of(piece.X, w, W);
  piece.first_column = source_of(X0, w, W).first;
  piece.columns = min(source_of(last, w, W).first + 1, w - 1) - piece.first_column + 1;
  return piece;
}

// Two coarse rows (w, K) and how they are blended.
struct Rows {
  const STORE *top, *bottom;
  const REAL* shift;  // (K,) added to the logits, or null
  REAL share;

  __device__ __forceinline__ REAL at(int column, int k, int K) const {
    const REAL more = shift ? shift[k] : REAL(0);
    return blend(REAL(top[column * K + k]) + more, REAL(bottom[column * K + k]) + more, share);
  }
};

__device__ __forceinline__ Rows rows_of(const STORE* coarse, const REAL* shift, int n, Source row,
                                        int h, int w, int K) {
  const STORE* top = coarse + (n * h + row.first) * w * K;
  return {top, row.first + 1 < h ? top + w * K : top, shift, row.share};
}

// Blend the rows under the piece for classes k0 .. k0+size: wide (columns, stride).
__device__ __forceinline__ void stage(const Rows& rows, const Piece& piece, int k0, int size,
                                      int stride, int K, REAL* wide) {
  __syncthreads();  // the classes before have been read
  for (int i = threadIdx.x; i < piece.columns * size; i += blockDim.x)
    wide[i / size * stride + i % size] = rows.at(piece.first_column + i / size, k0 + i % size, K);
  __syncthreads();
}

// The staged logits of a thread's pixel.
struct Pixel {
  const REAL *left, *right;
  REAL share;

  __device__ __forceinline__ REAL at(int k) const { return blend(left[k], right[k], share); }
};

__device__ __forceinline__ Pixel pixel_of(const Piece& piece, const REAL* wide, int stride,
                                          int w) {
  const REAL* left = wide + (piece.column.first - piece.first_column) * stride;
  return {left, piece.column.first + 1 < w ? left + stride : left, piece.column.share};
}

// The logit of a pixel's class, from the coarse ones.
__device__ __forceinline__ REAL logit_of(const Rows& rows, Source column, int k, int w, int K) {
  return blend(rows.at(column.first, k, K), rows.at(min(column.first + 1, w - 1), k, K),
               column.share);
}

__global__ void upsampled_forward_kernel(
    const STORE* __restrict__ coarse, const unsigned char* __restrict__ target,
    const REAL* __restrict__ weight, const REAL* __restrict__ counted,  // (K,), or null
    const REAL* __restrict__ smooth, const REAL* __restrict__ shift,    // (K,), or null
    REAL* __restrict__ lse, REAL* __restrict__ on_target, REAL* __restrict__ sums,
    REAL gamma, REAL smooth_total, int ignore_index, int N, int h, int w, int H, int W, int K,
    int length, int pieces, int chunk) {
  DYNAMIC_SHARED(REAL, wide);
  __shared__ REAL of_warps[32];
  REAL loss = 0, denominator = 0;
  for (int job = blockIdx.x; job < N * H * pieces; job += gridDim.x) {
    const Piece piece = piece_of(job, length, pieces, h, w, H, W);
    const Rows rows = rows_of(coarse, shift, piece.n, piece.row, h, w, K);
    const Label label = label_of(target, piece.p, piece.is_inside, ignore_index, K);
    const Pixel pixel = pixel_of(piece, wide, chunk | 1, w);
    const REAL z_y = label.is_valid ? logit_of(rows, piece.column, label.y, w, K) : REAL(0);
    LogSum sum;
    REAL smooth_below = 0;  // sum_k smooth_k (z_y - z_k)
    for (int k0 = 0; k0 < K; k0 += chunk) {
      const int size = min(chunk, K - k0);
      stage(rows, piece, k0, size, chunk | 1, K, wide);  // an odd stride: no bank conflicts
      if (!label.is_valid) continue;
      for (int k = 0; k < size; k += 4) {
        REAL z[4];
#pragma unroll
        for (int i = 0; i < 4; i++) z[i] = k + i < size ? pixel.at(k + i) : NOTHING;
        sum.add(z);
        if (smooth)
          for (int i = 0; i < 4 && k + i < size; i++)
            smooth_below += smooth[k0 + k + i] * (z_y - z[i]);
      }
    }
    if (!label.is_valid) continue;
    const REAL lse_p = sum.value();
    lse[piece.p] = lse_p;
    if (!weight) continue;
    const REAL log_prob = at_most_zero(z_y - lse_p);
    const PixelTerms terms = pixel_terms(log_prob, weight[label.y], gamma);
    on_target[piece.p] = terms.on_target;
    loss += terms.loss + smooth_below - smooth_total * log_prob;
    denominator += counted[label.y];
  }
  store_mean(loss, denominator, of_warps, sums);
}

// What a pixel's gradient needs of an overlap: its mean, and its pull with that of the pixel loss.
__global__ void upsampled_coefficients_kernel(
    const STORE* __restrict__ coarse, const unsigned char* __restrict__ target,
    const REAL* __restrict__ lse, const REAL* __restrict__ on_target,  // or null
    const REAL* __restrict__ scale,                                    // (1,), or null
    const REAL* __restrict__ dintersection, const REAL* __restrict__ dtotal,
    REAL* __restrict__ pull, REAL* __restrict__ mean, int ignore_index, int N, int h, int w,
    int H, int W, int K, int length, int pieces, int chunk) {
  DYNAMIC_SHARED(REAL, wide);
  for (int job = blockIdx.x; job < N * H * pieces; job += gridDim.x) {
    const Piece piece = piece_of(job, length, pieces, h, w, H, W);
    const Rows rows = rows_of(coarse, nullptr, piece.n, piece.row, h, w, K);
    const Label label = label_of(target, piece.p, piece.is_inside, ignore_index, K);
    const Pixel pixel = pixel_of(piece, wide, chunk | 1, w);
    const REAL lse_p = label.is_valid ? lse[piece.p] : REAL(0);
    REAL sum = 0;  // sum_k p_k dtotal_k
    for (int k0 = 0; k0 < K; k0 += chunk) {
      const int size = min(chunk, K - k0);
      stage(rows, piece, k0, size, chunk | 1, K, wide);
      if (!label.is_valid) continue;
#pragma unroll 4
      for (int k = 0; k < size; k++)
        sum += exp(min(pixel.at(k) - lse_p, REAL(0))) * dtotal[k0 + k];
    }
    if (!label.is_valid) continue;
    const REAL z_y = logit_of(rows, piece.column, label.y, w, K);
    const REAL pull_p = on_target ? scale[0] * on_target[piece.p] : REAL(0);
    pull[piece.p] = pull_p - exp(min(z_y - lse_p, REAL(0))) * dintersection[label.y];
    mean[piece.p] = sum;
  }
}

__global__ void upsampled_prediction_kernel(
    const STORE* __restrict__ coarse, unsigned char* __restrict__ prediction, int N, int h, int w,
    int H, int W, int K, int length, int pieces, int chunk) {
  DYNAMIC_SHARED(REAL, wide);
  for (int job = blockIdx.x; job < N * H * pieces; job += gridDim.x) {
    const Piece piece = piece_of(job, length, pieces, h, w, H, W);
    const Rows rows = rows_of(coarse, nullptr, piece.n, piece.row, h, w, K);
    const Pixel pixel = pixel_of(piece, wide, chunk | 1, w);
    REAL highest = 0;
    int best = 0;
    for (int k0 = 0; k0 < K; k0 += chunk) {
      const int size = min(chunk, K - k0);
      stage(rows, piece, k0, size, chunk | 1, K, wide);
      for (int k = 0; k < size; k++) {
        const REAL z = pixel.at(k);
        if (k0 + k == 0 || z > highest) {  // of equal ones, the first
          highest = z;
          best = k0 + k;
        }
      }
    }
    if (piece.is_inside) prediction[piece.p] = best;
  }
}

// The coarse logits of a cell's corners, CLASSES classes k0 + x + v*blockDim.x of a thread.
struct Cell {
  REAL top_left[CLASSES], top_right[CLASSES], bottom_left[CLASSES], bottom_right[CLASSES];
};

__device__ __forceinline__ Cell cell_of(const STORE* coarse, const REAL* shift, int n, int i,
                                        int j, int k0, int h, int w, int K) {
  Cell cell;
  const STORE* corner = coarse + ((n * h + i) * w + j) * K;
  const int down = i + 1 < h ? w * K : 0, right = j + 1 < w ? K : 0;
#pragma unroll
  for (int v = 0; v < CLASSES; v++) {
    const int k = min(k0 + int(threadIdx.x + v * blockDim.x), K - 1);
    const REAL more = shift ? shift[k] : REAL(0);
    cell.top_left[v] = REAL(corner[k]) + more;
    cell.top_right[v] = REAL(corner[right + k]) + more;
    cell.bottom_left[v] = REAL(corner[down + k]) + more;
    cell.bottom_right[v] = REAL(corner[down + right + k]) + more;
  }
  return cell;
}

__global__ void upsampled_overlap_kernel(
    const STORE* __restrict__ coarse, const unsigned char* __restrict__ target,
    const REAL* __restrict__ lse, REAL* __restrict__ sums,  // (gridDim.x, 3, K)
    int ignore_index, int N, int h, int w, int H, int W, int K) {
  DYNAMIC_SHARED(REAL, rows);
  const int k0 = blockIdx.y * blockDim.x * CLASSES;
  REAL intersection[CLASSES] = {}, total[CLASSES] = {}, count[CLASSES] = {};
  for (int at = blockIdx.x * blockDim.y + threadIdx.y; at < N * h * w;
       at += gridDim.x * blockDim.y) {
    const int j = at % w, i = at / w % h, n = at / w / h;
    const Cell cell = cell_of(coarse, nullptr, n, i, j, k0, h, w, K);
    const int X0 = start_of(j, w, W), X1 = start_of(j + 1, w, W);
    for (int Y = start_of(i, h, H); Y < start_of(i + 1, h, H); Y++) {
      const REAL down = share_of(Y, i, h, H);
      REAL left[CLASSES], right[CLASSES];
#pragma unroll
      for (int v = 0; v < CLASSES; v++) {
        left[v] = blend(cell.top_left[v], cell.bottom_left[v], down);
        right[v] = blend(cell.top_right[v], cell.bottom_right[v], down);
      }
      for (int X = X0; X < X1; X++) {
        const int p = (n * H + Y) * W + X;
        const Label label = label_of(target, p, true, ignore_index, K);
        if (!label.is_valid) continue;
        const REAL lse_p = lse[p], across = share_of(X, j, w, W);
#pragma unroll
        for (int v = 0; v < CLASSES; v++) {
          const REAL prob = exp(at_most_zero(blend(left[v], right[v], across) - lse_p));
          const bool is_target = k0 + int(threadIdx.x + v * blockDim.x) == label.y;
          total[v] += prob;
          intersection[v] += is_target ? prob : REAL(0);
          count[v] += is_target ? REAL(1) : REAL(0);
        }
      }
    }
  }
  store_overlap(intersection, total, count, rows, sums + blockIdx.x * 3 * K, k0, K);
}

__global__ void upsampled_backward_kernel(
    const STORE* __restrict__ coarse, const unsigned char* __restrict__ target,
    const REAL* __restrict__ smooth, const REAL* __restrict__ shift,    // (K,), or null
    const REAL* __restrict__ lse, const REAL* __restrict__ on_target,   // (N, H, W)
    const REAL* __restrict__ mean, const REAL* __restrict__ dtotal,     // (N, H, W), (K,), or null
    const REAL* __restrict__ scale, const REAL* __restrict__ loss_scale,  // (1,), or null
    STORE* __restrict__ dcoarse, REAL dloss, REAL smooth_total, int ignore_index, int h, int w,
    int H, int W, int K, int tile) {
  DYNAMIC_SHARED(REAL, corners);  // (cells, 4, classes)
  const int classes = blockDim.x * CLASSES, k0 = blockIdx.y * classes, side = tile + 1;
  const int tiles_across = (w + tile - 1) / tile, tiles_down = (h + tile - 1) / tile;
  const int i0 = blockIdx.x / tiles_across % tiles_down * tile - 1;  // of the first cell
  const int j0 = blockIdx.x % tiles_across * tile - 1, n = blockIdx.x / tiles_across / tiles_down;

  const int first_class = k0 + threadIdx.x, step = blockDim.x;  // of the thread's classes
  REAL dtotal_k[CLASSES];
#pragma unroll
  for (int v = 0; v < CLASSES; v++)
    dtotal_k[v] = smooth_total + (dtotal ? dtotal[min(first_class + v * step, K - 1)] : REAL(0));

  for (int at = threadIdx.y; at < side * side; at += blockDim.y) {
    const int i = i0 + at / side, j = j0 + at % side;
    REAL give[4][CLASSES] = {};  // to the corners of the cell
    if (i >= 0 && i < h && j >= 0 && j < w) {
      const Cell cell = cell_of(coarse, shift, n, i, j, k0, h, w, K);
      const int X0 = start_of(j, w, W), X1 = start_of(j + 1, w, W);
      for (int Y = start_of(i, h, H); Y < start_of(i + 1, h, H); Y++) {
        const REAL down = share_of(Y, i, h, H);
        REAL left[CLASSES], right[CLASSES], dleft[CLASSES] = {}, dright[CLASSES] = {};
        REAL to_left = 0, to_right = 0;  // shares of the row's pixels, for label smoothing
#pragma unroll
        for (int v = 0; v < CLASSES; v++) {
          left[v] = blend(cell.top_left[v], cell.bottom_left[v], down);
          right[v] = blend(cell.top_right[v], cell.bottom_right[v], down);
        }
        for (int X = X0; X < X1; X++) {
          const int p = (n * H + Y) * W + X;
          const Label label = label_of(target, p, true, ignore_index, K);
          if (!label.is_valid) continue;
          const REAL lse_p = lse[p], pull = on_target[p], across = share_of(X, j, w, W);
          const REAL common = mean ? pull - mean[p] : pull;
#pragma unroll
          for (int v = 0; v < CLASSES; v++) {
            const REAL prob = exp(min(blend(left[v], right[v], across) - lse_p, REAL(0)));
            REAL dz = prob * (common + dtotal_k[v]);
            if (first_class + v * step == label.y) dz -= pull;
            dleft[v] += (1 - across) * dz;
            dright[v] += across * dz;
          }
          to_left += 1 - across;
          to_right += across;
        }
#pragma unroll
        for (int v = 0; v < CLASSES; v++) {
          if (smooth) {
            const REAL smooth_k = smooth[min(first_class + v * step, K - 1)];
            dleft[v] -= to_left * smooth_k;
            dright[v] -= to_right * smooth_k;
          }
          give[0][v] += (1 - down) * dleft[v];
          give[1][v] += (1 - down) * dright[v];
          give[2][v] += down * dleft[v];
          give[3][v] += down * dright[v];
        }
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; corner++)
#pragma unroll
      for (int v = 0; v < CLASSES; v++)
        corners[(at * 4 + corner) * classes + v * blockDim.x + threadIdx.x] = give[corner][v];
  }
  __syncthreads();

  // A coarse pixel is a corner of four cells.
  const REAL factor =
      dloss * (scale ? scale[0] : REAL(1)) * (loss_scale ? loss_scale[0] : REAL(1));
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int at = thread; at < tile * tile * classes; at += blockDim.x * blockDim.y) {
    const int k = at % classes, column = at / classes % tile, row = at / classes / tile;
    const int i = i0 + 1 + row, j = j0 + 1 + column;
    if (i >= h || j >= w || k0 + k >= K) continue;
    const REAL* above = corners + (row * side + column) * 4 * classes + k;
    const REAL* below = above + side * 4 * classes;
    const REAL sum = below[4 * classes] + below[classes]            // top left, top right
                     + above[6 * classes] + above[3 * classes];     // bottom left, bottom right
    dcoarse[((n * h + i) * w + j) * K + k0 + k] = STORE(factor * sum);
  }
}
