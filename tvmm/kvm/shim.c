/* See shim.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "shim.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LSR_OFFSET 5
#define LSR_THRE_TEMT 0x60
/* THRE promises room for a whole FIFO: Linux writes 16 bytes after it has seen it once. */
#define FIFO_DEPTH 16
/* Room behind the announced capacity: a guest that writes without looking is held after each byte by its vCPU thread,
 * so what can come on top is one byte for each vCPU and one FIFO. */
#define RING_SLACK 4096

static int kick_signal(void) { return SIGRTMIN + 8; }

static void on_kick(int signo) { (void)signo; }

long tvmm_ioctl(int fd, unsigned long request, void *argument)
{
    long result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

long tvmm_ioctl_number(int fd, unsigned long request, unsigned long argument)
{
    long result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

/* This processor's own CPUID, which is what user code of a guest sees where KVM has no hardware virtualization. A leaf
 * beyond the last one reads as zeros; the instruction would answer with another leaf. */
void tvmm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
{
    memset(registers, 0, 4 * sizeof *registers);
    __get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
}

/* cffi cannot name the union inside. */
void tvmm_route_to_pin(struct kvm_irq_routing_entry *entry, uint32_t gsi, uint32_t irqchip, uint32_t pin)
{
    memset(entry, 0, sizeof *entry);
    entry->gsi = gsi;
    entry->type = KVM_IRQ_ROUTING_IRQCHIP;
    entry->u.irqchip.irqchip = irqchip;
    entry->u.irqchip.pin = pin;
}

void tvmm_route_to_msi(struct kvm_irq_routing_entry *entry, uint32_t gsi, uint64_t address, uint32_t data)
{
    memset(entry, 0, sizeof *entry);
    entry->gsi = gsi;
    entry->type = KVM_IRQ_ROUTING_MSI;
    entry->u.msi.address_lo = (uint32_t)address;
    entry->u.msi.address_hi = (uint32_t)(address >> 32);
    entry->u.msi.data = data;
}

/* LOCK CMPXCHG on guest memory: other vCPUs run natively beside us. `at` is aligned to `size`; `expected` becomes what was
 * there. 1: exchanged, 0: not, -1: no such size. */
int tvmm_compare_exchange(uint8_t *at, uint8_t *expected, const uint8_t *desired, uint32_t size)
{
    uint64_t want[2] = {0}, old[2] = {0};
    uint8_t same;

    if (size > sizeof want)
        return -1;
    memcpy(want, desired, size);
    memcpy(old, expected, size);
    switch (size) {
    case 1: same = __atomic_compare_exchange_n(at, (uint8_t *)old, (uint8_t)want[0], 0, 5, 5); break;
    case 2: same = __atomic_compare_exchange_n((uint16_t *)at, (uint16_t *)old, (uint16_t)want[0], 0, 5, 5); break;
    case 4: same = __atomic_compare_exchange_n((uint32_t *)at, (uint32_t *)old, (uint32_t)want[0], 0, 5, 5); break;
    case 8: same = __atomic_compare_exchange_n((uint64_t *)at, old, want[0], 0, 5, 5); break;
    case 16:
        __asm__ volatile("lock cmpxchg16b %1\n\tsete %0"
                         : "=q"(same), "+m"(*(unsigned __int128 *)at), "+a"(old[0]), "+d"(old[1])
                         : "b"(want[0]), "c"(want[1])
                         : "memory", "cc");
        break;
    default: return -1;
    }
    memcpy(expected, old, size);
    return same;
}

/* --- serial transmit ring --------------------------------------------------------------------------------------- */

struct tvmm_uart *tvmm_uart_new(uint32_t port, uint32_t capacity, int event_fd)
{
    struct tvmm_uart *uart = calloc(1, sizeof *uart);
    if (!uart)
        return NULL;
    uart->ring = malloc((size_t)capacity + RING_SLACK);
    if (!uart->ring) {
        free(uart);
        return NULL;
    }
    uart->port = port;
    uart->capacity = capacity;
    uart->event_fd = event_fd;
    uart->lsr = -1;
    pthread_mutex_init(&uart->lock, NULL);
    return uart;
}

void tvmm_uart_free(struct tvmm_uart *uart)
{
    if (!uart)
        return;
    pthread_mutex_destroy(&uart->lock);
    free(uart->ring);
    free(uart);
}

void tvmm_uart_publish(struct tvmm_uart *uart, int tx, int lsr)
{
    pthread_mutex_lock(&uart->lock);
    uart->tx = tx;
    uart->lsr = lsr;
    pthread_mutex_unlock(&uart->lock);
}

static int push_locked(struct tvmm_uart *uart, uint8_t byte, uint32_t limit)
{
    uint32_t total = uart->capacity + RING_SLACK;
    if (uart->count >= limit)
        return 0;
    uart->ring[(uart->head + uart->count) % total] = byte;
    uart->count++;
    if (uart->armed) {
        uint64_t one = 1;
        uart->armed = 0;
        /* Cannot fail in a way that matters: the counter saturates only after 2^64 - 2 writes without a read. */
        if (write(uart->event_fd, &one, sizeof one) < 0)
            uart->armed = 1;
    }
    return 1;
}

/* 1: taken. 0: even the slack is full, and the byte is lost (the caller counts it). */
int tvmm_uart_push(struct tvmm_uart *uart, uint8_t byte)
{
    pthread_mutex_lock(&uart->lock);
    int taken = push_locked(uart, byte, uart->capacity + RING_SLACK);
    pthread_mutex_unlock(&uart->lock);
    return taken;
}

static uint32_t room_locked(const struct tvmm_uart *uart)
{
    return uart->count < uart->capacity ? uart->capacity - uart->count : 0;
}

uint32_t tvmm_uart_room(struct tvmm_uart *uart)
{
    pthread_mutex_lock(&uart->lock);
    uint32_t room = room_locked(uart);
    pthread_mutex_unlock(&uart->lock);
    return room;
}

uint32_t tvmm_uart_peek(struct tvmm_uart *uart, uint8_t *into, uint32_t limit)
{
    pthread_mutex_lock(&uart->lock);
    uint32_t total = uart->capacity + RING_SLACK;
    uint32_t count = uart->count < limit ? uart->count : limit;
    uint32_t first = total - uart->head < count ? total - uart->head : count;
    memcpy(into, uart->ring + uart->head, first);
    memcpy(into + first, uart->ring, count - first);
    pthread_mutex_unlock(&uart->lock);
    return count;
}

void tvmm_uart_consume(struct tvmm_uart *uart, uint32_t count)
{
    pthread_mutex_lock(&uart->lock);
    if (count > uart->count)
        count = uart->count;
    uart->head = (uart->head + count) % (uart->capacity + RING_SLACK);
    uart->count -= count;
    pthread_mutex_unlock(&uart->lock);
}

/* The reader goes to sleep: 1 if it may, 0 if bytes are there already. */
int tvmm_uart_arm(struct tvmm_uart *uart)
{
    pthread_mutex_lock(&uart->lock);
    uart->armed = uart->count == 0;
    int armed = uart->armed;
    pthread_mutex_unlock(&uart->lock);
    return armed;
}

/* 1: the access is done. Only one-byte accesses come here. */
int tvmm_uart_access(struct tvmm_uart *uart, uint32_t offset, int is_in, uint8_t *data)
{
    int done = 0;
    pthread_mutex_lock(&uart->lock);
    if (is_in) {
        if (offset == LSR_OFFSET && uart->lsr >= 0) {
            *data = (uint8_t)uart->lsr | (room_locked(uart) >= FIFO_DEPTH ? LSR_THRE_TEMT : 0);
            uart->fast_reads++;
            done = 1;
        }
    } else if (offset == 0 && uart->tx && push_locked(uart, *data, uart->capacity)) {
        uart->fast_writes++;
        done = 1;
    }
    pthread_mutex_unlock(&uart->lock);
    return done;
}

/* --- vCPU --------------------------------------------------------------------------------------------------------- */

struct tvmm_vcpu *tvmm_vcpu_new(int fd, size_t run_size, int *error)
{
    struct sigaction action = {.sa_handler = on_kick};
    struct tvmm_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu) {
        *error = ENOMEM;
        return NULL;
    }
    vcpu->fd = fd;
    vcpu->run_size = run_size;
    vcpu->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    /* No SA_RESTART: the handler does nothing, its only effect is EINTR out of KVM_RUN. */
    if (vcpu->run == MAP_FAILED || sigaction(kick_signal(), &action, NULL) < 0) {
        *error = errno;
        if (vcpu->run != MAP_FAILED)
            munmap(vcpu->run, run_size);
        free(vcpu);
        return NULL;
    }
    return vcpu;
}

void tvmm_vcpu_free(struct tvmm_vcpu *vcpu)
{
    if (!vcpu)
        return;
    munmap(vcpu->run, vcpu->run_size);
    free(vcpu);
}

/* A vCPU thread takes the kick and nothing else: the process's signals are the main thread's affair. But SIGBUS is its own:
 * blocked, it would end the process without its handler (remap.c). */
void tvmm_thread_enter(struct tvmm_vcpu *vcpu)
{
    sigset_t mask;
    sigfillset(&mask);
    sigdelset(&mask, kick_signal());
    sigdelset(&mask, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &mask, &vcpu->saved_mask);
    __atomic_store_n(&vcpu->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
}

void tvmm_thread_leave(struct tvmm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->tid, 0, __ATOMIC_SEQ_CST);
    pthread_sigmask(SIG_SETMASK, &vcpu->saved_mask, NULL);
}

/* immediate_exit first, signal after: a kick that lands before KVM_RUN is then not lost. */
void tvmm_kick(struct tvmm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pid_t tid = __atomic_load_n(&vcpu->tid, __ATOMIC_SEQ_CST);
    if (tid)
        syscall(SYS_tgkill, getpid(), tid, kick_signal());
}

/* Called by the vCPU's own thread, before it looks at what the kicker wants. */
void tvmm_unkick(struct tvmm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
}

struct tvmm_bus *tvmm_bus_new(void)
{
    struct tvmm_bus *bus = calloc(1, sizeof *bus);
    if (bus)
        pthread_mutex_init(&bus->lock, NULL);
    return bus;
}

void tvmm_bus_free(struct tvmm_bus *bus)
{
    if (!bus)
        return;
    pthread_mutex_destroy(&bus->lock);
    free(bus);
}

void tvmm_bus_lock(struct tvmm_bus *bus) { pthread_mutex_lock(&bus->lock); }

void tvmm_bus_unlock(struct tvmm_bus *bus) { pthread_mutex_unlock(&bus->lock); }

/* By the vCPU's own thread, which is done with its access before the next step. */
void tvmm_release_bus(struct tvmm_vcpu *vcpu)
{
    if (vcpu->holds_bus) {
        vcpu->holds_bus = 0;
        pthread_mutex_unlock(&vcpu->bus->lock);
    }
}

static uint32_t with_bus(struct tvmm_vcpu *vcpu, uint32_t code)
{
    if (vcpu->bus) {
        pthread_mutex_lock(&vcpu->bus->lock);
        vcpu->holds_bus = 1;
    }
    return code;
}

static uint64_t load(const uint8_t *from, uint32_t size)
{
    uint64_t value = 0;
    memcpy(&value, from, size < sizeof value ? size : sizeof value);
    return value;
}

/* Run until there is something for Python. `response` answers the read that the last call returned. With a port or
 * memory access it returns holding the bus. */
uint32_t tvmm_step(struct tvmm_vcpu *vcpu, uint64_t response)
{
    struct kvm_run *run = vcpu->run;

    tvmm_release_bus(vcpu);
    if (vcpu->reply) {
        memcpy(vcpu->reply, &response, vcpu->reply_size);
        vcpu->reply = NULL;
    }
    for (;;) {
        int failed = ioctl(vcpu->fd, KVM_RUN, 0) < 0;
        if (failed) {
            if (errno == EINTR || errno == EAGAIN) {
                vcpu->reasons[KVM_EXIT_INTR]++;
                return TVMM_KICK;
            }
            vcpu->data = (uint64_t)errno;
            return TVMM_FAILED;
        }
        vcpu->exits++;
        vcpu->reasons[run->exit_reason < TVMM_EXIT_REASONS ? run->exit_reason : TVMM_EXIT_REASONS - 1]++;
        if (run->exit_reason == KVM_EXIT_IO) {
            uint8_t *data = (uint8_t *)run + run->io.data_offset;
            int is_in = run->io.direction == KVM_EXIT_IO_IN;
            if (run->io.count != 1)
                return TVMM_PIO_STRING;
            if (run->io.size == 1 && vcpu->uart && run->io.port - vcpu->uart->port < 8u
                && tvmm_uart_access(vcpu->uart, run->io.port - vcpu->uart->port, is_in, data)) {
                vcpu->exits_in_c++;
                continue;
            }
            if (is_in) {
                vcpu->reply = data;
                vcpu->reply_size = run->io.size;
                return with_bus(vcpu, TVMM_PIO_IN | (uint32_t)run->io.port << 8 | run->io.size);
            }
            vcpu->data = load(data, run->io.size);
            return with_bus(vcpu, (uint32_t)run->io.port << 8 | run->io.size);
        }
        if (run->exit_reason == KVM_EXIT_MMIO) {
            uint32_t size = run->mmio.len <= 8 ? run->mmio.len : 8;
            vcpu->address = run->mmio.phys_addr;
            if (run->mmio.is_write) {
                vcpu->data = load(run->mmio.data, size);
                return with_bus(vcpu, TVMM_MMIO_WRITE | size << 8);
            }
            vcpu->reply = run->mmio.data;
            vcpu->reply_size = size;
            return with_bus(vcpu, TVMM_MMIO_READ | size << 8);
        }
        if (run->exit_reason == KVM_EXIT_DIRTY_RING_FULL && vcpu->rings && !tvmm_rings_full(vcpu->rings, vcpu->index)) {
            vcpu->exits_in_c++;
            continue;
        }
        vcpu->data = run->exit_reason;
        return TVMM_OTHER;
    }
}

/* The pending string access: element count, and where its data lies (count * size bytes inside the run page). */
uint32_t tvmm_string_io(struct tvmm_vcpu *vcpu, uint8_t **data, uint32_t *size, uint32_t *port, uint32_t *is_in)
{
    struct kvm_run *run = vcpu->run;
    *data = (uint8_t *)run + run->io.data_offset;
    *size = run->io.size;
    *port = run->io.port;
    *is_in = run->io.direction == KVM_EXIT_IO_IN;
    return run->io.count;
}

/* The first words of the exit union, for reports. */
uint32_t tvmm_exit_words(struct tvmm_vcpu *vcpu, uint64_t *words, uint32_t limit)
{
    if (limit > 4)
        limit = 4;
    memcpy(words, &vcpu->run->hw, limit * sizeof *words);
    return limit;
}

uint32_t tvmm_internal_data(struct tvmm_vcpu *vcpu, uint32_t *suberror, uint64_t *data, uint32_t limit)
{
    uint32_t count = vcpu->run->internal.ndata;
    if (count > 16)
        count = 16;
    if (count > limit)
        count = limit;
    *suberror = vcpu->run->internal.suberror;
    for (uint32_t index = 0; index < count; index++)
        data[index] = vcpu->run->internal.data[index];
    return count;
}
