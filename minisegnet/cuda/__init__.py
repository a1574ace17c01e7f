"""CUDA kernels from Python: how a `.cu` file beside a `.py` file is compiled and launched.

`launch.py` finds, compiles and launches; on CuPy arrays with CuPy, on NumPy arrays with
`emulator.py`, which compiles the same source with g++ and runs it on the CPU.
"""
