#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define KVEIK_MMAP 1
#endif

namespace kveik {

namespace {
constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kLine = 64;
}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
#if KVEIK_MMAP
  if (bytes >= kHuge) {
    // one huge page more, so that the buffer can begin on one
    size_t mapped = (bytes + kHuge - 1) / kHuge * kHuge;
    void* start = mmap(nullptr, mapped + kHuge, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    auto address = reinterpret_cast<size_t>(start);
    size_t aligned = (address + kHuge - 1) / kHuge * kHuge;
    if (aligned > address) munmap(start, aligned - address);
    size_t tail = address + mapped + kHuge - (aligned + mapped);
    if (tail > 0) munmap(reinterpret_cast<void*>(aligned + mapped), tail);
    data_ = reinterpret_cast<void*>(aligned);
#if defined(MADV_HUGEPAGE)
    madvise(data_, mapped, MADV_HUGEPAGE);
#endif
    mapped_ = true;
    return;
  }
#endif
  size_t rounded = (bytes + kLine - 1) / kLine * kLine;
  data_ = std::aligned_alloc(kLine, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, rounded);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
#if KVEIK_MMAP
  if (mapped_) {
    munmap(data_, (bytes_ + kHuge - 1) / kHuge * kHuge);
    return;
  }
#endif
  std::free(data_);
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

void Buffer::reserve(size_t bytes) {
  if (bytes > bytes_) *this = Buffer(bytes);
}

}  // namespace kveik
