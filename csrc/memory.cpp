#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
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
    mapping_ = data_;
    mapped_ = mapped;
    return;
  }
#endif
  size_t rounded = (bytes + kLine - 1) / kLine * kLine;
  data_ = std::aligned_alloc(kLine, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, rounded);
}

Buffer Buffer::of_file(int file, int64_t offset, size_t bytes) {
#if KVEIK_MMAP
  struct stat status;
  if (fstat(file, &status) != 0 || offset < 0 || offset % static_cast<int64_t>(kLine) != 0 ||
      bytes > static_cast<size_t>(status.st_size) ||
      offset > status.st_size - static_cast<int64_t>(bytes)) {
    throw std::runtime_error("the file ends too early or cannot be read");
  }
  Buffer buffer;
  if (bytes == 0) return buffer;
  // whole huge pages, whose borders belong to neighbours: page tables can then hold them as such
  int64_t huge = static_cast<int64_t>(kHuge), before = offset % huge;
  int64_t end = (offset + static_cast<int64_t>(bytes) + huge - 1) / huge * huge;
  buffer.mapped_ = std::min<int64_t>(end, status.st_size) - (offset - before);
  void* start = mmap(nullptr, buffer.mapped_, PROT_READ, MAP_SHARED, file, offset - before);
  if (start == MAP_FAILED) throw std::runtime_error("the file cannot be mapped");
#if defined(MADV_HUGEPAGE)
  bool read_as_huge = madvise(start, buffer.mapped_, MADV_HUGEPAGE) == 0;
#else
  bool read_as_huge = false;
#endif
  // reads ahead in small pages, and these stay
  if (!read_as_huge) madvise(start, buffer.mapped_, MADV_WILLNEED);
  buffer.mapping_ = start;
  buffer.data_ = static_cast<char*>(start) + before;
  buffer.bytes_ = bytes;
  return buffer;
#else
  (void)file, (void)offset, (void)bytes;
  throw std::runtime_error("files cannot be mapped on this system");
#endif
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
#if KVEIK_MMAP
  if (mapping_ != nullptr) {
    munmap(mapping_, mapped_);
    return;
  }
#endif
  std::free(data_);
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

void Buffer::reserve(size_t bytes) {
  if (bytes > bytes_) *this = Buffer(bytes);
}

}  // namespace kveik
