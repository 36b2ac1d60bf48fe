// A CUDA driver on the CPU: what a program built with the feature `cuda` calls of libcuda, cuBLAS and cuRAND, with kernels that cuda_on_cpu.h runs.
//
// What it models: modules and launches with the arguments' sizes, grids, blocks and shared memory that a device of compute capability 8.0 takes;
// memory that is full of NaN when it is new, ends at a page that cannot be touched and is gone once it is freed; contexts bound to threads; streams,
// which do all at once; capture of a stream into a graph, with what may not be captured, memory that is a graph's own, and launches of it.
// What it does not model: time, several streams at once, memory that is another device's (there are CUDA_ON_CPU_DEVICES of them, one at first), events. A function that it lacks ends the program by name (missing.cc).
#include "../halves.h"
#include "kernel.h"
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
};

struct Module { const Kernel *(*find)(const char *); std::string name; };
struct Function { const Kernel *kernel; std::string name; int shared_bytes; };
using Command = std::function<Result()>;

// Memory: whole pages with one behind that is never accessible; values begin at a multiple of 256 as near to it as that allows.
struct Memory { char *pages; size_t mapped, bytes; bool live; struct Graph *graph; };
struct Graph {
  std::vector<Command> commands;
  std::vector<uintptr_t> own;
  int users = 1;  // handles of the graph and of what was made of it
  ~Graph();
};
struct Stream { Graph *capturing = nullptr; bool broken = false; };

static std::recursive_mutex mutex;
static std::map<uintptr_t, Memory> memory;
static std::map<std::string, std::unique_ptr<Module>> modules;
static std::map<std::pair<Module *, std::string>, std::unique_ptr<Function>> functions;
static std::set<Stream *> streams;
static thread_local void *context;
static char contexts[8];  // a device's each
static int devices() {
  const char *count = getenv("CUDA_ON_CPU_DEVICES");
  return count ? atoi(count) : 1;
}
static const char *doing = "nothing";
static const size_t PAGE = 4096, ALIGNMENT = 256;
static const unsigned char SLACK = 0xa5;
static std::map<std::string, long> launched;  // for the log that CUDA_ON_CPU_LOG names
void note(const std::string &what) { launched[what]++; }

#define LOCKED std::lock_guard<std::recursive_mutex> lock(mutex)
#define API extern "C" __attribute__((visibility("default")))

[[noreturn]] static void fail(const char *what) {
  fprintf(stderr, "the driver on the CPU: %s (%s)\n", what, doing);
  _exit(3);
}
static void on_fault(int, siginfo_t *info, void *) {
  char text[300];
  int length = snprintf(text, sizeof text, "the driver on the CPU: %s touched %p, which is not its own\n", doing, info->si_addr);
  (void)!write(2, text, length);
  _exit(3);
}

static size_t padded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }
static void fill(uintptr_t address, Memory &block) {
  memset(reinterpret_cast<void *>(address), 0xff, block.bytes);
  memset(reinterpret_cast<char *>(address) + block.bytes, SLACK, padded(block.bytes) - block.bytes);
}
static uintptr_t allocate(size_t bytes, Graph *graph) {
  size_t mapped = (padded(bytes) + PAGE - 1) / PAGE * PAGE;
  char *pages = static_cast<char *>(mmap(nullptr, mapped + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (pages == MAP_FAILED) fail("no memory, or too many pieces of it");
  mprotect(pages + mapped, PAGE, PROT_NONE);
  uintptr_t address = reinterpret_cast<uintptr_t>(pages) + mapped - padded(bytes);
  Memory &block = memory[address] = {pages, mapped, bytes, true, graph};
  fill(address, block);
  return address;
}
static void check_slack(uintptr_t address, const Memory &block) {
  auto *end = reinterpret_cast<unsigned char *>(address) + block.bytes;
  for (size_t i = 0; i < padded(block.bytes) - block.bytes; i++)
    if (end[i] != SLACK) fail("something wrote behind a tensor's end");
}
static Graph *graph_of(uintptr_t address) { return memory.count(address) ? memory[address].graph : nullptr; }
static Result release(uintptr_t address) {
  auto found = memory.find(address);
  if (found == memory.end() || !found->second.live) return INVALID_VALUE;
  check_slack(address, found->second);
  if (found->second.graph) {
    found->second.live = false;
    mprotect(found->second.pages, found->second.mapped, PROT_NONE);
  } else {
    munmap(found->second.pages, found->second.mapped + PAGE);
    memory.erase(found);
  }
  return SUCCESS;
}
Graph::~Graph() {
  for (uintptr_t address : own) {
    munmap(memory[address].pages, memory[address].mapped + PAGE);
    memory.erase(address);
  }
}

static Result known(Stream *stream) { return !context ? INVALID_CONTEXT : streams.count(stream) ? SUCCESS : INVALID_HANDLE; }
static Result broken(Stream *stream) {
  stream->broken = true;
  return CAPTURE_UNSUPPORTED;
}
// Does a stream's next piece of work, or notes it where the stream is being captured.
static Result submit(Stream *stream, Command command) {
  if (Result result = known(stream)) return result;
  if (stream->broken) return CAPTURE_INVALIDATED;
  if (!stream->capturing) return command();
  stream->capturing->commands.push_back(std::move(command));
  return SUCCESS;
}

API Result cuInit(unsigned) {
  struct sigaction action = {};
  static char stack[64 * 1024];
  stack_t alternate = {stack, 0, sizeof stack};
  sigaltstack(&alternate, nullptr);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  return SUCCESS;
}
API Result cuGetErrorName(Result error, const char **name) {
  static const std::map<int, const char *> NAMES = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
      {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}, {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
      {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
  auto found = NAMES.find(error);
  *name = found == NAMES.end() ? "an error" : found->second;
  return SUCCESS;
}
API Result cuGetErrorString(Result error, const char **text) { return cuGetErrorName(error, text); }
API Result cuDeviceGetCount(int *count) { return *count = devices(), SUCCESS; }
API Result cuDeviceGet(int *device, int ordinal) { return ordinal >= devices() ? INVALID_DEVICE : (*device = ordinal, SUCCESS); }
API Result cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "CUDA on the CPU"), SUCCESS; }
API Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = size_t(16) << 30, SUCCESS; }
API Result cuMemGetInfo_v2(size_t *available, size_t *all) { return *available = *all = size_t(16) << 30, SUCCESS; }
API Result cuDeviceGetAttribute(int *value, int attribute, int) {
  // compute capability 8.0, memory pools; of others this program asks for none
  static const std::map<int, int> VALUES = {{1, 1024}, {16, 108}, {75, 8}, {76, 0}, {115, 1}};
  auto found = VALUES.find(attribute);
  *value = found == VALUES.end() ? 0 : found->second;
  return SUCCESS;
}
API Result cuDevicePrimaryCtxRetain(void **own, int device) { return *own = &contexts[device], SUCCESS; }
API Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API Result cuCtxSetCurrent(void *own) { return context = own, SUCCESS; }
API Result cuCtxGetCurrent(void **own) { return *own = context, SUCCESS; }
API Result cuCtxSynchronize() { return context ? SUCCESS : INVALID_CONTEXT; }
API Result cuEventCreate(void **event, unsigned) { return *event = &contexts[0], SUCCESS; }
API Result cuEventDestroy_v2(void *) { return SUCCESS; }
API Result cuEventRecord(void *, Stream *) { return SUCCESS; }
API Result cuEventSynchronize(void *) { return SUCCESS; }

API Result cuStreamCreate(Stream **stream, unsigned) {
  LOCKED;
  streams.insert(*stream = new Stream);
  return SUCCESS;
}
API Result cuStreamDestroy_v2(Stream *stream) {
  LOCKED;
  streams.erase(stream);
  delete stream;
  return SUCCESS;
}
// Threads' own streams (0x2) are not here: each would be another one.
API Result cuStreamSynchronize(Stream *stream) {
  LOCKED;
  if (Result result = known(stream)) return result;
  return stream->capturing ? broken(stream) : SUCCESS;
}
API Result cuStreamWaitEvent(Stream *, void *, unsigned) { return SUCCESS; }

API Result cuMemAllocAsync(uintptr_t *address, size_t bytes, Stream *stream) {
  LOCKED;
  if (Result result = known(stream)) return result;
  Graph *graph = stream->capturing;
  *address = allocate(bytes, graph);
  if (!graph) return SUCCESS;
  graph->own.push_back(*address);
  Memory &block = memory[*address];
  block.live = false;
  mprotect(block.pages, block.mapped, PROT_NONE);
  return submit(stream, [address = *address] {
    Memory &block = memory[address];
    if (block.live) return INVALID_VALUE;  // the last launch's has not been given back
    block.live = true;
    mprotect(block.pages, block.mapped, PROT_READ | PROT_WRITE);
    fill(address, block);
    return SUCCESS;
  });
}
API Result cuMemFreeAsync(uintptr_t address, Stream *stream) {
  LOCKED;
  if (Result result = known(stream)) return result;
  if (stream->capturing && graph_of(address) != stream->capturing) return stream->broken = true, INVALID_VALUE;
  return submit(stream, [address] { return release(address); });
}
API Result cuMemFree_v2(uintptr_t address) {
  LOCKED;
  return release(address);
}
API Result cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, Stream *stream) {
  LOCKED;
  if (Result result = known(stream)) return result;
  if (stream->capturing) return broken(stream);  // it would read the host's memory at each launch
  doing = "a copy to the device";
  memcpy(reinterpret_cast<void *>(to), from, bytes);
  return SUCCESS;
}
API Result cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, Stream *stream) {
  LOCKED;
  if (Result result = known(stream)) return result;
  if (stream->capturing) return broken(stream);
  doing = "a copy to the host";
  memcpy(to, reinterpret_cast<void *>(from), bytes);
  return SUCCESS;
}
API Result cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream *stream) {
  LOCKED;
  return submit(stream, [=] {
    doing = "a copy on the device";
    memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
    return SUCCESS;
  });
}
API Result cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, Stream *stream) {
  LOCKED;
  return submit(stream, [=] {
    doing = "a fill";
    memset(reinterpret_cast<void *>(to), value, bytes);
    return SUCCESS;
  });
}

// An image is its source's name: see scripts/cuda/nvcc. The module's library lies beside this one's folder.
API Result cuModuleLoadData(Module **module, const char *image) {
  LOCKED;
  if (!context) return INVALID_CONTEXT;
  std::string name(image, strcspn(image, "\n"));
  auto &loaded = modules[name];
  if (!loaded) {
    Dl_info self;
    dladdr(reinterpret_cast<void *>(&cuInit), &self);
    std::string folder(self.dli_fname);
    for (int i = 0; i < 2; i++) folder = folder.substr(0, folder.rfind('/'));
    void *library = dlopen((folder + "/" + name + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return fprintf(stderr, "the driver on the CPU: %s\n", dlerror()), NOT_FOUND;
    loaded.reset(new Module{reinterpret_cast<const Kernel *(*)(const char *)>(dlsym(library, "find_kernel")), name});
  }
  *module = loaded.get();
  return SUCCESS;
}
API Result cuModuleUnload(Module *) { return SUCCESS; }
API Result cuModuleGetFunction(Function **function, Module *module, const char *name) {
  LOCKED;
  const Kernel *kernel = module->find(name);
  if (!kernel) return fprintf(stderr, "the driver on the CPU: module %s has no kernel %s\n", module->name.c_str(), name), NOT_FOUND;
  auto &function_of_name = functions[{module, name}];
  if (!function_of_name) function_of_name.reset(new Function{kernel, module->name + "." + name, 48 * 1024});
  *function = function_of_name.get();
  return SUCCESS;
}
API Result cuFuncSetAttribute(Function *function, int attribute, int value) {
  const int MOST_SHARED_BYTES = 8, DEVICES_MOST = 163 * 1024;
  if (attribute != MOST_SHARED_BYTES || value > DEVICES_MOST) return INVALID_VALUE;
  function->shared_bytes = value;
  return SUCCESS;
}
API Result cuFuncGetAttribute(int *value, int, Function *) { return *value = 0, SUCCESS; }

API Result cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                          Stream *stream, void **arguments, void **) {
  LOCKED;
  bool fits = gx && gy && gz && bx && by && bz && gx <= 0x7fffffff && gy <= 65535 && gz <= 65535 && bx * by * bz <= 1024 && bz <= 64;
  if (!fits || int(shared_bytes) > function->shared_bytes) {
    fprintf(stderr, "the driver on the CPU: %s with a grid of %u %u %u, blocks of %u %u %u, %u bytes\n", function->name.c_str(), gx, gy, gz, bx, by, bz,
            shared_bytes);
    return INVALID_VALUE;
  }
  struct Call { unsigned grid[3], block[3]; std::vector<std::vector<unsigned char>> values; };
  auto call = std::make_shared<Call>(Call{{gx, gy, gz}, {bx, by, bz}, {}});
  for (int i = 0; i < function->kernel->count; i++) {
    auto *value = static_cast<unsigned char *>(arguments[i]);
    call->values.emplace_back(value, value + function->kernel->sizes[i]);
  }
  return submit(stream, [=] {
    doing = function->name.c_str();
    note(function->name);
    std::vector<void *> places;
    for (auto &value : call->values) places.push_back(value.data());
    function->kernel->run(call->grid, call->block, shared_bytes, places.data());
    return SUCCESS;
  });
}

API Result cuStreamBeginCapture_v2(Stream *stream, int) {
  LOCKED;
  if (Result result = known(stream)) return result;
  if (stream->capturing) return INVALID_VALUE;
  stream->capturing = new Graph;
  stream->broken = false;
  return SUCCESS;
}
API Result cuStreamIsCapturing(Stream *stream, int *status) {
  LOCKED;
  if (Result result = known(stream)) return result;
  *status = !stream->capturing ? 0 : stream->broken ? 2 : 1;
  return SUCCESS;
}
static void drop(Graph *graph) {
  if (--graph->users == 0) delete graph;
}
API Result cuStreamEndCapture(Stream *stream, Graph **graph) {
  LOCKED;
  if (Result result = known(stream)) return result;
  if (!stream->capturing) return INVALID_VALUE;
  Graph *captured = stream->capturing;
  bool was_broken = stream->broken;
  stream->capturing = nullptr, stream->broken = false;
  *graph = was_broken ? nullptr : captured;
  if (was_broken) drop(captured);
  return was_broken ? CAPTURE_INVALIDATED : SUCCESS;
}
API Result cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long) {
  LOCKED;
  graph->users++;
  *executable = graph;
  return SUCCESS;
}
API Result cuGraphUpload(Graph *, Stream *stream) { return known(stream); }
API Result cuGraphLaunch(Graph *graph, Stream *stream) {
  LOCKED;
  if (Result result = known(stream)) return result;
  if (stream->capturing) return broken(stream);
  for (Command &command : graph->commands)
    if (Result result = command()) return result;
  note("a graph");
  return SUCCESS;
}
API Result cuGraphExecDestroy(Graph *graph) {
  LOCKED;
  drop(graph);
  return SUCCESS;
}
API Result cuGraphDestroy(Graph *graph) {
  LOCKED;
  drop(graph);
  return SUCCESS;
}

// cuBLAS: a handle is its stream. cuRAND: made with each device, and drawn from by nothing in this program.
API int cublasCreate_v2(Stream ***handle) { return *handle = new Stream *(nullptr), 0; }
API int cublasDestroy_v2(Stream **handle) { return delete handle, 0; }
API int cublasSetStream_v2(Stream **handle, Stream *stream) { return *handle = stream, 0; }
API int curandCreateGenerator(void **generator, int) { return *generator = &contexts[0], 0; }
API int curandDestroyGenerator(void *) { return 0; }
API int curandSetStream(void *, Stream *) { return 0; }
API int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
API int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }

namespace {
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
double load(const void *values, long long i, int type) {
  switch (type) {
    case F32: return static_cast<const float *>(values)[i];
    case F64: return static_cast<const double *>(values)[i];
    case F16: return csim::wide_f16(static_cast<const uint16_t *>(values)[i]);
    case BF16: return csim::wide_bf16(static_cast<const uint16_t *>(values)[i]);
  }
  fail("a product of another type");
}
void store(void *values, long long i, int type, double value) {
  switch (type) {
    case F32: static_cast<float *>(values)[i] = value; return;
    case F64: static_cast<double *>(values)[i] = value; return;
    case F16: static_cast<uint16_t *>(values)[i] = csim::narrow_f16(value); return;
    case BF16: static_cast<uint16_t *>(values)[i] = csim::narrow_bf16(value); return;
  }
  fail("a product of another type");
}
// C = alpha op(A) op(B) + beta C, column-major, of each of `batch` matrices; sums in f64.
struct Product {
  int transa, transb, m, n, k;
  double alpha, beta;
  const void *a, *b;
  void *c;
  int a_type, b_type, c_type;
  long long lda, ldb, ldc, a_step, b_step, c_step;
  int batch;

  Result operator()() const {
    doing = "a product of cuBLAS";
    std::vector<double> left(size_t(m) * k), right(size_t(n) * k);
    for (long long at = 0; at < batch; at++) {
      for (int i = 0; i < m; i++)
        for (int p = 0; p < k; p++) left[size_t(i) * k + p] = load(a, at * a_step + (transa ? p + i * lda : i + p * lda), a_type);
      for (int j = 0; j < n; j++)
        for (int p = 0; p < k; p++) right[size_t(j) * k + p] = load(b, at * b_step + (transb ? j + p * ldb : p + j * ldb), b_type);
      for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
          double sum = 0.0;
          for (int p = 0; p < k; p++) sum += left[size_t(i) * k + p] * right[size_t(j) * k + p];
          long long place = at * c_step + i + j * ldc;
          store(c, place, c_type, alpha * sum + (beta != 0.0 ? beta * load(c, place, c_type) : 0.0));
        }
    }
    return SUCCESS;
  }
};
int product(Stream **handle, const Product &product) {
  LOCKED;
  return submit(*handle, product) == SUCCESS ? 0 : 14;
}
const int COMPUTE_F16 = 64, COMPUTE_F64 = 70;
int scalar(int compute) { return compute == COMPUTE_F16 ? F16 : compute == COMPUTE_F64 ? F64 : F32; }
}  // namespace

API int cublasGemmStridedBatchedEx(Stream **handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda,
                                   long long a_step, const void *b, int b_type, int ldb, long long b_step, const void *beta, void *c, int c_type, int ldc,
                                   long long c_step, int batch, int compute, int) {
  int type = scalar(compute);
  return product(handle, {transa, transb, m, n, k, load(alpha, 0, type), load(beta, 0, type), a, b, c, a_type, b_type, c_type, lda, ldb, ldc, a_step,
                          b_step, c_step, batch});
}
API int cublasGemmEx(Stream **handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, const void *b,
                     int b_type, int ldb, const void *beta, void *c, int c_type, int ldc, int compute, int algorithm) {
  return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute,
                                    algorithm);
}
API int cublasDgemmStridedBatched(Stream **handle, int transa, int transb, int m, int n, int k, const double *alpha, const double *a, int lda,
                                  long long a_step, const double *b, int ldb, long long b_step, const double *beta, double *c, int ldc, long long c_step,
                                  int batch) {
  return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, F64, lda, a_step, b, F64, ldb, b_step, beta, c, F64, ldc, c_step, batch,
                                    COMPUTE_F64, 0);
}

// What was launched, to the file that CUDA_ON_CPU_LOG names, when the program ends.
__attribute__((destructor)) static void write_log() {
  const char *path = getenv("CUDA_ON_CPU_LOG");
  FILE *file = path ? fopen(path, "a") : nullptr;
  if (!file) return;
  for (auto &[name, count] : launched) fprintf(file, "%s %ld\n", name.c_str(), count);
  fclose(file);
}
