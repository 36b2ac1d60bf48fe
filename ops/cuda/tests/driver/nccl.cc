// NCCL's sums for programs on the driver on the CPU: the ranks of one machine meet in shared memory that the unique id names.
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <pthread.h>
#include <random>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

void note(const std::string &what);

namespace {
const int RANKS = 8;
const size_t PIECE = 1 << 14;
enum Type { FLOAT32 = 7, FLOAT64 = 8 };
enum Result { SUCCESS = 0, INVALID_ARGUMENT = 4 };

struct Meeting {
  pthread_barrier_t barrier;
  int ready;  // once the first rank has made the barrier
  double values[RANKS][PIECE];
};
struct Id { char name[128]; };
struct Comm { Meeting *meeting; int rank, size; };

template <class T> void sum(Comm *comm, const T *from, T *to, size_t count) {
  for (size_t first = 0; first < count; first += PIECE) {
    size_t own = count - first < PIECE ? count - first : PIECE;
    for (size_t i = 0; i < own; i++) comm->meeting->values[comm->rank][i] = from[first + i];
    pthread_barrier_wait(&comm->meeting->barrier);
    for (size_t i = 0; i < own; i++) {
      double all = 0.0;
      for (int rank = 0; rank < comm->size; rank++) all += comm->meeting->values[rank][i];
      to[first + i] = all;
    }
    pthread_barrier_wait(&comm->meeting->barrier);
  }
}
}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int ncclGetUniqueId(Id *id) {
  memset(id, 0, sizeof *id);
  std::random_device random;
  snprintf(id->name, sizeof id->name, "/ctscribe-ranks-%08x%08x", random(), random());
  return SUCCESS;
}
API int ncclCommInitRank(Comm **comm, int size, Id id, int rank) {
  if (size > RANKS || id.name[0] != '/') return INVALID_ARGUMENT;
  int file = shm_open(id.name, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Meeting))) return INVALID_ARGUMENT;
  auto *meeting = static_cast<Meeting *>(mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  close(file);
  if (rank == 0) {
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&meeting->barrier, &shared, size);
    __atomic_store_n(&meeting->ready, 1, __ATOMIC_RELEASE);
  }
  while (!__atomic_load_n(&meeting->ready, __ATOMIC_ACQUIRE)) usleep(1000);
  pthread_barrier_wait(&meeting->barrier);
  if (rank == 0) shm_unlink(id.name);
  *comm = new Comm{meeting, rank, size};
  return SUCCESS;
}
API int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, Comm *comm, void *) {
  if (operation != 0) return INVALID_ARGUMENT;
  note("a sum over ranks");
  if (type == FLOAT64) return sum(comm, static_cast<const double *>(from), static_cast<double *>(to), count), SUCCESS;
  if (type == FLOAT32) return sum(comm, static_cast<const float *>(from), static_cast<float *>(to), count), SUCCESS;
  return INVALID_ARGUMENT;
}
API int ncclCommAbort(Comm *comm) { return delete comm, SUCCESS; }
API int ncclCommDestroy(Comm *comm) { return delete comm, SUCCESS; }
API int ncclCommFinalize(Comm *) { return SUCCESS; }
API const char *ncclGetErrorString(int result) { return result ? "NCCL on the CPU: an argument that it does not take" : "no error"; }
