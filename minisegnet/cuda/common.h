// What all kernels share. A file is compiled for each pair of
//   REAL   the type that is computed in: float, or double to check gradients
//   STORE  the type that activations are stored in: REAL, or a 16-bit type in mixed precision
#pragma once
#ifndef REAL
#define REAL float
#endif
#ifndef STORE
#define STORE REAL
#endif

// Dynamic shared memory, `shared_bytes` of the launch, under a name of its own.
#ifdef CUDA_CPU
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(cuda_cpu::block->dynamic_shared)
#else
#if defined(HALF_TYPES)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
#define DYNAMIC_SHARED(T, name) \
  extern __shared__ __align__(16) char dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(dynamic_shared)
#endif

// N neighbouring numbers that are read or written in one go.
template <class T, int N>
struct __align__(N * sizeof(T)) Pack {
  T at[N];
};

template <int N>
__device__ __forceinline__ void load(const STORE* from, REAL (&to)[N]) {
  Pack<STORE, N> pack = *reinterpret_cast<const Pack<STORE, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = REAL(pack.at[i]);
}

template <int N>
__device__ __forceinline__ void store(STORE* to, const REAL (&from)[N]) {
  Pack<STORE, N> pack;
#pragma unroll
  for (int i = 0; i < N; i++) pack.at[i] = STORE(from[i]);
  *reinterpret_cast<Pack<STORE, N>*>(to) = pack;
}

// The sum over the 32 lanes of a warp, in a fixed order; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits >>= 1) value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}

// The sum over the threads of a block, in a fixed order; thread 0 gets it. All threads of the block
// must call it, their number a multiple of 32; `of_warps` is shared memory for 32 numbers.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* of_warps) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int warps = blockDim.x * blockDim.y * blockDim.z / 32;
  value = warp_sum(value);
  __syncthreads();  // of_warps may still be read from the sum before
  if (thread % 32 == 0) of_warps[thread / 32] = value;
  __syncthreads();
  if (thread < 32) value = warp_sum(thread < warps ? of_warps[thread] : T(0));
  return value;
}
