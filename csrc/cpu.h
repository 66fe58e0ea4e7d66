// Which levels this machine and this build have.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace kveik {

// Names of the levels that can run here, best first. Asks the kernel for the tile registers once.
std::vector<std::string> levels();

// The table of a level. Throws std::invalid_argument for one that cannot run here.
const Kernels& kernels_of(const std::string& level);

}  // namespace kveik
