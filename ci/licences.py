#!/usr/bin/env python3
"""Checks every dependency of the workspace: its licence, where it comes from, and the least versions that are safe.

Reads `cargo metadata` for each manifest given. A licence expression passes when one of its alternatives consists of allowed
licences only.
"""
import json
import subprocess
import sys

ALLOWED = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "0BSD", "Zlib",
    "Unicode-3.0", "Unlicense", "CC0-1.0", "MPL-2.0", "BSL-1.0", "MIT-0", "NCSA",
}
# The first versions without what their advisories tell.
LEAST = {"boringtun": (0, 7, 1), "hickory-proto": (0, 26, 2)}
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def passes(expression):
    """Evaluates an SPDX expression: OR, AND, parentheses, WITH, and the old slash for OR."""
    tokens = expression.replace("/", " OR ").replace("(", " ( ").replace(")", " ) ").split()

    def either():
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = both() or result
        return result

    def both():
        result = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = one() and result
        return result

    def one():
        token = tokens.pop(0)
        if token == "(":
            result = either()
            tokens.pop(0)
            return result
        if tokens and tokens[0] == "WITH":
            token = f"{token} {tokens.pop(0)} {tokens.pop(0)}"
        return token in ALLOWED

    return either()


def main(manifests):
    assert passes("MIT OR GPL-3.0") and passes("(MIT OR X) AND ISC") and not passes("MIT AND GPL-3.0") and not passes("GPL-2.0")
    faults, seen = [], set()
    for manifest in manifests:
        command = ["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path", manifest]
        for package in json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["packages"]:
            name, version, source = package["name"], package["version"], package["source"]
            if (name, version) in seen:
                continue
            seen.add((name, version))
            if not passes(package["license"] or "none"):
                faults.append(f"{name} {version}: licence {package['license']!r} is not allowed")
            if source not in (None, REGISTRY):
                faults.append(f"{name} {version}: comes from {source}")
            if name in LEAST and tuple(map(int, version.split("-")[0].split("."))) < LEAST[name]:
                faults.append(f"{name} {version}: at least {'.'.join(map(str, LEAST[name]))} is needed")
    print("\n".join(faults) or f"{len(seen)} packages, all with allowed licences and sources")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
