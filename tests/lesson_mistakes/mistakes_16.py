"""Wrong answers to the exercises of lesson 16, and a part of the hint that each must get."""

GRADIENT = '''
def gradient_body():
    return r"""
    const int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= P) return;
    const REAL* z = logits + p * K;
    REAL largest = z[0];
    for (int k = 1; k < K; k++) largest = max(largest, z[k]);
    REAL sum = 0;
    for (int k = 0; k < K; k++) sum += exp(z[k] - largest);
    for (int k = 0; k < K; k++)
      dlogits[p * K + k] = dloss / P * (exp(z[k] - largest) / sum - (k == target[p]));
    """
'''
SUM = '''
def sum_body():
    return r"""
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x;
    row[t] = i < n ? x[i] : 0;
    __syncthreads();  // first
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
      if (t < half) row[t] += row[t + half];
      __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = row[0];
    """
'''


def changed(source, old, new):
    """Return `source` with one piece replaced, which must be there."""
    assert source.count(old) == 1, old
    return source.replace(old, new)


MISTAKES = [
    ("16.1", """
def launch_sizes(n, threads):
    return n // threads + 1, (n // threads + 1) * threads - n
""", "all where n is 256, 512"),
    ("16.1", """
def launch_sizes(n, threads):
    return n // threads, n % threads
""", "you want up"),
    ("16.1", """
def launch_sizes(n, threads):
    blocks = np.ceil(n / threads)
    return blocks, blocks * threads - n
""", "Whole numbers"),
    ("16.2", changed(GRADIENT, "    if (p >= P) return;\n", ""), "out of bounds, a read at byte"),
    ("16.2", changed(GRADIENT, "exp(z[k] - largest) / sum - (k == target[p])",
                     "(k == target[p]) - exp(z[k] - largest) / sum"), "sign"),
    ("16.2", changed(GRADIENT, "dloss / P * ", "dloss * "), "the number of pixels, P"),
    ("16.2", changed(GRADIENT, "dloss / P * ", "REAL(1) / P * "), "dloss) is not used"),
    ("16.2", changed(changed(GRADIENT, "sum += exp(z[k] - largest)", "sum += exp(z[k])"),
                     "(exp(z[k] - largest)", "(exp(z[k])"), "subtract the largest logit"),
    # Only the first class of each pixel is written.
    ("16.2", changed(GRADIENT, "for (int k = 0; k < K; k++)\n      dlogits",
                     "for (int k = 0; k < 1; k++)\n      dlogits"), "no thread wrote"),
    ("16.2", changed(GRADIENT, "REAL sum = 0;", "REAL sum = 0"), "error: expected"),
    ("16.2", changed(GRADIENT, "threadIdx.x;", "ThreadIdx.x;"), "your lines:1"),
    ("16.3", changed(SUM, "    __syncthreads();  // first\n", ""), "Where must all wait for all?"),
    ("16.3", changed(SUM, "      __syncthreads();\n", ""), "lacks a __syncthreads()"),
    ("16.3", changed(SUM, "if (t < half) row[t] += row[t + half];\n      __syncthreads();",
                     "if (t < half) { row[t] += row[t + half]; __syncthreads(); }"),
     "wait at __syncthreads"),
    ("16.3", changed(SUM, "row[t] = i < n ? x[i] : 0;", "if (i >= n) return;\n    row[t] = x[i];"),
     "some threads returned while others wait"),
    ("16.3", changed(SUM, "i < n ? x[i] : 0", "x[i]"), "out of bounds, a read at byte"),
    ("16.3", changed(SUM, "half > 0", "half > blockDim.x"), "nothing has been added"),
    ("16.1", """
def launch_sizes(n, threads):
    return -(-n // threads), n % threads
""", "of the last block have an element"),
    ("16.1", """
def launch_sizes(n, threads):
    return -(-n // threads), threads - n % threads
""", "nobody is idle"),
    ("16.2", changed(GRADIENT, "REAL largest = z[0];", "REAL largest = 0;"),
     "a sum of exps that are all 0"),
    ("16.2", changed(GRADIENT, "dloss / P * ", "1 / P * dloss * "), "1 / P is 0"),
    ("16.2", changed(GRADIENT, " - (k == target[p])", ""), "[k == y] is missing"),
    ("16.2", changed(GRADIENT, "dlogits[p * K + k]", "dlogits[k * P + p]"),
     "the classes of a pixel are neighbours"),
    ("16.2", changed(GRADIENT, "/ sum -", "-"), "divide by the sum"),
    ("16.3", changed(SUM, "half > 0", "half > 1"), "the last round"),
    ("16.3", changed(SUM, "sums[blockIdx.x]", "sums[0]"), "each has a place of its own"),
    ("16.3", changed(SUM, "row[t] = i < n ? x[i] : 0;", "if (i < n) row[t] = x[i];"),
     "with 0 if it has no element"),
    ("16.3", changed(SUM, "? x[i]", "? x[t]"), "has not asked for blockIdx.x"),
    ("16.3", changed(SUM, "if (t == 0) sums[blockIdx.x] = row[0]", "sums[blockIdx.x] = row[t]"),
     "several threads write to one place"),
]
