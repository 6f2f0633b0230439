"""C++ kernels for CPUs: one shared library with a plain C ABI (abi.h), called on data pointers and strides."""
