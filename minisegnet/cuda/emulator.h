// CUDA C on the CPU: a kernel compiled with g++ behind this header runs block by block, and every
// CUDA thread of a block is a fiber, a function with a stack of its own that can stop in the middle.
//
//   __syncthreads()      a fiber stops; when all of the block have stopped there, all go on
//   __shfl_..., __any_.. the lanes of a warp stop, exchange numbers, and go on
//   shared memory        filled with NaN before each block: what is read was written, or shows
//
// Between two stops a fiber runs alone, so a missing barrier does not fail by chance: it shows as a
// result that changes with the order of the fibers, "forward", "reverse" or "random". Not covered:
// the memory model between barriers, inline PTX, bank conflicts, speed. Needs g++ >= 9, -std=c++17.
#pragma once
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#include <tuple>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// ---------------------------------------------------------------- words of CUDA C

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// Static shared memory lives in this library's thread-local block, which nothing else uses.
#define __shared__ static thread_local
#define CUDA_CPU 1

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
constexpr int warpSize = 32;

namespace cuda_cpu {

constexpr size_t STACK_BYTES = 64 * 1024;
enum class State : uint8_t { ready, at_barrier, at_warp_exchange, finished };

struct Fiber {
  void* stack_pointer;
  char* stack;
  State state;
  uint3 thread;
  unsigned index;  // threadIdx, flattened
  unsigned mask;   // lanes that a warp exchange waits for
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> exchanged;  // what each lane brought to a warp exchange
  std::vector<unsigned> order;      // of the lanes of a warp, then of the warps
  char* dynamic_shared;
  Fiber* running;
  void* scheduler_stack_pointer;
  uint3 index;
  dim3 size, grid;
  void (*body)(void*);
  void* arguments;
  int votes, votes_of_last_barrier;
  uint64_t random;
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

inline Block* block = nullptr;       // the one that runs
inline const char* kernel_name = "";

[[noreturn]] inline void stop(const char* why) {
  const uint3& b = block->index;
  fprintf(stderr, "%s: %s in block (%u, %u, %u)\n", kernel_name, why, b.x, b.y, b.z);
  fflush(stderr);
  _exit(3);
}

// ---------------------------------------------------------------- switching stacks

inline void fiber_main();

#if defined(__x86_64__)
extern "C" void cuda_cpu_switch(void** save, void* load);
asm(".pushsection .text\n.weak cuda_cpu_switch\n.type cuda_cpu_switch,@function\ncuda_cpu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.popsection");
inline void resume(Fiber& f) { cuda_cpu_switch(&block->scheduler_stack_pointer, f.stack_pointer); }
inline void leave(Fiber& f) { cuda_cpu_switch(&f.stack_pointer, block->scheduler_stack_pointer); }
inline void prepare(Fiber& f) {
  void** top = reinterpret_cast<void**>(f.stack + STACK_BYTES);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);  // where the first switch returns to
  f.stack_pointer = top - 6;                      // below it the six saved registers
}
#else
inline void resume(Fiber& f) { swapcontext(&block->context, &f.context); }
inline void leave(Fiber& f) { swapcontext(&f.context, &block->context); }
inline void prepare(Fiber& f) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = STACK_BYTES;
  f.context.uc_link = nullptr;
  makecontext(&f.context, reinterpret_cast<void (*)()>(fiber_main), 0);
}
#endif

inline void fiber_main() {
  block->body(block->arguments);
  block->running->state = State::finished;
  leave(*block->running);
}

inline void wait_in(State state, unsigned mask = ~0u) {
  Fiber* me = block->running;
  me->state = state;
  me->mask = mask;
  leave(*me);
}

// ---------------------------------------------------------------- one block

// Let the lanes of a warp go on whose partners of the exchange are all there.
inline bool complete_exchanges(unsigned first, unsigned lanes) {
  bool any = false;
  for (unsigned i = 0; i < lanes; i++) {
    Fiber& f = block->fibers[first + i];
    if (f.state != State::at_warp_exchange) continue;
    if (!(f.mask >> i & 1)) stop("a lane takes part in a warp exchange whose mask leaves it out");
    bool all = true;
    for (unsigned j = 0; j < lanes; j++) {
      if (!(f.mask >> j & 1)) continue;
      State state = block->fibers[first + j].state;
      if (state == State::at_barrier) stop("lanes of one warp wait at different barriers");
      if (state == State::finished) stop("a warp exchange waits for a lane that has returned");
      all &= state == State::at_warp_exchange;
    }
    if (!all) continue;
    unsigned mask = f.mask;
    for (unsigned j = 0; j < lanes; j++)
      if (mask >> j & 1) block->fibers[first + j].state = State::ready;
    any = true;
  }
  return any;
}

inline void shuffle(std::vector<unsigned>& order) {
  for (size_t i = order.size(); i > 1; i--) {  // Fisher-Yates with a linear congruential generator
    block->random = block->random * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(order[i - 1], order[(block->random >> 33) % i]);
  }
}

inline void run_block() {
  unsigned threads = block->fibers.size(), warps = (threads + 31) / 32;
  for (Fiber& f : block->fibers) { f.state = State::ready; prepare(f); }
  block->votes = 0;
  for (;;) {
    unsigned finished = 0, at_barrier = 0;
    bool progress = false;
    for (unsigned k = 0; k < warps; k++) {
      unsigned warp = block->order[32 + k], first = warp * 32;
      unsigned lanes = std::min(32u, threads - first);
      do {
        for (unsigned i = 0; i < 32; i++) {
          unsigned lane = block->order[i];
          if (lane >= lanes || block->fibers[first + lane].state != State::ready) continue;
          block->running = &block->fibers[first + lane];
          progress = true;
          resume(*block->running);
        }
      } while (complete_exchanges(first, lanes));
      for (unsigned i = 0; i < lanes; i++) {
        finished += block->fibers[first + i].state == State::finished;
        at_barrier += block->fibers[first + i].state == State::at_barrier;
      }
    }
    if (finished == threads) return;
    if (at_barrier == threads) {
      block->votes_of_last_barrier = block->votes;
      block->votes = 0;
      for (Fiber& f : block->fibers) f.state = State::ready;
    } else if (at_barrier && at_barrier + finished == threads) {
      stop("some threads returned while others wait at __syncthreads");
    } else if (!progress) {
      stop("deadlock");
    }
  }
}

// ---------------------------------------------------------------- one launch

inline int poison_static_shared(dl_phdr_info* library, size_t, void* inside) {
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const auto& part = library->dlpi_phdr[i];
    char* start = reinterpret_cast<char*>(library->dlpi_addr + part.p_vaddr);
    char* end = start + part.p_memsz;
    if (part.p_type == PT_LOAD && inside >= start && inside < end) {  // this very library
      for (int k = 0; k < library->dlpi_phnum; k++)
        if (library->dlpi_phdr[k].p_type == PT_TLS && library->dlpi_tls_data)
          memset(library->dlpi_tls_data, 0xFF, library->dlpi_phdr[k].p_memsz);
      return 1;
    }
  }
  return 0;
}

inline void on_fault(int number, siginfo_t* info, void*) {
  char text[512];
  const uint3 b = block->index, t = block->running->thread;
  int n = snprintf(text, sizeof text,
                   "%s: memory access out of bounds at %p by thread (%u, %u, %u) of block "
                   "(%u, %u, %u)%s\n", kernel_name, info->si_addr, t.x, t.y, t.z, b.x, b.y, b.z,
                   number == SIGBUS ? " (bus error)" : "");
  if (write(2, text, n) < 0) _exit(4);
  _exit(3);
}

inline void catch_faults() {
  static char stack[64 * 1024];  // a fiber's own may be what is broken
  stack_t alternative{};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

// Run `body` for every thread of the launch; `order` is 'f'orward, 'r'everse or 'x', random.
template <class F>
void launch(const unsigned* dims, size_t shared_bytes, char order, F&& body) {
  Block b{};
  block = &b;
  b.grid = dim3(dims[0], dims[1], dims[2]);
  b.size = dim3(dims[3], dims[4], dims[5]);
  unsigned threads = b.size.x * b.size.y * b.size.z, warps = (threads + 31) / 32;
  catch_faults();
  b.fibers.resize(threads);
  b.exchanged.resize(threads);
  std::vector<char> dynamic_shared(shared_bytes + 16);
  b.dynamic_shared = dynamic_shared.data() + (-reinterpret_cast<uintptr_t>(dynamic_shared.data()) & 15);
  char* stacks = static_cast<char*>(mmap(nullptr, STACK_BYTES * threads, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (unsigned i = 0; i < threads; i++) {
    Fiber& f = b.fibers[i];
    f.stack = stacks + STACK_BYTES * i;
    f.index = i;
    f.thread = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
  }
  std::vector<unsigned> lanes(32), of_warps(warps);
  for (unsigned i = 0; i < 32; i++) lanes[i] = order == 'r' ? 31 - i : i;
  for (unsigned i = 0; i < warps; i++) of_warps[i] = order == 'r' ? warps - 1 - i : i;
  b.body = [](void* f) { (*static_cast<std::remove_reference_t<F>*>(f))(); };
  b.arguments = &body;
  b.random = 1;
  size_t blocks = size_t(b.grid.x) * b.grid.y * b.grid.z;
  for (size_t k = 0; k < blocks; k++) {
    size_t i = order == 'r' ? blocks - 1 - k : k;
    b.index = {unsigned(i % b.grid.x), unsigned(i / b.grid.x % b.grid.y),
               unsigned(i / (size_t(b.grid.x) * b.grid.y))};
    if (order == 'x') { shuffle(lanes); shuffle(of_warps); }
    b.order = lanes;
    b.order.insert(b.order.end(), of_warps.begin(), of_warps.end());
    memset(dynamic_shared.data(), 0xFF, dynamic_shared.size());
    dl_iterate_phdr(poison_static_shared, reinterpret_cast<void*>(&fiber_main));
    run_block();
  }
  munmap(stacks, STACK_BYTES * threads);
  block = nullptr;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), const unsigned* dims, size_t shared_bytes, char order, void** a,
          std::index_sequence<I...>) {
  launch(dims, shared_bytes, order,
         [&] { kernel(*static_cast<std::remove_reference_t<A>*>(a[I])...); });
}

template <class... A>
void call(void (*kernel)(A...), const unsigned* dims, size_t shared_bytes, char order, void** a) {
  call(kernel, dims, shared_bytes, order, a, std::index_sequence_for<A...>{});
}

// Bring `value` to an exchange among the lanes of `mask`, and return what `lane` brought.
template <class T>
T exchange(T value, unsigned mask, unsigned lane) {
  static_assert(sizeof(T) <= 8, "a warp exchange moves at most 8 bytes");
  Fiber* me = block->running;
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  block->exchanged[me->index] = bits;
  wait_in(State::at_warp_exchange, mask);
  unsigned from = (me->index & ~31u) + lane;
  if (from < block->fibers.size()) memcpy(&value, &block->exchanged[from], sizeof value);
  wait_in(State::at_warp_exchange, mask);  // nobody writes again before all have read
  return value;
}

inline unsigned lane_id() { return block->running->index & 31; }

}  // namespace cuda_cpu

#define threadIdx (cuda_cpu::block->running->thread)
#define blockIdx (cuda_cpu::block->index)
#define blockDim (cuda_cpu::block->size)
#define gridDim (cuda_cpu::block->grid)

// What the launcher calls: one C function per kernel.
#define CUDA_CPU_EXPORT(symbol, name, kernel) \
  extern "C" void symbol(const unsigned* dims, size_t shared_bytes, char order, void** a) { \
    cuda_cpu::kernel_name = name; \
    cuda_cpu::call(kernel, dims, shared_bytes, order, a); \
  }

// ---------------------------------------------------------------- barriers, warps, atomics

inline void __syncthreads() { cuda_cpu::wait_in(cuda_cpu::State::at_barrier); }
inline int __syncthreads_or(int vote) {
  cuda_cpu::block->votes += vote != 0;
  __syncthreads();
  return cuda_cpu::block->votes_of_last_barrier != 0;
}
inline void __syncwarp(unsigned mask = ~0u) { cuda_cpu::exchange(0, mask, cuda_cpu::lane_id()); }
inline void __threadfence() {}

template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_cpu::exchange(value, mask, lane & 31);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return cuda_cpu::exchange(value, mask, (cuda_cpu::lane_id() ^ bits) & 31);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  unsigned lane = cuda_cpu::lane_id();
  return cuda_cpu::exchange(value, mask, lane + by < 32 ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  unsigned result = 0, mine = (vote != 0) << cuda_cpu::lane_id();
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) result |= cuda_cpu::exchange(mine, mask, lane);
  return result;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }

// Blocks and fibers run one at a time, so these are plain.
template <class T, class U> T atomicAdd(T* p, U value) { T old = *p; *p = old + T(value); return old; }
template <class T, class U> T atomicMax(T* p, U value) { T old = *p; *p = std::max(old, T(value)); return old; }
template <class T, class U> T atomicOr(T* p, U value) { T old = *p; *p = old | T(value); return old; }
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  unsigned old = *p;
  *p = old >= limit ? 0 : old + 1;
  return old;
}
template <class T> T __ldg(const T* p) { return *p; }
inline float __int_as_float(int bits) { float f; memcpy(&f, &bits, 4); return f; }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
// CUDA offers these for float and double without a namespace.
using std::abs; using std::exp; using std::expm1; using std::fma; using std::isnan; using std::log;
using std::log1p; using std::max; using std::min; using std::pow; using std::sqrt;
template <class T> T rsqrt(T x) { return T(1) / std::sqrt(x); }

// ---------------------------------------------------------------- 16-bit numbers

struct __nv_bfloat16 {  // the upper half of a float
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    uint32_t u;
    memcpy(&u, &value, 4);
    if ((u & 0x7fffffff) > 0x7f800000) bits = 0x7fff;  // NaN
    else bits = (u + 0x7fff + (u >> 16 & 1)) >> 16;    // to the nearest, ties to even
  }
  operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &u, 4);
    return value;
  }
};

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) {
    uint32_t u;
    memcpy(&u, &value, 4);
    uint16_t sign = u >> 16 & 0x8000;
    float size = std::fabs(value);
    if (std::isnan(value)) { bits = 0x7fff; return; }
    if (size >= 65520.0f) { bits = sign | 0x7c00; return; }  // infinity
    int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);  // below: subnormal
    float steps = std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024 to 2048, or less
    bits = sign | (uint16_t(steps) + ((exponent + 14) << 10));
  }
  operator float() const {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
               : std::ldexp(float(exponent ? 1024 + fraction : fraction), std::max(exponent, 1) - 25);
    return bits & 0x8000 ? -size : size;
  }
};
