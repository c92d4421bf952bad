"""Make small shared objects for the CUDA libraries that torch links against and nothing provides.

The dynamic loader refuses `import torch` while a library it names is missing or lacks a symbol it names; nothing calls
those symbols on a machine without a GPU. Each function here returns 1, a failure in every one of these interfaces.

usage: stand_in_libraries.py SITE_PACKAGES
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Iterator, NamedTuple

# Not libcuda.so: it belongs to the driver, and only a part of torch that is never loaded here names it.
CUDA_LIBRARY = re.compile(r"lib(cu(?!da\.)|nccl|nv)\w*\.so")


class Symbol(NamedTuple):
    name: str
    version: str  # empty when the reference carries none
    is_object: bool
    is_weak: bool
    is_defined: bool


def readelf(flag: str, library: Path) -> list[str]:
    command = ["readelf", "--wide", flag, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def symbols(library: Path) -> Iterator[Symbol]:
    for line in readelf("--dyn-syms", library):
        fields = line.split()
        if len(fields) < 8 or not re.fullmatch(r"\d+:", fields[0]):
            continue
        kind, binding, section, reference = fields[3], fields[4], fields[6], fields[7]
        name, _, version = reference.partition("@")
        yield Symbol(name, version.lstrip("@"), kind == "OBJECT", binding == "WEAK", section != "UND")


def needed(library: Path) -> set[str]:
    return {match[1] for line in readelf("--dynamic", library) if (match := re.search(r"\(NEEDED\).*\[(.+)\]", line))}


def owners_of_versions(library: Path) -> dict[str, str]:
    """Which library each symbol version is expected from."""
    owners, owner = {}, ""
    for line in readelf("--version-info", library):
        if match := re.search(r"File: (\S+)", line):
            owner = match[1]
        elif owner and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            owners[match[1]] = owner
    return owners


def stem(library: str) -> str:
    return library.removeprefix("lib").split(".so")[0].removesuffix("_host")


def owner_by_name(symbol: str, libraries: set[str]) -> str:
    """The library whose name the symbol starts with, the longest first: cublasLtCreate is not cublas'."""
    plain = symbol.removeprefix("p") if symbol.startswith("pnccl") else symbol
    fitting = [library for library in libraries if plain.startswith(stem(library))]
    return max(fitting, key=lambda library: len(stem(library)), default="")


def write_library(path: Path, wanted: dict[str, set[Symbol]], work: Path) -> None:
    source, script = work / f"{path.name}.c", work / f"{path.name}.map"
    every = sorted({(symbol.name, symbol.is_object) for group in wanted.values() for symbol in group})
    source.write_text("".join(f"char {name}[4096];\n" if is_object else f"long {name}(void) {{ return 1; }}\n" for name, is_object in every))
    versions = [
        f"{version} {{ global: {' '.join(f'{symbol.name};' for symbol in sorted(group))} }};\n"
        for version, group in sorted(wanted.items())
        if version
    ]
    script.write_text("".join(versions))
    command = ["gcc", "-w", "-fno-builtin", "-nostdlib", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), str(source)]
    subprocess.run(command + ([f"-Wl,--version-script={script}"] if versions else []), check=True)


def main(site: Path) -> None:
    torch_libraries = [path for path in (site / "torch" / "lib").glob("*.so*") if not path.is_symlink()]
    out = site / "nvidia" / "cu13" / "lib"
    work = site / ".stand-in-libraries"
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)

    ours = {source.name.removesuffix(".c") for source in work.glob("*.c")}
    provided = {path.name for path in site.glob("**/*.so*")} - ours
    missing, defined, undefined, owners = set(), set(), set(), {}
    for library in torch_libraries:
        missing |= {name for name in needed(library) if CUDA_LIBRARY.match(name)} - provided
        owners |= owners_of_versions(library)
        for symbol in symbols(library):
            (defined if symbol.is_defined else undefined).add(symbol)
    defined_names = {symbol.name for symbol in defined}

    wanted = defaultdict(lambda: defaultdict(set))
    for symbol in undefined:
        owner = owners.get(symbol.version, "") if symbol.version else owner_by_name(symbol.name, missing)
        if owner in missing and symbol.name not in defined_names:
            wanted[owner][symbol.version].add(symbol)
    for name in sorted(missing):
        write_library(out / name, wanted[name], work)
    count = sum(len(group) for groups in wanted.values() for group in groups.values())
    print(f"{len(missing)} libraries, {count} symbols: {' '.join(sorted(missing))}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
