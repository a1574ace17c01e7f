// Sums, copies and casts of whole maps, the twin of elementwise.py.
//
// A thread owns VECTOR neighbouring elements, which it reads and writes in one go; what is left of
// the last ones, and arrays that do not start at a multiple of 16 bytes, it takes one by one. Every
// array is read or written once.
#include "common.h"

constexpr int VECTOR = 4;

template <class T>
__device__ __forceinline__ bool is_aligned(const T* from) {
  return reinterpret_cast<unsigned long long>(from) % sizeof(Pack<T, VECTOR>) == 0;
}

__global__ void add_kernel(const STORE* __restrict__ a, const STORE* __restrict__ b,
                           STORE* __restrict__ out, int size) {
  const long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * VECTOR;
  if (i + VECTOR <= size && is_aligned(a) && is_aligned(b)) {
    REAL left[VECTOR], right[VECTOR];
    load(a + i, left);
    load(b + i, right);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) left[v] += right[v];
    store(out + i, left);
  } else {
    for (long long k = i; k < size && k < i + VECTOR; k++) out[k] = STORE(REAL(a[k]) + REAL(b[k]));
  }
}

__global__ void add_into_kernel(STORE* a, const STORE* b, int size) {
  const long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * VECTOR;
  if (i + VECTOR <= size && is_aligned(a) && is_aligned(b)) {
    REAL left[VECTOR], right[VECTOR];
    load(a + i, left);
    load(b + i, right);
#pragma unroll
    for (int v = 0; v < VECTOR; v++) left[v] += right[v];
    store(a + i, left);
  } else {
    for (long long k = i; k < size && k < i + VECTOR; k++) a[k] = STORE(REAL(a[k]) + REAL(b[k]));
  }
}

__global__ void copy_kernel(const STORE* __restrict__ a, STORE* __restrict__ out, int size) {
  const long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * VECTOR;
  if (i + VECTOR <= size && is_aligned(a)) {
    REAL value[VECTOR];
    load(a + i, value);
    store(out + i, value);
  } else {
    for (long long k = i; k < size && k < i + VECTOR; k++) out[k] = a[k];
  }
}

// Rounds to the type of activations. A parameter starts anywhere: then its elements go one by one.
__global__ void cast_kernel(const REAL* __restrict__ a, STORE* __restrict__ out, int size) {
  const long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * VECTOR;
  if (i + VECTOR <= size && is_aligned(a)) {
    const auto value = *reinterpret_cast<const Pack<REAL, VECTOR>*>(a + i);
    store(out + i, value.at);
  } else {
    for (long long k = i; k < size && k < i + VECTOR; k++) out[k] = STORE(a[k]);
  }
}
