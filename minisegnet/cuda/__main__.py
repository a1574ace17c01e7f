"""`python -m minisegnet.cuda`: does NVIDIA's compiler take every kernel, and does none spill?

    python -m minisegnet.cuda
    python -m minisegnet.cuda --arch 90 --only ops/conv2d.cu

Needs nvcc or NVRTC, and no GPU. One line per kernel, GPU and pair of types: registers and stack of
a thread, static shared memory of a block, and the bytes that do not fit into registers, "spill".
The exit code is 1 if anything spills or does not compile.
"""

import sys

from minisegnet.cli import ArgumentParser, positive_int
from minisegnet.cuda import compile_gate
from minisegnet.errors import UserError, run_command
from minisegnet.tables import ruled

HEADING = ("kernel", "arch", "REAL", "STORE", "registers", "shared", "stack", "spill stores",
           "spill loads")


def main(argv=None):
    """Print the table; return 1 if anything spills or does not compile, else 0."""
    parser = ArgumentParser(
        prog="python -m minisegnet.cuda",
        description="Compile every CUDA kernel, and tell what each takes of a GPU.")
    parser.add_argument("--arch", type=positive_int, nargs="+", default=compile_gate.ARCHS,
                        help="compute capabilities, 90 for 9.0")
    parser.add_argument("--only", metavar="FILE", help="this .cu file only, as ops/conv2d.cu")
    arguments = parser.parse_args(argv)

    compiler = compile_gate.find_compiler()
    files = compile_gate.find_kernel_files()
    if arguments.only:
        files = [file for file in files if file.path.as_posix().endswith(f"/{arguments.only}")]
        if not files:
            raise UserError(f"there is no {arguments.only} in {compile_gate.PACKAGE}")
    kernels, errors, warnings = [], [], {}
    for file, pair, compiled in compile_gate.compile_all(files, compiler, arguments.arch):
        kernels += compiled.kernels
        warnings |= dict.fromkeys(compiled.warnings)
        if compiled.error:
            errors.append(f"{file.path.name}, REAL {pair[0]}, STORE {pair[1]}:\n{compiled.error}")
    rows = [tuple(map(str, kernel[1:])) for kernel in kernels]
    print("\n".join(ruled([HEADING, *rows])))
    for words in (*warnings, *errors):
        print(f"\n{words}")
    spilling = [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads]
    print(f"\n{len(kernels)} kernels by {compiler.name}: {len(spilling)} spill, "
          f"{len(errors)} compilations failed")
    return 1 if spilling or errors else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
