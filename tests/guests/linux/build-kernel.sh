#!/bin/sh
# usage: build-kernel.sh OUTPUT_DIRECTORY [SOURCE_TARBALL]
#
# Builds the small test kernel from Debian's linux-source-6.1 package and leaves `vmlinux` (ELF with a PVH note and
# a 64-bit entry), `bzImage`, `config` and `cmdline.txt` in OUTPUT_DIRECTORY. Unpacks and builds in OUTPUT_DIRECTORY/build (2 GB),
# which is kept, so that a second run only builds what changed.
#
# JOBS=N sets the number of parallel jobs (default: as many as there are processors).
set -eu

here=$(dirname "$(realpath "$0")")
if [ $# -lt 1 ]; then
    echo "usage: $0 OUTPUT_DIRECTORY [SOURCE_TARBALL]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
tarball=${2:-/usr/src/linux-source-6.1.tar.xz}

if [ ! -r "$tarball" ]; then
    echo "$tarball is not there: apt-get install linux-source-6.1, or name the tarball as the second argument" >&2
    exit 1
fi
for tool in gcc make flex bison bc perl xz lz4; do
    if ! command -v "$tool" > /dev/null; then
        echo "$tool is not installed: apt-get install gcc make flex bison bc perl xz-utils lz4 libelf-dev libssl-dev" >&2
        exit 1
    fi
done

build=$out/build
if [ ! -e "$build/.unpacked" ]; then
    mkdir -p "$build"
    tar -C "$build" --strip-components=1 -xf "$tarball"
    touch "$build/.unpacked"
fi

# The same sources give the same bytes, whoever builds them and when.
export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=tvmm KBUILD_BUILD_HOST=tvmm

cd "$build"
make -s ARCH=x86 tinyconfig
scripts/kconfig/merge_config.sh -m .config "$here/tiny.config" > "$out/merge.log" 2>&1 || {
    cat "$out/merge.log" >&2
    exit 1
}
make -s ARCH=x86 olddefconfig

# An option that the kernel's Kconfig dropped without a word would show up as a puzzling test failure much later.
missing=$(grep '^CONFIG_.*=y' "$here/tiny.config" | while read -r line; do
    grep -qxF "$line" .config || echo "$line"
done)
if [ -n "$missing" ]; then
    echo "these options of tiny.config did not get through olddefconfig:" >&2
    echo "$missing" >&2
    exit 1
fi

make ARCH=x86 -j"${JOBS:-$(nproc)}" vmlinux bzImage
cp arch/x86/boot/bzImage "$out/bzImage"
cp .config "$out/config"
cp "$here/cmdline.txt" "$out/cmdline.txt"
objcopy --strip-debug vmlinux "$out/vmlinux"
ls -l "$out/vmlinux" "$out/bzImage"
