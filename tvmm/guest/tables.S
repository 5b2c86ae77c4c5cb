/*
 * GDT, IDT, TSSes and page tables, complete in the image.
 *
 * Descriptors scatter an address over several fields, which no relocation can express. The linker script
 * therefore computes the first descriptor of each kind (`tss_descriptor`, `gate_*`); the others differ
 * from it by a constant, which an addend can express.
 */
#include "layout.h"

/* For the linker script: limit of TSS 0, which ends with the byte of ones. */
    .globl tss0_limit
    .set tss0_limit, MAX_CPUS * TSS_STRIDE + IO_BITMAP_BYTES

    .section .data.tables, "aw", @progbits

    .balign 16
    .globl gdt, gdt_pointer, idt_pointer
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* SEL_KCODE64; the accessed bits are set, so nobody has to write them */
    .quad 0x00cf93000000ffff    /* SEL_KDATA */
    .quad 0x00affb000000ffff    /* SEL_UCODE64 */
    .quad 0x00cff3000000ffff    /* SEL_UDATA */
    .quad 0x00cf9b000000ffff    /* SEL_KCODE32 */
    .set i, 0
    .rept MAX_CPUS              /* base grows by one stride, limit shrinks by one */
    .quad tss_descriptor + i * (TSS_STRIDE << 16) - i * TSS_STRIDE
    .quad 0
    .set i, i + 1
    .endr
gdt_pointer:
    .word GDT_BYTES - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

/*
 * Interrupt gates. All stubs lie in one aligned page, 16 bytes apart, so that gate number n is gate 0 plus
 * 16 n. Gate 3 (INT3, the system call) may be used from user mode.
 */
    .balign 16
    .globl idt
idt:
    .set i, 0
    .rept 256
    .if i == 3
    .quad gate_user + i * 16
    .else
    .quad gate_kernel + i * 16
    .endif
    .quad 0
    .set i, i + 1
    .endr

/*
 * The TSSes, then the I/O bitmap that all share: all zero, so user mode may use every port (hosts are known
 * that ignore IOPL). The byte of ones behind it is read together with the last ports.
 */
    .balign 4096
    .globl tss_table
tss_table:
    .set i, 0
    .rept MAX_CPUS
    .long 0
    .if i == 0
    .quad bsp_kstack + KSTACK_SIZE
    .else
    .quad 0                     /* RSP0, written by smp.c */
    .endif
    .skip 0x66 - 12
    .word (MAX_CPUS - i) * TSS_STRIDE
    .skip TSS_STRIDE - 0x68
    .set i, i + 1
    .endr
    .skip IO_BITMAP_BYTES
    .byte 0xff

/*
 * Page tables: the low 4 GiB one to one by 2 MiB pages, all of it open to user mode. The last GiB holds
 * devices and is uncached. machine.c adds what RAM lies above 4 GiB.
 */
#define PTE_TABLE    0x07       /* present, writable, user */
#define PTE_RAM      0xe7       /* the same, accessed, dirty, 2 MiB page */
#define PTE_DEVICE   0xff       /* the same, write-through, cache disabled */

    .balign 4096
    .globl pml4, pdpt
pml4:
    .quad pdpt + PTE_TABLE
    .skip 4096 - 8
pdpt:
    .quad page_directory + PTE_TABLE
    .quad page_directory + 0x1000 + PTE_TABLE
    .quad page_directory + 0x2000 + PTE_TABLE
    .quad page_directory + 0x3000 + PTE_TABLE
    .skip 4096 - 32
page_directory:
    .set i, 0
    .rept 2048
    .if i < 1536
    .quad (i << 21) + PTE_RAM
    .else
    .quad (i << 21) + PTE_DEVICE
    .endif
    .set i, i + 1
    .endr

    .section .note.GNU-stack, "", @progbits
