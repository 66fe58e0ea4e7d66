/* Sustained read bandwidth of this machine in GB/s: THREADS threads, each bound to a core, sum their
 * share of 1 GiB on huge pages, ROUNDS times, prefetching nothing, 2 KiB or 8 KiB ahead in turn; the
 * best pass is printed.
 *
 * cc -O3 -march=native -pthread bandwidth.c -o bandwidth; ./bandwidth [THREADS [ROUNDS]] */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { BYTES = 1 << 30, LANES = 64, MOST = 256 };

static uint64_t *buffer; /* [BYTES / 8] */
static int threads = 2, rounds = 9;
static pthread_barrier_t barrier;
static volatile uint64_t sink;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Eight independent vector accumulators: loads, not additions, are what is waited for. */
static uint64_t sum(const uint64_t *from, size_t count, size_t ahead) {
  uint64_t lanes[LANES] = {0}, total = 0;
  for (size_t i = 0; i < count; i += LANES) {
    for (int lane = 0; lane < LANES; lane += 8) __builtin_prefetch(from + i + ahead + lane);
    for (int lane = 0; lane < LANES; lane++) lanes[lane] += from[i + lane];
  }
  for (int lane = 0; lane < LANES; lane++) total += lanes[lane];
  return total;
}

static void bind(int number) { /* to the number-th core that this process may use */
  cpu_set_t allowed, one;
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (int core = 0; core < CPU_SETSIZE; core++)
    if (CPU_ISSET(core, &allowed) && number-- == 0) {
      CPU_ZERO(&one);
      CPU_SET(core, &one);
      pthread_setaffinity_np(pthread_self(), sizeof one, &one);
      return;
    }
}

static void *work(void *argument) {
  int number = (int)(intptr_t)argument;
  size_t share = BYTES / 8 / threads / LANES * LANES;
  uint64_t *mine = buffer + share * number;
  const size_t ahead[] = {0, 256, 1024}; /* values of 8 bytes */
  double best = 0;
  bind(number);
  memset(mine, number + 1, share * 8);
  for (int round = 0; round < rounds; round++) {
    pthread_barrier_wait(&barrier);
    double start = now();
    sink += sum(mine, share, ahead[round % 3]);
    pthread_barrier_wait(&barrier);
    double rate = 8.0 * share * threads / (now() - start) / 1e9;
    if (rate > best) best = rate;
  }
  if (number == 0) printf("%.3f\n", best);
  return NULL;
}

int main(int count, char **arguments) {
  pthread_t handles[MOST];
  if (count > 1) threads = atoi(arguments[1]);
  if (count > 2) rounds = atoi(arguments[2]);
  if (threads < 1 || threads > MOST || rounds < 1) return 2;
  buffer = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer == MAP_FAILED) return 1;
  madvise(buffer, BYTES, MADV_HUGEPAGE);
  pthread_barrier_init(&barrier, NULL, threads);
  for (int i = 0; i < threads; i++) pthread_create(&handles[i], NULL, work, (void *)(intptr_t)i);
  for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL);
  return 0;
}
