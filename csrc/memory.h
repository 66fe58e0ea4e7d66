// Memory for what is read at full bandwidth: on huge pages where it is large enough, or the pages
// of a file.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kveik {

// Zeroed bytes, 64-byte aligned; huge pages from 2 MB on. They are taken as they are touched.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);  // throws std::bad_alloc

  // `bytes` of an open file from `offset` (a multiple of 64) on, to be read only: nothing is
  // copied, the system keeps them once for all processes. Throws std::runtime_error where the file
  // ends before. The file must not be cut while the buffer lives.
  static Buffer of_file(int file, int64_t offset, size_t bytes);

  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  size_t size() const { return bytes_; }

  // At least `bytes`; contents are lost when it grows.
  void reserve(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  void* mapping_ = nullptr;  // begins at or before data_; null: from the heap
  size_t mapped_ = 0;
};

}  // namespace kveik
