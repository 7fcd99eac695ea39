"""CUDA kernels for the neurons: alone, behind BatchNorm and max pool, in Q-K attention's masks.

The kernels are CUDA C++ (``*.cuh``, ``*.cu``), compiled for the GPU at hand by CuPy at first use.
``loader`` finds CuPy and launches, ``launch`` turns tensors into launches, ``ops`` registers them
with PyTorch. Importing compiles nothing and touches no device.
"""
