/*
 * Numbers that assembly, linker script and C must agree on.
 *
 * The program has no relocation and no start-up pass: descriptor tables and page tables are laid down
 * by the assembler and the linker, so that kernel mode (CPL0), which some hosts emulate at a millionth
 * of the speed of user mode, has next to nothing to do before the first user-mode instruction.
 */
#ifndef GUEST_LAYOUT_H
#define GUEST_LAYOUT_H

/* GDT selectors. User selectors carry RPL 3. */
#define SEL_KCODE64 0x08
#define SEL_KDATA   0x10
#define SEL_UCODE64 0x1b
#define SEL_UDATA   0x23
#define SEL_KCODE32 0x28
#define SEL_TSS0    0x30 /* one 16-byte TSS descriptor for each CPU from here on */
#define GDT_BYTES   (SEL_TSS0 + 16 * MAX_CPUS)

/*
 * CPUs that the static tables have room for. All TSSes share one I/O bitmap: TSS number i lies at
 * TSS_STRIDE * i and its I/O map base reaches over the TSSes behind it to the bitmap at their end.
 */
#define MAX_CPUS   256
#define TSS_STRIDE 0x80
#define IO_BITMAP_BYTES 0x2000

/* Each CPU's kernel stack is one page; its lowest bytes are the `struct percpu` of sys.h. */
#define KSTACK_SIZE 4096
#define USTACK_SIZE 16384

/* Offsets in `struct percpu`, checked by static assertions in sys.c. */
#define PERCPU_EVENTS     0
#define PERCPU_FAULT_VEC  8
#define PERCPU_FAULT_ERR  16
#define PERCPU_FAULT_RIP  24
#define PERCPU_FAULT_RSP  32
#define PERCPU_FAULT_CR2  40
#define PERCPU_USTACK     48

/* Interrupt vectors. I/O APIC pin n is VEC_PIN0 + n. */
#define VEC_PIN0     0x20
#define VEC_TIMER    0x40
#define VEC_WAKE     0x41
#define VEC_HALT     0x42
#define VEC_MSI      0x50 /* message signalled interrupts: from here to VEC_MSI_END - 1 */
#define VEC_MSI_END  0x7f /* 0x7f and all above are counted together */
#define VEC_SPURIOUS 0xff

/* System calls, by INT3 with the number in RAX (see traps.S). */
#define SYS_WAIT    0 /* rdi: count of events already seen; sleeps until it differs; returns the count */
#define SYS_RDMSR   1 /* rdi: MSR; returns its value */
#define SYS_WRMSR   2 /* rdi: MSR, rsi: value */
#define SYS_NOIDT   3 /* loads an empty IDT: the next trap is a triple fault */
#define SYS_HALT    4 /* cli; hlt, for ever */
#define SYS_SPINOFF 5 /* cli; jmp ., for ever */
#define SYS_BADOP   6 /* crc32, which instruction emulators lack */
#define SYS_READCR  7 /* rdi: 0, 2, 3 or 4 */
#define SYS_FLUSH   8 /* reloads CR3 */
#define SYS_COUNT   9

/* How the guest was entered: first argument of guest_main(). */
#define ENTRY_PVH     0
#define ENTRY_LINUX64 1

/* Page where the real-mode start code of the application processors is copied to. */
#define TRAMPOLINE_ADDR 0x8000

#define LAPIC_BASE  0xfee00000
#define IOAPIC_BASE 0xfec00000

#endif
