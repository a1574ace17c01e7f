// Sums down the columns of a matrix, in a fixed order: a block of 32 columns and up to 32 rows.
#pragma once

// The sum of this block's share of the rows of `from` (P, size), at the thread's column; the
// threads of the first row, threadIdx.y = 0, get it.
template <class T>
__device__ __forceinline__ REAL column_sum(const T* from, int P, int size, int column, REAL* rows) {
  REAL sum = 0;
  if (column < size) {
#pragma unroll 4
    for (int p = blockIdx.x * blockDim.y + threadIdx.y; p < P; p += gridDim.x * blockDim.y)
      sum += REAL(from[p * size + column]);
  }
  rows[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return 0;
  for (int row = 1; row < blockDim.y; row++) sum += rows[row * blockDim.x + threadIdx.x];
  return sum;
}
