// A cuBLAS on the CPU for test_cuda_gemm.py: the functions that minisegnet/cuda/gemm.py calls, with
// the types of cublas_api.h, on host memory, column by column and in double. It refuses what cuBLAS
// refuses, and remembers what it was told, which `fake_state` tells.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { OP_N = 0, OP_T = 1 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };

typedef struct {
  int64_t magic, stream, workspace, workspace_bytes, math_mode, compute, products, streams_set;
} State;
static State state;  // of the last handle

const State* fake_state(void) { return &state; }

int cublasCreate_v2(State** handle) {
  memset(&state, 0, sizeof state);
  state.magic = 12345;
  *handle = &state;
  return SUCCESS;
}

int cublasSetStream_v2(State* handle, void* stream) {
  if (!handle || handle->magic != 12345) return NOT_INITIALIZED;
  handle->stream = (int64_t)stream;
  handle->streams_set++;
  handle->workspace = handle->workspace_bytes = 0;  // back to its own
  return SUCCESS;
}

int cublasSetWorkspace_v2(State* handle, void* workspace, size_t bytes) {
  if (!handle || handle->magic != 12345) return NOT_INITIALIZED;
  if ((int64_t)workspace % 256) return INVALID_VALUE;
  handle->workspace = (int64_t)workspace;
  handle->workspace_bytes = bytes;
  return SUCCESS;
}

int cublasSetMathMode(State* handle, int mode) {
  if (!handle || handle->magic != 12345) return NOT_INITIALIZED;
  handle->math_mode = mode;
  return SUCCESS;
}

static double get(const void* array, int type, int64_t i) {
  if (type == R_64F) return ((const double*)array)[i];
  if (type == R_32F) return ((const float*)array)[i];
  uint16_t bits = ((const uint16_t*)array)[i];
  if (type == R_16BF) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
  double value = exponent ? 1024 + fraction : fraction;
  for (int i = exponent ? exponent : 1; i < 25; i++) value /= 2;
  for (int i = 25; i < exponent; i++) value *= 2;
  return bits & 0x8000 ? -value : value;
}

static int to_nearest(double value) {  // not negative; a half goes to the even number
  int below = (int)value;
  double rest = value - below;
  return below + (rest > 0.5 || (rest == 0.5 && below % 2));
}

static void put(void* array, int type, int64_t i, double value) {
  if (type == R_64F) ((double*)array)[i] = value;
  else if (type == R_32F) ((float*)array)[i] = (float)value;
  else if (type == R_16BF) {
    float narrow = (float)value;
    uint32_t wide;
    memcpy(&wide, &narrow, 4);
    ((uint16_t*)array)[i] = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  } else {
    int exponent = 15, bits = 0x7e00;  // not a number
    double size = value < 0 ? -value : value;
    if (size >= 65520) bits = 0x7c00;
    else if (size < 1.0 / 16384) bits = to_nearest(size * 16777216);  // 0 and the subnormal ones
    else if (size == size) {
      for (; size >= 2; exponent++) size /= 2;
      for (; size < 1; exponent--) size *= 2;
      bits = (exponent << 10) + to_nearest((size - 1) * 1024);
    }
    ((uint16_t*)array)[i] = bits | (value < 0 ? 0x8000 : 0);
  }
}

int cublasGemmEx(State* handle, int transa, int transb, int m, int n, int k, const void* alpha,
                 const void* A, int Atype, int lda, const void* B, int Btype, int ldb,
                 const void* beta, void* C, int Ctype, int ldc, int compute, int algorithm) {
  if (!handle || handle->magic != 12345) return NOT_INITIALIZED;
  if (m < 0 || n < 0 || k < 0 || (transa != OP_N && transa != OP_T) ||
      (transb != OP_N && transb != OP_T) || lda < (transa == OP_N ? m : k) ||
      ldb < (transb == OP_N ? k : n) || ldc < m || algorithm != -1) return INVALID_VALUE;
  int half = Atype == R_16F || Atype == R_16BF;
  int in_64 = compute == COMPUTE_64F;
  if (Atype != Btype || (half ? Ctype != Atype && Ctype != R_32F : Ctype != Atype) ||
      in_64 != (Atype == R_64F) || (compute == COMPUTE_32F_FAST_TF32 && Atype != R_32F) ||
      (!in_64 && compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32)) return NOT_SUPPORTED;
  double a = in_64 ? *(const double*)alpha : *(const float*)alpha;
  double b = in_64 ? *(const double*)beta : *(const float*)beta;
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = 0; i < m; i++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++)
        sum += get(A, Atype, transa == OP_N ? i + l * lda : l + i * lda) *
               get(B, Btype, transb == OP_N ? l + j * ldb : j + l * ldb);
      double before = b ? b * get(C, Ctype, i + j * ldc) : 0;  // C is not read where beta is 0
      put(C, Ctype, i + j * ldc, a * sum + before);
    }
  handle->compute = compute;
  handle->products++;
  return SUCCESS;
}
