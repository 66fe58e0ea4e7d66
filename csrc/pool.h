// The threads of one engine: they sleep between steps and spin at most 50 us inside one.
#pragma once

#include <functional>
#include <memory>

#include "worker.h"

namespace kveik {

class Pool {
 public:
  // threads >= 1, the calling thread among them. Throws std::system_error when none can be made.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const;

  // Runs `step` once in every worker and returns when all are done. One step at a time: a second
  // caller waits. `step` must not throw.
  void run(const std::function<void(Worker&)>& step);

 private:
  struct Threads;
  std::unique_ptr<Threads> threads_;
};

}  // namespace kveik
