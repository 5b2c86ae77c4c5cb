#!/bin/sh
# usage: mkinitramfs.sh OUTPUT.cpio [MODULE.ko]...
#
# Makes an initramfs (newc cpio, not compressed, so that the kernel has nothing to unpack) around one static busybox:
# the one on PATH, or the one that BUSYBOX names. Modules are loaded in the order given. The same busybox gives the same
# bytes, if cpio is there; without it busybox's own cpio does the work.
set -eu

if [ $# -lt 1 ]; then
    echo "usage: $0 OUTPUT.cpio [MODULE.ko]..." >&2
    exit 2
fi
out=$(realpath -m "$1")
shift
busybox=${BUSYBOX:-$(command -v busybox || true)}
if [ ! -x "$busybox" ]; then
    echo "busybox is not installed: apt-get install busybox-static" >&2
    exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/mnt" "$root/etc" "$root/modules"
cp "$busybox" "$root/bin/busybox"
chmod 755 "$root/bin/busybox"
for applet in sh mount umount cat ls echo dd sync ping ip nc md5sum sha256sum mkdir rm uname dmesg head grep sleep \
    date free poweroff reboot insmod; do
    ln -s busybox "$root/bin/$applet"
done
number=100
for module; do
    cp "$module" "$root/modules/$number-$(basename "$module")"
    number=$((number + 1))
done
# Only root can make it; the kernel's own built-in initramfs has one, too.
mknod "$root/dev/console" c 5 1 2> /dev/null || true

cat > "$root/init" << 'INIT'
#!/bin/busybox sh
# Says that user space is there, then does what the kernel command line asks for:
#   run=COMMAND    a shell command, its spaces written as commas; ends with "RUN STATUS n"
#   then=reboot    or then=poweroff, after that
# and is a shell on the console otherwise.
echo "HELLO FROM GUEST"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2> /dev/null
for module in /modules/*.ko; do
    [ ! -e "$module" ] || insmod "$module" || echo "NO MODULE $module"
done
for word in $(cat /proc/cmdline); do
    case $word in
        run=*)
            sh -c "$(echo "${word#run=}" | busybox tr , ' ')"
            echo "RUN STATUS $?"
            ;;
        then=reboot) reboot -f ;;
        then=poweroff) poweroff -f ;;
    esac
done
exec sh
INIT
chmod 755 "$root/init"

find "$root" -exec touch -h -d @0 {} +
cd "$root"
if command -v cpio > /dev/null; then
    find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0 > "$out"
else
    find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 > "$out"
fi
