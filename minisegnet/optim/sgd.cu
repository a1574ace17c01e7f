// SGD over the flat buffer of all parameters, the twin of sgd.py: a thread per parameter, one
// launch per step. p, g and the momentum's buffer are read once, p and the buffer written once.
// The learning rate is read from memory: so the same launch can be run again for the next step.
#include "common.h"

__global__ void sgd_update_kernel(
    REAL* __restrict__ p, const REAL* __restrict__ g, REAL* __restrict__ buffer,  // null: none
    const unsigned char* __restrict__ group, const double* __restrict__ table,    // (P,), (2, 256)
    const double* __restrict__ lr, const REAL* __restrict__ norm,
    const REAL* __restrict__ loss_scale, int* counts,
    REAL momentum, REAL weight_decay, bool nesterov, int P) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool skip = norm && !(norm[0] - norm[0] == 0);  // infinite or NaN
  if (i == 0) counts[skip]++;
  if (skip || i >= P) return;
  const double scale = table[group[i]];
  if (scale == 0) return;  // frozen
  const REAL gradient = loss_scale ? g[i] / loss_scale[0] : g[i];
  REAL direction = gradient + weight_decay * p[i];
  if (buffer) {
    buffer[i] = momentum * buffer[i] + direction;
    direction = nesterov ? direction + momentum * buffer[i] : buffer[i];
  }
  p[i] -= REAL(lr[0] * scale) * direction;
}
