/* The processor as user mode sees it: ports, device memory, time stamps, and calls into kernel mode. */
#ifndef GUEST_ARCH_H
#define GUEST_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Bottom of each CPU's kernel stack page; the kernel side (traps.S) writes it. */
struct percpu {
    volatile u32 events; /* interrupts taken so far: what SYS_WAIT compares */
    u32 reserved;
    u64 fault_vector, fault_error, fault_rip, fault_rsp, fault_cr2;
    u64 ustack; /* where user_fault() finds a fresh stack */
};

extern struct percpu bsp_kstack;
extern volatile u32 irq_count[256]; /* interrupts by vector, over all CPUs */
extern volatile u8 apic_is_x2apic;
extern char image_start[], image_end[];

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }

static inline u8 inb(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u16 inw(u16 port)
{
    u16 value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 inl(u16 port)
{
    u32 value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Device memory. Written as single MOVs, so that the host sees one access of the size meant. */
static inline u32 mmio_read32(u64 address)
{
    u32 value;
    asm volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void mmio_write32(u64 address, u32 value)
{
    asm volatile("movl %0, (%1)" ::"r"(value), "r"(address) : "memory");
}

static inline u8 mmio_read8(u64 address)
{
    u8 value;
    asm volatile("movb (%1), %0" : "=q"(value) : "r"(address) : "memory");
    return value;
}

static inline void mmio_write8(u64 address, u8 value)
{
    asm volatile("movb %0, (%1)" ::"q"(value), "r"(address) : "memory");
}

static inline u16 mmio_read16(u64 address)
{
    u16 value;
    asm volatile("movw (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void mmio_write16(u64 address, u16 value)
{
    asm volatile("movw %0, (%1)" ::"r"(value), "r"(address) : "memory");
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static inline void cpu_relax(void) { asm volatile("pause" ::: "memory"); }
static inline void compiler_barrier(void) { asm volatile("" ::: "memory"); }
static inline void full_barrier(void) { asm volatile("mfence" ::: "memory"); } /* stores before, loads behind */

static inline u64 syscall(u64 number, u64 first, u64 second)
{
    asm volatile("int3" : "+a"(number) : "D"(first), "S"(second) : "rcx", "rdx", "memory", "cc");
    return number;
}

static inline u64 rdmsr(u32 msr) { return syscall(SYS_RDMSR, msr, 0); } /* -1 if there is no such MSR */
static inline u64 wrmsr(u32 msr, u64 value) { return syscall(SYS_WRMSR, msr, value); } /* 0 or -1 */

#endif
