/*
 * All of kernel mode after the start: interrupt handlers, exceptions and system calls.
 *
 * Plain moves, adds and jumps only, because hosts that emulate kernel mode lack many instructions and run
 * the others slowly. An interrupt handler counts and ends the interrupt; drivers look at the count from
 * user mode (irq.c). The stack tells the CPU: it is one page, with `struct percpu` at its bottom.
 */
#include "layout.h"

    .section .text.stubs, "ax", @progbits
    .balign 4096
    .globl stubs
stubs:
    .set i, 0
    .rept 256
    .balign 16
    .if i == 2                  /* NMI: nobody to tell */
    iretq
    .elseif i == 3
    jmp system_call
    .elseif (i == 8) || ((i >= 10) && (i <= 14)) || (i == 17) || (i == 21) || (i == 29) || (i == 30)
    pushq $i                    /* the CPU has pushed an error code */
    jmp exception
    .elseif i < 32
    pushq $0
    pushq $i
    jmp exception
    .elseif i == VEC_HALT
    jmp sys_halt
    .elseif i == VEC_SPURIOUS   /* wants no end-of-interrupt */
    iretq
    .elseif i < 128
    pushq $i
    jmp interrupt
    .else                       /* a push of one byte would be sign-extended */
    pushq $127
    jmp interrupt
    .endif
    .set i, i + 1
    .endr

    .section .text.traps, "ax", @progbits

interrupt:                      /* stack: vector, RIP ... */
    push %rax
    mov 8(%rsp), %rax
    incl irq_count(, %rax, 4)
    mov %rsp, %rax
    and $-KSTACK_SIZE, %rax
    incl PERCPU_EVENTS(%rax)
    cmpb $0, apic_is_x2apic
    jne 1f
    mov $LAPIC_BASE + 0xb0, %eax
    movl $0, (%rax)
    pop %rax
    add $8, %rsp
    iretq
1:  push %rcx
    push %rdx
    mov $0x80b, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    pop %rdx
    pop %rcx
    pop %rax
    add $8, %rsp
    iretq

/*
 * An exception of user mode goes on in user_fault(), on a fresh stack: the details are in `struct percpu`.
 * One of kernel mode can only come from an MSR access or an instruction that a system call tries out; the
 * call then returns -1. Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
 */
exception:
    testb $3, 24(%rsp)
    jz 1f
    push %rax
    push %rbx
    mov %rsp, %rbx
    and $-KSTACK_SIZE, %rbx
    mov 16(%rsp), %rax
    mov %rax, PERCPU_FAULT_VEC(%rbx)
    mov 24(%rsp), %rax
    mov %rax, PERCPU_FAULT_ERR(%rbx)
    mov 32(%rsp), %rax
    mov %rax, PERCPU_FAULT_RIP(%rbx)
    mov 56(%rsp), %rax
    mov %rax, PERCPU_FAULT_RSP(%rbx)
    mov %cr2, %rax
    mov %rax, PERCPU_FAULT_CR2(%rbx)
    movq $user_fault, 32(%rsp)
    mov PERCPU_USTACK(%rbx), %rax
    mov %rax, 56(%rsp)
    mov %rbx, %rdi              /* user_fault(struct percpu *) */
    pop %rbx
    pop %rax
    add $16, %rsp
    iretq
1:  mov 40(%rsp), %rsp          /* back to where the system call stood, with its own frame on top */
    jmp sys_failed

/*
 * System calls: INT3 with the number in RAX, arguments in RDI and RSI, result in RAX; RCX and RDX are lost.
 * INT3 because INT n and SYSCALL don't arrive from user mode on every host. A call that can fault pushes
 * nothing before it does, so that sys_failed finds the call's frame on top of the stack.
 */
system_call:
    cmp $SYS_COUNT, %rax
    jae sys_failed
    jmp *system_calls(, %rax, 8)

sys_failed:
    mov $-1, %rax
    iretq

sys_wait:
    mov %rsp, %rax
    and $-KSTACK_SIZE, %rax
    cmp %edi, PERCPU_EVENTS(%rax)
    jne 1f
    sti                         /* takes effect after HLT has begun: no wake-up is lost */
    hlt
    cli
1:  mov PERCPU_EVENTS(%rax), %eax
    iretq

sys_rdmsr:
    mov %edi, %ecx
    rdmsr
    shl $32, %rdx
    or %rdx, %rax
    iretq

sys_wrmsr:
    mov %edi, %ecx
    mov %esi, %eax
    mov %rsi, %rdx
    shr $32, %rdx
    wrmsr
    xor %eax, %eax
    iretq

sys_noidt:
    lidt empty_idt
    iretq

sys_halt:
    cli
1:  hlt
    jmp 1b

sys_spinoff:
    cli
1:  jmp 1b

sys_badop:
    xor %eax, %eax
    crc32l %edi, %eax
    iretq

sys_readcr:
    cmp $2, %edi
    je 2f
    cmp $3, %edi
    je 3f
    cmp $4, %edi
    je 4f
    mov %cr0, %rax
    iretq
2:  mov %cr2, %rax
    iretq
3:  mov %cr3, %rax
    iretq
4:  mov %cr4, %rax
    iretq

sys_flush:
    mov %cr3, %rax
    mov %rax, %cr3
    iretq

    .section .rodata.traps, "a", @progbits
    .balign 8
system_calls:
    .quad sys_wait, sys_rdmsr, sys_wrmsr, sys_noidt, sys_halt, sys_spinoff, sys_badop, sys_readcr
    .quad sys_flush
empty_idt:
    .word 0
    .quad 0

    .section .bss.traps, "aw", @nobits
    .balign 64
    .globl irq_count, apic_is_x2apic
irq_count: .skip 256 * 4
apic_is_x2apic: .skip 4

    .section .note.GNU-stack, "", @progbits
