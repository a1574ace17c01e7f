// Activation functions, the twin of activations.py: a thread works on VECTOR neighbouring numbers,
// whatever the shape. Each array is read or written once. The formulas are in activations.h.
#include "activations.h"

template <int KIND, int VECTOR>
__global__ void activation_forward_kernel(const STORE* __restrict__ x, STORE* __restrict__ out,
                                          int size) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (i >= size) return;
  REAL value[VECTOR];
  load(x + i, value);
#pragma unroll
  for (int v = 0; v < VECTOR; v++) value[v] = activation<KIND>(value[v]);
  store(out + i, value);
}

// `kept` is the forward's cache: its input, or its output.
template <int KIND, int VECTOR>
__global__ void activation_backward_kernel(const STORE* __restrict__ dout,
                                           const STORE* __restrict__ kept, STORE* __restrict__ dx,
                                           int size) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (i >= size) return;
  REAL value[VECTOR], d[VECTOR];
  load(kept + i, value);
  load(dout + i, d);
#pragma unroll
  for (int v = 0; v < VECTOR; v++) d[v] *= activation_slope<KIND>(value[v]);
  store(dx + i, d);
}
