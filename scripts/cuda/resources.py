"""What ptxas says of each kernel against ops/cuda/resources.toml: registers, static shared memory, no spill.

resources.py FOLDER compare|write: FOLDER holds KERNEL.ARCH.ptxas files, ptxas's own words.
"""

import pathlib
import re
import sys
import tomllib

TABLE = pathlib.Path("ops/cuda/resources.toml")
HEAD = """# Registers a thread and static shared memory (bytes) a block of every kernel, by ptxas 13.0.88 from PTX for compute_80.
# None spills. Written by `scripts/check-cuda write`, compared by `scripts/check-cuda compile`.
"""
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'(.*?)(?=Compiling entry function|\Z)", re.S)


def measured(folder):
    kernels, spills = {}, []
    for path in sorted(folder.glob("*.ptxas")):
        for name, arch, words in ENTRY.findall(path.read_text()):
            registers = int(re.search(r"Used (\d+) registers", words)[1])
            shared = re.search(r"(\d+) bytes smem", words)
            if any(int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill)", words)):
                spills.append(f"{name} on {arch}: {words.strip()}")
            kernels.setdefault(name, {})[arch] = {"registers": registers, "shared": int(shared[1]) if shared else 0}
    return kernels, spills


def main():
    folder, action = pathlib.Path(sys.argv[1]), sys.argv[2]
    kernels, spills = measured(folder)
    if spills or not kernels:
        sys.exit("resources: registers spill to memory:\n" + "\n".join(spills) if spills else "resources: ptxas named no kernel")
    if action == "write":
        lines = [f"[{name}]\n" + "".join(f"{arch} = {{ registers = {r['registers']}, shared = {r['shared']} }}\n" for arch, r in sorted(archs.items()))
                 for name, archs in sorted(kernels.items())]
        TABLE.write_text(HEAD + "\n" + "\n".join(lines))
    table = tomllib.loads(TABLE.read_text())
    faults = [f"{name}: the table says {table.get(name)}, ptxas {kernels.get(name)}" for name in sorted(table.keys() | kernels.keys())
              if table.get(name) != kernels.get(name)]
    if faults:
        sys.exit("resources: ops/cuda/resources.toml differs (scripts/check-cuda write):\n" + "\n".join(faults))
    most = max((r["registers"], name) for name, archs in kernels.items() for r in archs.values())
    print(f"{len(kernels)} kernels for sm_80, sm_89 and sm_90: no spill; most registers: {most[0]} ({most[1]})")


main()
