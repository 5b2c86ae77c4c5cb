/*
 * Entry points: PVH (32-bit), the 64-bit Linux boot protocol, and application processors.
 *
 * All three end in `enter_user`, which loads the static tables and leaves kernel mode by IRETQ. No stack,
 * no memory clearing, no parsing happens before that: each instruction here may cost a microsecond on a
 * host that emulates kernel mode. Arguments travel to C in RDI and RSI.
 */
#include "layout.h"

#define CR0_VALUE 0x80010033 /* PG, WP, NE, ET, MP, PE */
#define CR4_VALUE 0x00000620 /* OSXMMEXCPT, OSFXSR, PAE */
#define MSR_EFER  0xc0000080
#define EFER_LME  0x100

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18              /* name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad entry_pvh

    .section .text.boot, "ax", @progbits

/*
 * The legacy PIC may be as a BIOS left it, with a clock that ticks: its vectors are those of exceptions, and user mode has
 * interrupts on from its first instruction.
 */
    .macro mask_pic
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    .endm

/* PVH: flat 32-bit protected mode, paging off, EBX = hvm_start_info. */
    .code32
    .globl entry_pvh
entry_pvh:
    mov $ENTRY_PVH, %edi
    mov %ebx, %esi
    lgdt gdt_pointer
    mask_pic
enter_long:
    mov $CR4_VALUE, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    mov $EFER_LME, %eax
    xor %edx, %edx
    wrmsr
    mov $CR0_VALUE, %eax
    mov %eax, %cr0
    ljmp $SEL_KCODE64, $enter_user

/* Application processors come here from the trampoline, in 32-bit protected mode with the GDT loaded. */
entry_ap32:
    mov $SEL_KDATA, %eax
    mov %eax, %ds
    mov boot_argument, %edi
    xor %esi, %esi
    jmp enter_long

/* 64-bit Linux boot protocol: long mode on identity pages, RSI = zero page. CS stays the loader's. */
    .code64
    .globl entry_linux64
entry_linux64:
    mov $ENTRY_LINUX64, %edi
    lgdt gdt_pointer
    mov $CR4_VALUE, %eax
    mov %rax, %cr4
    mov $pml4, %eax
    mov %rax, %cr3
    mov $CR0_VALUE, %eax
    mov %rax, %cr0
    mask_pic
enter_user:
    lidt idt_pointer
    mov boot_tss, %eax
    ltr %ax
    mov boot_kstack, %rsp
    pushq $SEL_UDATA
    pushq boot_ustack
    pushq $0x202                /* interrupts on: user mode can't switch them */
    pushq $SEL_UCODE64
    pushq boot_rip
    iretq

/*
 * Real-mode start of an application processor, copied to TRAMPOLINE_ADDR. It must not depend on where it
 * lies: CS names its page.
 */
    .code16
    .globl trampoline, trampoline_end
trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl trampoline_gdt - trampoline
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $SEL_KCODE32, $entry_ap32
    .balign 8
trampoline_gdt:
    .word GDT_BYTES - 1
    .long gdt
trampoline_end:
    .code64

/*
 * What `enter_user` loads. The values in the image are the boot processor's; smp.c writes those of an
 * application processor before it starts it, one at a time.
 */
    .section .data.boot, "aw", @progbits
    .balign 8
    .globl boot_tss, boot_kstack, boot_ustack, boot_rip, boot_argument
boot_kstack:   .quad bsp_kstack + KSTACK_SIZE
boot_ustack:   .quad bsp_ustack + USTACK_SIZE - 8   /* as after a call: the ABI wants RSP + 8 aligned */
boot_rip:      .quad guest_main
boot_tss:      .long SEL_TSS0
boot_argument: .long 0

    .section .bss.stacks, "aw", @nobits
    .balign 4096
    .globl bsp_kstack, bsp_ustack
bsp_kstack: .skip KSTACK_SIZE
bsp_ustack: .skip USTACK_SIZE

    .section .note.GNU-stack, "", @progbits
