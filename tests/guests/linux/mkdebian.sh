#!/bin/sh
# usage: mkdebian.sh DIRECTORY [LINUX-IMAGE.deb]
#
# Debian's stock cloud kernel and an initramfs that loads its virtio modules: vmlinuz, initrd.cpio and cmdline.txt in
# DIRECTORY. Without the package it is downloaded by apt-get, as whatever linux-image-cloud-amd64 depends on. Installs
# nothing.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 DIRECTORY [LINUX-IMAGE.deb]" >&2
    exit 2
fi
here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
out=$(realpath "$1")
deb=${2:+$(realpath "$2")}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [ -z "$deb" ]; then
    name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    if [ -z "$name" ]; then
        echo "apt knows no linux-image-cloud-amd64: run apt-get update, or give the package's file" >&2
        exit 1
    fi
    apt-get -q download "$name"
    deb=$(echo "$work/$name"_*.deb)
fi
dpkg-deb -x "$deb" tree

# What a module depends on is written in it, as depends=ONE,TWO; those come first.
ordered=
add() {
    file=$(find tree -name "$1.ko" -o -name "$(echo "$1" | tr _ -).ko")
    [ -n "$file" ] || return 0 # built into the kernel
    case " $ordered " in *" $file "*) return 0 ;; esac
    for needed in $(tr '\0' '\n' < "$file" | sed -n 's/^depends=//p' | tr , ' '); do
        add "$needed"
    done
    file=$(find tree -name "$1.ko" -o -name "$(echo "$1" | tr _ -).ko")
    ordered="$ordered $file"
}
for module in virtio_pci virtio_blk virtio_net virtio_console virtio_rng; do
    add $module
done
echo "modules:$(for file in $ordered; do printf ' %s' "$(basename "$file" .ko)"; done)"

cp tree/boot/vmlinuz-* "$out/vmlinuz"
cp "$here/cmdline-debian.txt" "$out/cmdline.txt"
# No word of it is to be split: paths below a directory of mktemp have no blanks.
# shellcheck disable=SC2086
sh "$here/mkinitramfs.sh" "$out/initrd.cpio" $ordered
