#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kveik {

namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr size_t kLine = 64;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;

  ~Scratch() { std::free(memory); }

  void* at_least(size_t wanted) {
    if (wanted > bytes) {
      std::free(memory);
      bytes = (wanted + kLine - 1) / kLine * kLine;
      memory = std::aligned_alloc(kLine, bytes);
      if (memory == nullptr) throw std::bad_alloc();
    }
    return memory;
  }
};

}  // namespace

struct Team {
  int count;
  alignas(kLine) std::atomic<int> arrived{0};
  alignas(kLine) std::atomic<uint32_t> phase{0};
  std::atomic<int> sleepers{0};
  alignas(kLine) std::atomic<int64_t> next{0};
  std::vector<Scratch> scratch;
};

void Worker::barrier() {
  Team& t = *team;
  uint32_t phase = t.phase.load();
  if (t.arrived.fetch_add(1) + 1 == t.count) {
    t.arrived.store(0, std::memory_order_relaxed);
    t.next.store(0, std::memory_order_relaxed);
    t.phase.store(phase + 1);
    if (t.sleepers.load() > 0) t.phase.notify_all();
    return;
  }
  auto start = std::chrono::steady_clock::now();
  while (t.phase.load(std::memory_order_acquire) == phase) {
    for (int i = 0; i < 32 && t.phase.load(std::memory_order_acquire) == phase; ++i) pause();
    if (std::chrono::steady_clock::now() - start > kSpin) {
      t.sleepers.fetch_add(1);
      t.phase.wait(phase);
      t.sleepers.fetch_sub(1);
    }
  }
}

int64_t Worker::claim() { return team->next.fetch_add(1, std::memory_order_relaxed); }

void* Worker::scratch(size_t bytes) { return team->scratch[index].at_least(bytes); }

struct Pool::Threads {
  Team team;
  std::mutex one_step;
  std::atomic<uint32_t> steps{0};
  std::atomic<bool> closing{false};
  const std::function<void(Worker&)>* step = nullptr;
  std::vector<std::thread> others;

  void work(int index) {
    Worker worker{index, team.count, &team};
    uint32_t seen = 0;
    while (true) {
      steps.wait(seen);
      seen = steps.load();
      if (closing.load()) return;
      (*step)(worker);
      worker.barrier();
    }
  }
};

Pool::Pool(int threads) : threads_(std::make_unique<Threads>()) {
  Threads& own = *threads_;
  own.team.count = threads;
  own.team.scratch.resize(threads);
  for (int index = 1; index < threads; ++index) {
    own.others.emplace_back([&own, index] { own.work(index); });
  }
}

Pool::~Pool() {
  threads_->closing.store(true);
  threads_->steps.fetch_add(1);
  threads_->steps.notify_all();
  for (auto& thread : threads_->others) thread.join();
}

int Pool::threads() const { return threads_->team.count; }

void Pool::run(const std::function<void(Worker&)>& step) {
  Threads& own = *threads_;
  std::lock_guard<std::mutex> lock(own.one_step);
  own.step = &step;
  if (!own.others.empty()) {
    own.steps.fetch_add(1);
    own.steps.notify_all();
  }
  Worker self{0, own.team.count, &own.team};
  step(self);
  self.barrier();
}

}  // namespace kveik
