// CUDA C on the CPU: a kernel compiled with g++ behind this header runs block by block, and every
// CUDA thread of a block is a fiber, a function with a stack of its own that can stop in the middle.
//
//   __syncthreads()      a fiber stops; when all of the block have stopped there, all go on
//   __shfl_..., __any_.. the lanes of a warp stop, exchange numbers, and go on
//   shared memory        filled with NaN before each block: what is read was written, or shows
//   local variables      filled with -1.7e38, where g++ is 12 or newer
//
// Between two stops a fiber runs alone, so a missing barrier does not fail by chance: it shows as a
// result that changes with the order of the fibers, "forward", "reverse" or "random". Not covered:
// the memory model between barriers, sums of several threads without atomicAdd (they look right),
// inline PTX, bank conflicts, speed. Stricter than a GPU: a barrier or a warp exchange misses a
// thread that has returned. Needs g++ >= 9, -std=c++17.
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
#include <tuple>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

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

inline const size_t PAGE = sysconf(_SC_PAGESIZE);
constexpr size_t GUARD = 1 << 20;
constexpr size_t STACK_BYTES = 128 * 1024;  // the first page of each is a forbidden one
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
  char *dynamic_shared, *dynamic_shared_end;
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

// An array that the kernel was given, for the words of an error; a list ends where `name` is null.
struct Array {
  const char *begin, *end, *name;
};

inline Block* block = nullptr;       // the one that runs
inline const char* kernel_name = "";
inline const Array* arrays = nullptr;

[[noreturn]] inline void stop(const char* why, const Fiber& f) {
  const uint3 &t = f.thread, &b = block->index;
  fprintf(stderr, "%s: %s, at thread (%u, %u, %u) of block (%u, %u, %u)\n", kernel_name, why,
          t.x, t.y, t.z, b.x, b.y, b.z);
  fflush(nullptr);  // what the kernel printed, too
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
    if (!(f.mask >> i & 1))
      stop("a lane takes part in a warp exchange whose mask leaves it out", f);
    bool all = true;
    for (unsigned j = 0; j < lanes; j++) {
      if (!(f.mask >> j & 1)) continue;
      const Fiber& other = block->fibers[first + j];
      if (other.state == State::at_barrier)
        stop("lanes of one warp wait at different barriers", other);
      if (other.state == State::finished)
        stop("a warp exchange waits for a lane that has returned", other);
      all &= other.state == State::at_warp_exchange && other.mask == f.mask;
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
    } else if (!progress) {
      for (Fiber& f : block->fibers)
        if (f.state == State::at_barrier && at_barrier + finished == threads)
          stop("some threads returned while others wait at __syncthreads", f);
        else if (f.state == State::at_warp_exchange)
          stop("deadlock: a warp exchange waits for lanes that are at another one", f);
    }
  }
}

// ---------------------------------------------------------------- one launch

// Part of the same thread-local block: once it is touched, the block is there to be filled.
inline thread_local volatile char in_static_shared;

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

// Memory with its last bytes before forbidden ones; given back when it goes out of scope.
struct DynamicShared {
  size_t span;
  char *mapping, *start;
  explicit DynamicShared(size_t bytes) {
    span = (bytes + 15 + PAGE) / PAGE * PAGE;
    mapping = static_cast<char*>(mmap(nullptr, span + GUARD, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(mapping + span, GUARD, PROT_NONE);
    start = mapping + (span - bytes) / 16 * 16;
  }
  ~DynamicShared() { munmap(mapping, span + GUARD); }
};

// The stacks of `threads` fibers, kept for the next launch.
inline char* stacks_for(unsigned threads) {
  static char* stacks;
  static unsigned there;
  if (threads > there) {
    if (there) munmap(stacks, STACK_BYTES * there);
    stacks = static_cast<char*>(mmap(nullptr, STACK_BYTES * threads, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (unsigned i = 0; i < threads; i++) mprotect(stacks + STACK_BYTES * i, PAGE, PROT_NONE);
    there = threads;
  }
  return stacks;
}

// ---------------------------------------------------------------- what went wrong, and where

inline const char* access_of(void* context) {
#if defined(__x86_64__)
  const auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  return registers[REG_ERR] & 2 ? "a write" : "a read";
#else
  return "an access";
#endif
}

// Write into `text` which array `at` is in, or next to.
inline void place_of(const char* at, char* text, size_t size) {
  const Array* nearest = nullptr;
  long distance = 16 << 20;  // GUARD of sandbox.py
  for (const Array* a = arrays; a && a->name; a++) {
    long d = at < a->begin ? a->begin - at : at < a->end ? 0 : at - a->end;
    if (d < distance) { distance = d; nearest = a; }
  }
  const char* shared_end = block->dynamic_shared_end;
  if (at < reinterpret_cast<char*>(PAGE)) snprintf(text, size, "of a null array");
  else if (at >= shared_end && at < shared_end + GUARD)
    snprintf(text, size, "past the end of dynamic shared memory");
  else if (!nearest) snprintf(text, size, "far from every array");
  else if (at >= nearest->begin && at < nearest->end)
    snprintf(text, size, "into %s, which is const", nearest->name);
  else
    snprintf(text, size, "at byte %ld of %s, which has %ld", long(at - nearest->begin),
             nearest->name, long(nearest->end - nearest->begin));
}

inline void on_fault(int number, siginfo_t* info, void* context) {
  if (!block || !block->running) _exit(5);
  const uint3 b = block->index, t = block->running->thread;
  const char* at = static_cast<char*>(info->si_addr);
  char what[256], where[128], text[512];
  if (number == SIGPROF) {
    snprintf(what, sizeof what, "has run for too long, a loop without end?");
  } else if (number == SIGFPE) {
    snprintf(what, sizeof what, "a division of an int by zero");
  } else if (number == SIGILL) {  // the checks that CXX_FLAGS in emulator.py ask for
    snprintf(what, sizeof what, "an index beyond an array of fixed size, a misaligned vector, or "
             "an int that overflows");
  } else if (at >= block->running->stack && at < block->running->stack + PAGE) {
    snprintf(what, sizeof what, "local variables of more than %zu KB",
             (STACK_BYTES - PAGE) / 1024);
  } else if (info->si_code == SI_KERNEL) {
    snprintf(what, sizeof what, "memory access out of bounds, at no address at all");
  } else {
    place_of(at, where, sizeof where);
    snprintf(what, sizeof what, "memory access out of bounds, %s %s", access_of(context), where);
  }
  int n = snprintf(text, sizeof text, "%s: %s, by thread (%u, %u, %u) of block (%u, %u, %u)\n",
                   kernel_name, what, t.x, t.y, t.z, b.x, b.y, b.z);
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
  for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGPROF}) sigaction(number, &action, nullptr);
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
  DynamicShared dynamic_shared(shared_bytes);
  b.dynamic_shared = dynamic_shared.start;
  b.dynamic_shared_end = dynamic_shared.start + shared_bytes;
  char* stacks = stacks_for(threads);
  in_static_shared = 0;
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
    memset(dynamic_shared.mapping, 0xFF, dynamic_shared.span);
    dl_iterate_phdr(poison_static_shared, reinterpret_cast<void*>(&fiber_main));
    run_block();
  }
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

inline unsigned lane_id() { return block->running->index & 31; }

// Bring `value` to an exchange among the lanes of `mask`; `use(read)` has `read(lane)` to see what
// a lane brought: all bits set, NaN, if it took no part. Returns what `use` returns.
template <class T, class F>
auto exchange(T value, unsigned mask, F&& use) {
  static_assert(sizeof(T) <= 8, "a warp exchange moves at most 8 bytes");
  const unsigned me = block->running->index, first = me & ~31u;
  memcpy(&block->exchanged[me], &value, sizeof value);
  wait_in(State::at_warp_exchange, mask);
  auto result = use([&](unsigned lane) {
    T brought;
    memset(&brought, 0xFF, sizeof brought);
    if (mask >> lane & 1 && first + lane < block->fibers.size())
      memcpy(&brought, &block->exchanged[first + lane], sizeof brought);
    return brought;
  });
  wait_in(State::at_warp_exchange, mask);  // nobody writes again before all have read
  return result;
}

template <class T>
T from_lane(T value, unsigned mask, unsigned lane) {
  return exchange(value, mask, [&](auto read) { return read(lane); });
}

}  // namespace cuda_cpu

#define threadIdx (cuda_cpu::block->running->thread)
#define blockIdx (cuda_cpu::block->index)
#define blockDim (cuda_cpu::block->size)
#define gridDim (cuda_cpu::block->grid)

// What the launcher calls: one C function per kernel.
#define CUDA_CPU_EXPORT(symbol, name, kernel) \
  extern "C" void symbol(const unsigned* dims, size_t shared_bytes, char order, void** a, \
                         const cuda_cpu::Array* arrays) { \
    cuda_cpu::kernel_name = name; \
    cuda_cpu::arrays = arrays; \
    cuda_cpu::call(kernel, dims, shared_bytes, order, a); \
  }

// ---------------------------------------------------------------- barriers, warps, atomics

inline void __syncthreads() { cuda_cpu::wait_in(cuda_cpu::State::at_barrier); }
inline int __syncthreads_or(int vote) {
  cuda_cpu::block->votes += vote != 0;
  __syncthreads();
  return cuda_cpu::block->votes_of_last_barrier != 0;
}
inline void __syncwarp(unsigned mask = ~0u) { cuda_cpu::from_lane(0, mask, cuda_cpu::lane_id()); }
inline void __threadfence() {}

template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_cpu::from_lane(value, mask, lane & 31);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return cuda_cpu::from_lane(value, mask, (cuda_cpu::lane_id() ^ bits) & 31);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  unsigned lane = cuda_cpu::lane_id();
  return cuda_cpu::from_lane(value, mask, lane + by < 32 ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  return cuda_cpu::exchange(vote != 0, mask, [&](auto read) {
    const unsigned first = cuda_cpu::block->running->index & ~31u;
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32 && first + lane < cuda_cpu::block->fibers.size(); lane++)
      if (mask >> lane & 1) votes |= unsigned(read(lane)) << lane;
    return votes;
  });
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
// Of a number and NaN, CUDA's choose the number; std::max goes by the order of the two.
inline float max(float a, float b) { return std::fmax(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
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
