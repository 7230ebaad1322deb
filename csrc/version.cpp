// Raised with every change of a kernel's arguments, so that an older build beside newer Python files is not used.
#include "parallel.h"

extern "C" KERNEL int32_t kernels_version() { return 31; }
