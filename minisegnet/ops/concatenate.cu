// Concatenation along the channels and the split, the twin of concatenate.py.
//
// A thread copies VECTOR neighbouring channels of one pixel: it finds by the channel which of the
// narrow maps holds them. Every number is read once and written once. One launch serves up to six
// narrow maps, of C0 ... C5 channels, 0 where there is none: channels `start` to `start + width` of
// the wide map (P pixels, OC channels).
#include "common.h"

// Move on to the next narrow map unless channel `at` lies in this one.
template <class T>
__device__ __forceinline__ void next(T*& map, int& C, int& at, T* next_map, int next_C) {
  if (at < C) return;
  at -= C;
  map = next_map;
  C = next_C;
}

template <int VECTOR>
__global__ void concatenate_forward_kernel(
    const STORE* __restrict__ x0, const STORE* __restrict__ x1, const STORE* __restrict__ x2,
    const STORE* __restrict__ x3, const STORE* __restrict__ x4, const STORE* __restrict__ x5,
    STORE* __restrict__ out, int C0, int C1, int C2, int C3, int C4, int C5,
    int size, int width, int start, int OC) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const int vectors = width / VECTOR, p = i / vectors, c = i % vectors * VECTOR;
  const STORE* x = x0;
  int C = C0, at = c;
  next(x, C, at, x1, C1);
  next(x, C, at, x2, C2);
  next(x, C, at, x3, C3);
  next(x, C, at, x4, C4);
  next(x, C, at, x5, C5);
  REAL value[VECTOR];
  load(x + p * C + at, value);
  store(out + p * OC + start + c, value);
}

template <int VECTOR>
__global__ void concatenate_backward_kernel(
    const STORE* __restrict__ dout, STORE* __restrict__ dx0, STORE* __restrict__ dx1,
    STORE* __restrict__ dx2, STORE* __restrict__ dx3, STORE* __restrict__ dx4,
    STORE* __restrict__ dx5, int C0, int C1, int C2, int C3, int C4, int C5,
    int size, int width, int start, int OC) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const int vectors = width / VECTOR, p = i / vectors, c = i % vectors * VECTOR;
  STORE* dx = dx0;
  int C = C0, at = c;
  next(dx, C, at, dx1, C1);
  next(dx, C, at, dx2, C2);
  next(dx, C, at, dx3, C3);
  next(dx, C, at, dx4, C4);
  next(dx, C, at, dx5, C5);
  REAL value[VECTOR];
  load(dout + p * OC + start + c, value);
  store(dx + p * C + at, value);
}
