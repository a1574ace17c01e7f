// RMSprop over the flat buffer of all parameters, the twin of rmsprop.py: a thread per parameter,
// one launch per step. Every array is read once; all but the gradient are written once.
// The learning rate is read from memory: so the same launch can be run again for the next step.
#include "common.h"

__global__ void rmsprop_update_kernel(
    REAL* __restrict__ p, const REAL* __restrict__ g, REAL* __restrict__ square_avg,
    REAL* __restrict__ buffer,  // of the momentum; null: none
    const unsigned char* __restrict__ group, const double* __restrict__ table,  // (P,), (2, 256)
    const double* __restrict__ lr, const REAL* __restrict__ norm,
    const REAL* __restrict__ loss_scale, int* counts,
    double alpha, REAL eps, REAL weight_decay, REAL momentum, int P) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool skip = norm && !(norm[0] - norm[0] == 0);  // infinite or NaN
  if (i == 0) counts[skip]++;
  if (skip || i >= P) return;
  const double scale = table[group[i]];
  if (scale == 0) return;  // frozen
  REAL gradient = loss_scale ? g[i] / loss_scale[0] : g[i];
  gradient += weight_decay * p[i];
  square_avg[i] = REAL(alpha) * square_avg[i] + REAL(1 - alpha) * gradient * gradient;
  REAL update = gradient / (sqrt(square_avg[i]) + eps);
  if (buffer) update = buffer[i] = momentum * buffer[i] + update;
  p[i] -= REAL(lr[0] * scale) * update;
}
