// Memory for what is read at full bandwidth: on huge pages where it is large enough.
#pragma once

#include <cstddef>

namespace kveik {

// Zeroed bytes, 64-byte aligned; huge pages from 2 MB on. They are taken as they are touched.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);  // throws std::bad_alloc
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
  bool mapped_ = false;
};

}  // namespace kveik
