// The extension module kveik.kernels._native.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind_arena.h"
#include "bindings.h"
#include "cpu.h"

NB_MODULE(_native, m) {
  m.def("levels", &kveik::levels, "Levels that run on this machine, best first.");
  kveik::bind_arena(m);
  kveik::bind_weights(m);
  kveik::bind_program(m);
  kveik::bind_quantize(m);
  kveik::bind_sampling(m);
  kveik::bind_packed(m);
}
