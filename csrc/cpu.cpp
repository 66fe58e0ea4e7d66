#include "cpu.h"

#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kveik {

namespace {

// Linux gives tile registers to processes that ask.
bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool has_amx() {
#if defined(__x86_64__)
  if (!has_avx512_bf16()) return false;
#if KVEIK_EMULATE_TILES
  return true;
#endif
  static const uint32_t features = [] {  // asked once: a virtual machine traps CPUID
    uint32_t a = 7, b = 0, c = 0, d = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return d;
  }();
  constexpr uint32_t kWanted = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  return (features & kWanted) == kWanted && tiles_granted();
#else
  return false;
#endif
}

struct Level {
  const Kernels* (*table)();
  bool (*supported)();
};

const Level kLevels[] = {
    {amx_kernels, has_amx},
    {avx512_bf16_kernels, has_avx512_bf16},
    {avx512_kernels, has_avx512},
    {avx2_kernels, has_avx2},
    {portable_kernels, [] { return true; }},
    {scalar_kernels, [] { return true; }},
};

}  // namespace

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) {
    if (level.table() != nullptr && level.supported()) names.emplace_back(level.table()->name);
  }
  return names;
}

const Kernels& kernels_of(const std::string& name) {
  for (const Level& level : kLevels) {
    const Kernels* table = level.table();
    if (table != nullptr && name == table->name && level.supported()) return *table;
  }
  throw std::invalid_argument("this machine or this build has no kernels of level " + name);
}

}  // namespace kveik
