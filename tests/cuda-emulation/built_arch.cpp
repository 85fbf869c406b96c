/* What the kernels beside it were compiled for. */
extern "C" const int emulation_built_arch = BT_ARCH / 10;
