/* What Python sees of <linux/kvm.h> and of shim.h. "...;" leaves offsets and sizes to the compiler. */

#define KVM_API_VERSION ...

struct kvm_regs { uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags; };
struct kvm_segment { uint64_t base; uint32_t limit; uint16_t selector; uint8_t type, present, dpl, db, s, l, g, avl, unusable; ...; };
struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    unsigned long long interrupt_bitmap[4];
};
struct kvm_sregs2 { uint64_t flags; ...; };
struct kvm_fpu { ...; };
struct kvm_debugregs { unsigned long long db[4], dr6, dr7, flags; ...; };
struct kvm_lapic_state { char regs[1024]; };
struct kvm_mp_state { uint32_t mp_state; };
struct kvm_xsave { uint32_t region[1024]; ...; };
struct kvm_xcr { uint32_t xcr; uint32_t reserved; uint64_t value; };
struct kvm_xcrs { uint32_t nr_xcrs; uint32_t flags; struct kvm_xcr xcrs[16]; ...; };
struct kvm_vcpu_events {
    struct { uint8_t injected, nr, has_error_code, pending; uint32_t error_code; } exception;
    struct { uint8_t injected, nr, soft, shadow; } interrupt;
    struct { uint8_t injected, pending, masked, pad; } nmi;
    uint32_t sipi_vector;
    uint32_t flags;
    ...;
};
struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
struct kvm_cpuid2 { uint32_t nent; uint32_t padding; struct kvm_cpuid_entry2 entries[]; };
struct kvm_msr_entry { uint32_t index; uint32_t reserved; uint64_t data; };
struct kvm_msrs { uint32_t nmsrs; uint32_t pad; struct kvm_msr_entry entries[]; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; };
struct kvm_userspace_memory_region { uint32_t slot, flags; uint64_t guest_phys_addr, memory_size, userspace_addr; };
struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; ...; };
struct kvm_ioeventfd { uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
struct kvm_irqchip { uint32_t chip_id; ...; };
struct kvm_pit_state2 { uint32_t flags; ...; };
struct kvm_irq_routing_entry { uint32_t gsi, type, flags; ...; };
struct kvm_irq_routing { uint32_t nr, flags; struct kvm_irq_routing_entry entries[]; };
struct kvm_pit_config { uint32_t flags; ...; };
struct kvm_enable_cap { uint32_t cap, flags; unsigned long long args[4]; ...; };

#define KVM_GET_API_VERSION ...
#define KVM_CREATE_VM ...
#define KVM_CHECK_EXTENSION ...
#define KVM_GET_VCPU_MMAP_SIZE ...
#define KVM_GET_SUPPORTED_CPUID ...
#define KVM_GET_EMULATED_CPUID ...
#define KVM_GET_MSR_INDEX_LIST ...
#define KVM_CREATE_VCPU ...
#define KVM_SET_USER_MEMORY_REGION ...
#define KVM_SET_TSS_ADDR ...
#define KVM_SET_IDENTITY_MAP_ADDR ...
#define KVM_CREATE_IRQCHIP ...
#define KVM_CREATE_PIT2 ...
#define KVM_IRQFD ...
#define KVM_IOEVENTFD ...
#define KVM_SET_GSI_ROUTING ...
#define KVM_IRQCHIP_PIC_MASTER ...
#define KVM_IRQCHIP_PIC_SLAVE ...
#define KVM_IRQCHIP_IOAPIC ...
#define KVM_GET_IRQCHIP ...
#define KVM_SET_IRQCHIP ...
#define KVM_GET_PIT2 ...
#define KVM_SET_PIT2 ...
#define KVM_GET_REGS ...
#define KVM_SET_REGS ...
#define KVM_GET_SREGS ...
#define KVM_SET_SREGS ...
#define KVM_GET_MSRS ...
#define KVM_SET_MSRS ...
#define KVM_SET_CPUID2 ...
#define KVM_GET_CPUID2 ...
#define KVM_GET_LAPIC ...
#define KVM_SET_LAPIC ...
#define KVM_GET_MP_STATE ...
#define KVM_SET_MP_STATE ...
#define KVM_GET_VCPU_EVENTS ...
#define KVM_SET_VCPU_EVENTS ...
#define KVM_GET_XSAVE ...
#define KVM_SET_XSAVE ...
#define KVM_GET_XCRS ...
#define KVM_SET_XCRS ...
#define KVM_GET_DEBUGREGS ...
#define KVM_SET_DEBUGREGS ...
#define KVM_GET_SREGS2 ...
#define KVM_SET_SREGS2 ...
#define KVM_GET_XSAVE2 ...
#define KVM_GET_TSC_KHZ ...
#define KVM_SET_TSC_KHZ ...
#define KVM_KVMCLOCK_CTRL ...
#define KVM_GET_CLOCK ...
#define KVM_SET_CLOCK ...
#define KVM_ENABLE_CAP ...

#define KVM_MEM_LOG_DIRTY_PAGES ...
#define KVM_MEM_READONLY ...
#define KVM_IRQFD_FLAG_DEASSIGN ...
#define KVM_IRQFD_FLAG_RESAMPLE ...
#define KVM_IOEVENTFD_FLAG_DATAMATCH ...
#define KVM_IOEVENTFD_FLAG_DEASSIGN ...
#define KVM_PIT_SPEAKER_DUMMY ...
#define KVM_CLOCK_REALTIME ...
#define KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE ...
#define KVM_DIRTY_LOG_INITIALLY_SET ...

#define KVM_CAP_IRQCHIP ...
#define KVM_CAP_USER_MEMORY ...
#define KVM_CAP_EXT_CPUID ...
#define KVM_CAP_NR_VCPUS ...
#define KVM_CAP_MAX_VCPUS ...
#define KVM_CAP_NR_MEMSLOTS ...
#define KVM_CAP_PIT2 ...
#define KVM_CAP_MP_STATE ...
#define KVM_CAP_IRQFD ...
#define KVM_CAP_IOEVENTFD ...
#define KVM_CAP_VCPU_EVENTS ...
#define KVM_CAP_XSAVE ...
#define KVM_CAP_XCRS ...
#define KVM_CAP_ADJUST_CLOCK ...
#define KVM_CAP_GET_TSC_KHZ ...
#define KVM_CAP_IRQ_ROUTING ...
#define KVM_CAP_SIGNAL_MSI ...
#define KVM_CAP_READONLY_MEM ...
#define KVM_CAP_IMMEDIATE_EXIT ...
#define KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 ...
#define KVM_CAP_DIRTY_LOG_RING ...
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL ...
#define KVM_CAP_SYNC_REGS ...
#define KVM_CAP_IRQFD_RESAMPLE ...
#define KVM_CAP_TSC_CONTROL ...
#define KVM_CAP_KVMCLOCK_CTRL ...
#define KVM_CAP_SREGS2 ...
#define KVM_CAP_XSAVE2 ...
#define KVM_CAP_X86_TRIPLE_FAULT_EVENT ...

#define TVMM_KICK ...
#define TVMM_PIO_IN ...
#define TVMM_PIO_STRING ...
#define TVMM_MMIO_WRITE ...
#define TVMM_MMIO_READ ...
#define TVMM_OTHER ...
#define TVMM_FAILED ...

struct tvmm_uart {
    uint32_t port;
    int32_t tx, lsr;
    int event_fd;
    uint64_t fast_writes, fast_reads;
    ...;
};
struct tvmm_uart *tvmm_uart_new(uint32_t port, uint32_t capacity, int event_fd);
void tvmm_uart_free(struct tvmm_uart *uart);
void tvmm_uart_publish(struct tvmm_uart *uart, int tx, int lsr);
int tvmm_uart_push(struct tvmm_uart *uart, uint8_t byte);
uint32_t tvmm_uart_room(struct tvmm_uart *uart);
uint32_t tvmm_uart_peek(struct tvmm_uart *uart, uint8_t *into, uint32_t limit);
void tvmm_uart_consume(struct tvmm_uart *uart, uint32_t count);
int tvmm_uart_arm(struct tvmm_uart *uart);

struct tvmm_bus { ...; };
struct tvmm_bus *tvmm_bus_new(void);
void tvmm_bus_free(struct tvmm_bus *bus);
void tvmm_bus_lock(struct tvmm_bus *bus);
void tvmm_bus_unlock(struct tvmm_bus *bus);

struct tvmm_vcpu {
    int fd;
    uint64_t address, data;
    uint64_t exits, exits_in_c;
    uint64_t reasons[...];
    struct tvmm_uart *uart;
    struct tvmm_bus *bus;
    struct tvmm_rings *rings;
    uint32_t index;
    ...;
};
void tvmm_release_bus(struct tvmm_vcpu *vcpu);
struct tvmm_vcpu *tvmm_vcpu_new(int fd, size_t run_size, int *error);
void tvmm_vcpu_free(struct tvmm_vcpu *vcpu);
uint32_t tvmm_step(struct tvmm_vcpu *vcpu, uint64_t response);
void tvmm_kick(struct tvmm_vcpu *vcpu);
void tvmm_unkick(struct tvmm_vcpu *vcpu);
void tvmm_thread_enter(struct tvmm_vcpu *vcpu);
void tvmm_thread_leave(struct tvmm_vcpu *vcpu);
uint32_t tvmm_string_io(struct tvmm_vcpu *vcpu, uint8_t **data, uint32_t *size, uint32_t *port, uint32_t *is_in);
uint32_t tvmm_exit_words(struct tvmm_vcpu *vcpu, uint64_t *words, uint32_t limit);
uint32_t tvmm_internal_data(struct tvmm_vcpu *vcpu, uint32_t *suberror, uint64_t *data, uint32_t limit);

void tvmm_route_to_msi(struct kvm_irq_routing_entry *entry, uint32_t gsi, uint64_t address, uint32_t data);
void tvmm_route_to_pin(struct kvm_irq_routing_entry *entry, uint32_t gsi, uint32_t irqchip, uint32_t pin);
void tvmm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);
long tvmm_ioctl(int fd, unsigned long request, void *argument);
long tvmm_ioctl_number(int fd, unsigned long request, unsigned long argument);
int tvmm_compare_exchange(uint8_t *at, uint8_t *expected, const uint8_t *desired, uint32_t size);
int tvmm_uart_access(struct tvmm_uart *uart, uint32_t offset, int is_in, uint8_t *data);

/* dirty.h */
#define TVMM_DIRTY_PAGE_SHIFT ...
struct tvmm_dirty_block { uint8_t *base; uint64_t pages; uint64_t *words; };
struct tvmm_device_log { uint32_t on; uint32_t count; struct tvmm_dirty_block blocks[]; };
int tvmm_device_log_start(struct tvmm_device_log *log);
void tvmm_device_log_stop(struct tvmm_device_log *log);
void tvmm_device_log_free(struct tvmm_device_log *log);
uint64_t tvmm_device_log_take(struct tvmm_device_log *log, uint32_t index, uint64_t *into);
void tvmm_device_log_mark(struct tvmm_device_log *log, const void *hva, uint64_t length);

/* vring.h */
#define TVMM_RING_INDIRECT_MAX ...
#define TVMM_RING_SIZE_MAX ...
#define TVMM_RING_PACKED_IDS ...
#define TVMM_RING_BYTES_MAX ...
#define TVMM_REGION_READ_ONLY ...
#define TVMM_CHAIN_FREE ...
#define TVMM_CHAIN_IN_FLIGHT ...
#define TVMM_CHAIN_DONE ...
enum tvmm_ring_error {
    TVMM_RING_NONE,
    TVMM_RING_QUEUE_SIZE,
    TVMM_RING_AREA_MISALIGNED,
    TVMM_RING_AREA_OUTSIDE_RAM,
    TVMM_RING_AREA_DIVIDED,
    TVMM_RING_AREA_READ_ONLY,
    TVMM_RING_AREAS_OVERLAP,
    TVMM_RING_INDEX_JUMP,
    TVMM_RING_HEAD_RANGE,
    TVMM_RING_ID_IN_FLIGHT,
    TVMM_RING_NEXT_RANGE,
    TVMM_RING_CHAIN_TOO_LONG,
    TVMM_RING_INDIRECT_REFUSED,
    TVMM_RING_INDIRECT_NESTED,
    TVMM_RING_INDIRECT_LINKED,
    TVMM_RING_INDIRECT_LENGTH,
    TVMM_RING_INDIRECT_TOO_LONG,
    TVMM_RING_INDIRECT_OUTSIDE_RAM,
    TVMM_RING_READABLE_AFTER_WRITABLE,
    TVMM_RING_BUFFER_EMPTY,
    TVMM_RING_BUFFER_WRAPS,
    TVMM_RING_BUFFER_OUTSIDE_RAM,
    TVMM_RING_BUFFER_READ_ONLY,
    TVMM_RING_TOO_MANY_IOVECS,
    TVMM_RING_TOO_MANY_BYTES,
    ...
};
struct iovec { void *iov_base; size_t iov_len; };
struct tvmm_region { uint64_t gpa, size; uint8_t *hva; uint32_t flags; ...; };
#define TVMM_MEMORY_COMING ...
#define TVMM_MEMORY_LOST ...
struct tvmm_memory_map {
    uint32_t count;
    struct tvmm_device_log *log;
    const int32_t *presence;
    struct tvmm_region regions[];
};
struct tvmm_chain {
    uint32_t id, first, readable_count, writable_count;
    uint64_t readable_bytes, writable_bytes;
};
struct tvmm_used { uint32_t id, length; };
struct tvmm_batch {
    uint32_t chain_limit, iovec_limit;
    uint32_t count, iovec_count;
    struct tvmm_chain *chains;
    struct tvmm_used *used;
    struct iovec *iovecs;
};
struct tvmm_in_flight { uint64_t writable; uint32_t length; uint16_t slots, status; };
struct tvmm_vring_counters {
    uint64_t pops, empty_pops, chains, returned, used_entries, kicks, interrupts, suppressed, errors;
};
struct tvmm_vring {
    uint64_t features, descriptor_area, driver_area, device_area;
    uint32_t size;
    uint32_t error;
    uint64_t error_value;
    uint32_t next_avail, avail_wrap, next_used, used_wrap;
    uint32_t unsignalled;
    uint32_t kicks_wanted, kick_event;
    uint32_t in_flight_count, slots_in_flight;
    uint32_t order_head;
    struct tvmm_vring_counters counters;
    struct tvmm_in_flight *in_flight;
    uint16_t *order;
    ...;
};
struct tvmm_vring *tvmm_vring_new(void);
void tvmm_vring_free(struct tvmm_vring *ring);
void tvmm_vring_reset(struct tvmm_vring *ring);
int tvmm_vring_configure(struct tvmm_vring *ring, const struct tvmm_memory_map *map);
uint32_t tvmm_vring_pop(struct tvmm_vring *ring, struct tvmm_batch *batch);
int tvmm_vring_unpop(struct tvmm_vring *ring, struct tvmm_batch *batch, uint32_t count);
int tvmm_vring_push(struct tvmm_vring *ring, const struct tvmm_used *used, uint32_t count);
int tvmm_vring_should_notify(struct tvmm_vring *ring);
int tvmm_vring_ready(const struct tvmm_vring *ring);
void tvmm_vring_disable_kicks(struct tvmm_vring *ring);
int tvmm_vring_enable_kicks(struct tvmm_vring *ring);

/* prompt.c */
struct tvmm_sched_attr { int32_t nice; uint64_t runtime; ...; };
int tvmm_prompt(struct tvmm_sched_attr *before);
void tvmm_unprompt(const struct tvmm_sched_attr *before);

/* serve.h */
enum tvmm_serve {
    TVMM_SERVE_CONTROL,
    TVMM_SERVE_INTERRUPT,
    TVMM_SERVE_CHAIN,
    TVMM_SERVE_BROKEN,
    TVMM_SERVE_FAILED,
    ...
};
#define TVMM_CALL_PYTHON ...
#define TVMM_CALL_NONE ...
struct tvmm_served { struct tvmm_vring *ring; int kick_fd; int32_t call_fd; uint64_t calls_by_python; };
struct tvmm_waker { int event_fd; uint32_t wanted; };
/* histogram.h */
#define TVMM_HISTOGRAM_FIRST ...
#define TVMM_HISTOGRAM_LAST ...
struct tvmm_histogram { uint64_t sum_ns; uint64_t counts[...]; ...; };
extern int tvmm_timing;
void tvmm_histogram_count(struct tvmm_histogram *histogram, uint64_t ns);

struct tvmm_spin { uint64_t max_ns, window_ns, hits, sleeps; };
int tvmm_waker_open(struct tvmm_waker *waker);
void tvmm_waker_close(struct tvmm_waker *waker);
void tvmm_waker_wake(struct tvmm_waker *waker);
void tvmm_waker_clear(struct tvmm_waker *waker);
void tvmm_waker_wait(struct tvmm_waker *waker);
int tvmm_served_call(struct tvmm_served *queue);
void tvmm_set_call(struct tvmm_served *queue, int32_t fd);

/* limit.h */
#define TVMM_LIMIT_TOTAL ...
#define TVMM_LIMIT_IN ...
#define TVMM_LIMIT_OUT ...
#define TVMM_LIMIT_RATES ...
#define TVMM_LIMIT_BUCKETS ...
struct tvmm_limit_rate { uint64_t rate, burst; uint32_t seconds; };
struct tvmm_limit_member { ...; };
struct tvmm_limit { uint32_t generation; uint64_t waits[...]; ...; };
struct tvmm_limit *tvmm_limit_new(void);
void tvmm_limit_free(struct tvmm_limit *limit);
void tvmm_limit_set(struct tvmm_limit *limit, const struct tvmm_limit_rate *rates, uint64_t operation_size,
                    uint64_t now_ns);
int64_t tvmm_limit_ask_both(struct tvmm_limit *limit, struct tvmm_limit_member *member, uint32_t direction,
                            uint64_t now_ns);
void tvmm_limit_charge(struct tvmm_limit *limit, uint32_t direction, uint64_t operations, uint64_t bytes,
                       uint64_t now_ns);
void tvmm_limit_forget(struct tvmm_limit *limit, struct tvmm_limit_member *member);
void tvmm_limit_level(struct tvmm_limit *limit, uint32_t bucket, uint64_t now_ns, int64_t *tokens,
                      uint32_t *billionths);
uint64_t tvmm_now_ns(void);

/* net.h */
#define TVMM_NET_HEADER ...
#define TVMM_NET_FRAME_MAX ...
#define TVMM_NET_FRAME_MIN ...
#define TVMM_NET_TURN ...
#define NET_STREAM_FRAME_MAX ...
#define TVMM_NET_ADDRESSES ...
#define TVMM_NET_RX ...
#define TVMM_NET_TX ...
#define TVMM_NET_CONTROL ...
#define TVMM_NET_QUEUES ...
struct tvmm_net_filter {
    uint32_t modes, any_unicast, any_multicast, unicast_count, multicast_count;
    uint8_t own[6];
    uint8_t unicast[...][6], multicast[...][6];
};
struct tvmm_net_counters {
    uint64_t rx_frames, rx_bytes, rx_turns, rx_filtered, rx_no_room, rx_link_down, rx_errors, rx_stale, rx_held;
    uint64_t tx_frames, tx_bytes, tx_turns, tx_too_short, tx_too_long, tx_refused, tx_link_down, tx_waits;
};
struct tvmm_net {
    struct tvmm_served queues[...];
    struct tvmm_waker *waker;
    struct tvmm_batch *rx_batch, *tx_batch;
    struct tvmm_spin spin, hunger;
    uint32_t mergeable, attached;
    int32_t failure;
    uint32_t queue, bad_length, bad_chain, stopped;
    struct tvmm_net_counters counters;
    struct tvmm_histogram turns[2];
    struct tvmm_net_filter filter;
    ...;
};
struct tvmm_net *tvmm_net_new(int fd);
void tvmm_net_free(struct tvmm_net *net);
void tvmm_net_lock(struct tvmm_net *net);
void tvmm_net_unlock(struct tvmm_net *net);
void tvmm_net_start(struct tvmm_net *net, uint32_t index, struct tvmm_vring *ring, int kick_fd, int32_t call_fd);
void tvmm_net_stop(struct tvmm_net *net, uint32_t index);
void tvmm_net_drain(struct tvmm_net *net);
void tvmm_net_flush(struct tvmm_net *net);
void tvmm_net_set_link(struct tvmm_net *net, uint32_t up);
int tvmm_net_inject(struct tvmm_net *net, const uint8_t *frame, uint32_t length);
int tvmm_net_make_stream(struct tvmm_net *net);
void tvmm_net_connect(struct tvmm_net *net, int fd);
int tvmm_net_passes(const struct tvmm_net_filter *filter, const uint8_t *destination);
int tvmm_net_serve(struct tvmm_net *net);
void tvmm_net_set_limit(struct tvmm_net *net, struct tvmm_limit *limit, uint32_t on);

/* vsock.h */
#define TVMM_VSOCK_HEADER ...
#define TVMM_VSOCK_HOST_CID ...
#define TVMM_VSOCK_CONNECTIONS ...
#define TVMM_VSOCK_BUFFER ...
#define TVMM_VSOCK_BUFFER_SMALL ...
#define TVMM_VSOCK_BUDGET ...
#define TVMM_VSOCK_REPLIES ...
#define TVMM_VSOCK_TURN ...
#define TVMM_VSOCK_RX ...
#define TVMM_VSOCK_TX ...
#define TVMM_VSOCK_EVENT ...
#define TVMM_VSOCK_QUEUES ...
struct tvmm_vsock_counters {
    uint64_t rx_packets, rx_bytes, rx_turns, tx_packets, tx_bytes, tx_turns;
    uint64_t by_guest, by_host, refused, declined, crowded, ended;
    uint64_t no_credit, malformed, strays, resets_sent, resets_received;
    uint64_t buffered, discarded, starved, credit_updates, replies_full;
};
struct tvmm_vsock {
    struct tvmm_served queues[...];
    struct tvmm_waker *waker;
    struct tvmm_batch *rx_batch, *tx_batch, *event_batch;
    struct tvmm_spin spin;
    uint32_t queue, bad_chain, stopped, reset_due, connections;
    struct tvmm_vsock_counters counters;
    ...;
};
struct tvmm_vsock *tvmm_vsock_new(uint64_t guest_cid, const char *path, int *error);
void tvmm_vsock_free(struct tvmm_vsock *vsock);
int tvmm_vsock_start(struct tvmm_vsock *vsock, uint32_t index, struct tvmm_vring *ring, int kick_fd, int32_t call_fd);
void tvmm_vsock_stop(struct tvmm_vsock *vsock, uint32_t index);
void tvmm_vsock_drain(struct tvmm_vsock *vsock);
void tvmm_vsock_close_all(struct tvmm_vsock *vsock);
int tvmm_vsock_call(struct tvmm_vsock *vsock, int fd, uint32_t port);
int tvmm_vsock_serve(struct tvmm_vsock *vsock, uint32_t sleeps);

/* blk.h */
#define TVMM_BLK_ID_LENGTH ...
#define TVMM_BLK_RANGES_MAX ...
#define TVMM_BLK_IOVECS_MAX ...
#define TVMM_BLK_OPERATIONS 6
#define TVMM_BLK_WAITS_MAX ...
struct tvmm_nbd_link;
enum tvmm_blk_verdict { TVMM_BLK_RUN, TVMM_BLK_REFUSE, TVMM_BLK_NO_STATUS, TVMM_BLK_NO_HEADER, ... };
enum tvmm_blk_broken {
    TVMM_BLK_WORKS,
    TVMM_BLK_BROKEN_RING,
    TVMM_BLK_BROKEN_STATUS,
    TVMM_BLK_BROKEN_HEADER,
    TVMM_BLK_BROKEN_USED,
    ...
};
enum tvmm_blk_policy { TVMM_BLK_REPORT, TVMM_BLK_IGNORE, TVMM_BLK_STOP, TVMM_BLK_ENOSPC, ... };
enum tvmm_blk_engine_kind { TVMM_BLK_SYNC, TVMM_BLK_THREADS, TVMM_BLK_URING, TVMM_BLK_NBD, ... };
struct tvmm_blk_limits {
    uint64_t capacity;
    uint32_t read_only, flush;
    uint32_t max_discard, discard_ranges, max_zeroes, zeroes_ranges;
    uint8_t serial[20];
    ...;
};
struct tvmm_blk_range { uint64_t offset, length; uint32_t unmap; ...; };
struct tvmm_blk_request {
    struct tvmm_blk_request *next;
    uint32_t id, operation, code, adjacent, stable;
    uint8_t *status;
    uint64_t offset, length, done;
    struct iovec *iovecs;
    uint32_t iovec_count, iovec_first;
    struct tvmm_blk_range *ranges;
    uint32_t range_count, range_first;
    ...;
};
struct tvmm_blk_counters {
    uint64_t requests[6], errors[6];
    uint64_t read_bytes, written_bytes, unmapped_bytes;
    uint64_t refused, ignored, stops, retried, cached, plain, stable, steps;
};
struct tvmm_blk_setup {
    int fd, plain_fd;
    uint32_t memory_align, offset_align;
    uint32_t is_device;
    uint32_t engine, depth;
    uint32_t read_policy, write_policy;
    uint32_t ignore_flush;
    uint32_t fault_ppm;
    uint32_t link_count;
    struct tvmm_nbd_link **links;
};
struct tvmm_blk_dirty { uint64_t *words; uint64_t blocks; uint32_t shift; };
void tvmm_blk_dirty_mark(struct tvmm_blk_dirty *dirty, uint64_t offset, uint64_t length);
void tvmm_blk_dirty_fill(struct tvmm_blk_dirty *dirty);
uint64_t tvmm_blk_dirty_take(struct tvmm_blk_dirty *dirty, uint64_t from, uint64_t limit, uint64_t *first);
uint64_t tvmm_blk_dirty_count(const struct tvmm_blk_dirty *dirty);
int tvmm_all_zero(const uint8_t *data, uint64_t length);
struct tvmm_blk_file { int32_t sync_error; uint64_t changed, covered; struct tvmm_blk_dirty *dirty; };
struct tvmm_blk_notice { uint32_t pending, operation, action; int32_t error; ...; };
struct tvmm_blk_latency { struct tvmm_histogram histograms[...]; ...; };
struct tvmm_blk {
    struct tvmm_served queue;
    struct tvmm_spin spin, busy_spin;
    struct tvmm_blk_limits limits;
    struct tvmm_blk_counters counters;
    struct tvmm_blk_latency latency;
    struct tvmm_blk_notice notice;
    uint32_t broken, given_up, call_pending;
    int32_t stopped;
    uint32_t at_engine;
    struct tvmm_blk_request *kept;
    ...;
};
struct tvmm_blk *tvmm_blk_new(const struct tvmm_blk_setup *setup, struct tvmm_blk_file *file,
                              struct tvmm_waker *waker, int kick_fd, uint64_t spin_max_ns, int *error);
void tvmm_blk_free(struct tvmm_blk *blk);
int tvmm_blk_start(struct tvmm_blk *blk, struct tvmm_vring *ring);
void tvmm_blk_stop(struct tvmm_blk *blk);
uint32_t tvmm_blk_serve(struct tvmm_blk *blk);
void tvmm_blk_drain(struct tvmm_blk *blk);
int tvmm_blk_active(const struct tvmm_blk *blk);
void tvmm_blk_resume(struct tvmm_blk *blk);
void tvmm_blk_set_capacity(struct tvmm_blk *blk, uint64_t sectors);
void tvmm_blk_set_write_through(struct tvmm_blk *blk, uint32_t on);
void tvmm_blk_set_limit(struct tvmm_blk *blk, struct tvmm_limit *limit, uint32_t on);
int tvmm_blk_keep_again(struct tvmm_blk *blk, const struct tvmm_blk_request *request);
enum tvmm_blk_verdict tvmm_blk_parse(const struct tvmm_blk_limits *limits, const struct tvmm_chain *chain,
                                     const struct iovec *iovecs, struct tvmm_blk_request *request);
void tvmm_blk_forget(struct tvmm_blk_request *request);
uint32_t tvmm_blk_used_length(const struct tvmm_blk_request *request, int ok);
int tvmm_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);
int tvmm_in_memory(int fd);
int tvmm_can_punch(int fd, uint64_t end);
int tvmm_zero_range(int fd, uint64_t offset, uint64_t length);

/* nbd.h */
#define TVMM_NBD_REASON ...
struct tvmm_nbd_transmission {
    uint32_t flags, structured, extended;
    uint32_t minimum_block, maximum_payload;
};
struct tvmm_nbd_link *tvmm_nbd_link_new(int *error);
void tvmm_nbd_link_free(struct tvmm_nbd_link *link);
int tvmm_nbd_link_lost_fd(const struct tvmm_nbd_link *link);
int tvmm_nbd_link_give(struct tvmm_nbd_link *link, int fd, const struct tvmm_nbd_transmission *transmission);
void tvmm_nbd_link_fail(struct tvmm_nbd_link *link, int error);
void tvmm_nbd_link_hang_up(struct tvmm_nbd_link *link);
int tvmm_nbd_link_take_loss(struct tvmm_nbd_link *link, char *text, uint32_t room);
int tvmm_nbd_link_flush(struct tvmm_nbd_link *link);

/* pages.h */
#define TVMM_PAGE ...
#define TVMM_PAGE_KEY ...
struct tvmm_page_block { uint8_t *base; uint64_t pages; uint64_t *written; int32_t fd; };
struct tvmm_ram_pages { uint32_t count; struct tvmm_page_block blocks[]; };
struct tvmm_bitmap_block { uint64_t pages; uint64_t *words; };
struct tvmm_bitmap { uint32_t count; struct tvmm_bitmap_block blocks[]; };
uint64_t tvmm_bits_count(const uint64_t *words, uint64_t count);
uint64_t tvmm_bits_merge(uint64_t *into, const uint64_t *from, uint64_t count);
void tvmm_bits_set(uint64_t *words, uint64_t first, uint64_t count);
int tvmm_page_is_zero(const uint8_t *page);
uint64_t tvmm_page_hash(const uint8_t *page, const uint64_t *key);
int tvmm_ram_populate(const struct tvmm_ram_pages *ram, const struct tvmm_waker *waker);

/* dirty_log.h */
#define TVMM_CLEAR_PAGES ...
struct tvmm_log_slot { uint32_t slot, block; uint64_t first, pages; uint64_t *scratch; };
struct tvmm_dirty_log {
    int vm_fd;
    uint32_t manual;
    uint64_t clears, clear_ns, cleared_pages;
    uint32_t count;
    struct tvmm_log_slot slots[];
};
int64_t tvmm_log_sync(struct tvmm_dirty_log *log, struct tvmm_bitmap *bitmap);
int tvmm_log_peek(struct tvmm_dirty_log *log);
uint64_t tvmm_log_spare(const struct tvmm_dirty_log *log, struct tvmm_bitmap *bitmap, uint32_t block, uint64_t first,
                        uint64_t pages, const uint64_t *devices);
int tvmm_log_clear(struct tvmm_dirty_log *log, uint32_t block, uint64_t first, uint64_t pages, const uint64_t *words);
struct tvmm_ring { uint64_t count; ...; };
struct tvmm_rings { uint64_t full_exits, strays; uint32_t overflowed, count; struct tvmm_ring rings[]; ...; };
struct tvmm_rings *tvmm_rings_new(int vm_fd, uint32_t size, uint32_t vcpus);
void tvmm_rings_free(struct tvmm_rings *rings);
int tvmm_rings_map(struct tvmm_rings *rings, uint32_t index, int vcpu_fd);
void tvmm_rings_track(struct tvmm_rings *rings, struct tvmm_bitmap *pending, struct tvmm_log_slot *slots,
                      uint32_t slot_count);
int64_t tvmm_rings_sync(struct tvmm_rings *rings, struct tvmm_bitmap *bitmap);
int tvmm_rings_full(struct tvmm_rings *rings, uint32_t index);

/* lanes.h */
#define TVMM_LANE_MAGIC ...
#define TVMM_LANE_HEADER ...
#define TVMM_LANE_COUNT_MAX ...
#define TVMM_LANE_BATCH ...
enum tvmm_lane_kind { TVMM_LANE_PAGES, TVMM_LANE_ZEROS, TVMM_LANE_ROUND_END, ... };
enum tvmm_lane_stop {
    TVMM_LANE_STOP_ROUND_END,
    TVMM_LANE_STOP_CLOSED,
    TVMM_LANE_STOP_WOKEN,
    TVMM_LANE_STOP_STALLED,
    TVMM_LANE_STOP_FAILED,
    TVMM_LANE_STOP_REFUSED,
    TVMM_LANE_STOP_MORE,
    ...
};
enum tvmm_lane_refusal {
    TVMM_LANE_FINE,
    TVMM_LANE_BAD_MAGIC,
    TVMM_LANE_BAD_KIND,
    TVMM_LANE_BAD_ENCODING,
    TVMM_LANE_BAD_BLOCK,
    TVMM_LANE_BAD_COUNT,
    TVMM_LANE_BAD_PAYLOAD,
    TVMM_LANE_BAD_NUMBER,
    TVMM_LANE_BAD_ORDER,
    TVMM_LANE_BAD_RANGE,
    TVMM_LANE_TRUNCATED,
    ...
};
struct tvmm_lane_counters { uint64_t normal, zero, unchanged, bytes, frames; };
struct tvmm_lane_group {
    struct tvmm_ram_pages *ram;
    struct tvmm_bitmap *bitmap;
    struct tvmm_dirty_log *log;
    uint64_t *hashes, *key;
    uint32_t chunk_pages, stop;
    uint64_t cursor, bandwidth, next_ns;
    ...;
};
struct tvmm_lane { int32_t failure; struct tvmm_lane_counters counters; ...; };
struct tvmm_intake {
    struct tvmm_ram_pages *ram;
    struct tvmm_pager *pager;
    struct tvmm_waker *waker;
    int fd;
    int32_t failure;
    uint32_t refusal;
    uint64_t refused_value, refused_limit, number;
    struct tvmm_lane_counters counters;
    uint32_t part, have;
    uint8_t *bounce;
    ...;
};
struct tvmm_lane *tvmm_lane_new(struct tvmm_lane_group *group, struct tvmm_waker *waker, int fd);
void tvmm_lane_free(struct tvmm_lane *lane);
enum tvmm_lane_stop tvmm_lane_send(struct tvmm_lane *lane, uint64_t number, uint32_t stall_ms);
uint64_t tvmm_lane_pack(struct tvmm_lane *lane, uint8_t *buffer, uint64_t size, uint64_t number, uint32_t *ended);
uint64_t tvmm_lanes_charge(struct tvmm_lane_group *group, uint64_t bytes);
enum tvmm_lane_stop tvmm_intake_receive(struct tvmm_intake *intake, uint32_t stall_ms);
enum tvmm_lane_stop tvmm_intake_take(struct tvmm_intake *intake, const uint8_t *buffer, uint64_t length,
                                     uint64_t *consumed);
void tvmm_intake_close(struct tvmm_intake *intake);

/* uffd.h */
#define UFFDIO_REGISTER_MODE_MISSING ...
#define UFFDIO_REGISTER_MODE_WP ...
#define UFFDIO_WRITEPROTECT_MODE_WP ...
#define UFFD_FEATURE_MISSING_SHMEM ...
#define UFFD_FEATURE_PAGEFAULT_FLAG_WP ...
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM ...
#define UFFD_PAGEFAULT_FLAG_WRITE ...
#define UFFD_PAGEFAULT_FLAG_WP ...
#define TVMM_UFFD_READ_MAX ...
struct tvmm_uffd_fault { uint64_t address, flags; };
int tvmm_uffd_open(uint64_t features);
int tvmm_uffd_register(int fd, void *base, uint64_t length, uint64_t mode, uint64_t *calls);
int tvmm_uffd_unregister(int fd, void *base, uint64_t length);
int64_t tvmm_uffd_copy(int fd, void *to, const void *from, uint64_t length, uint64_t mode);
int64_t tvmm_uffd_zero(int fd, void *to, uint64_t length, uint64_t mode);
int tvmm_uffd_wake(int fd, void *base, uint64_t length);
int tvmm_uffd_protect(int fd, void *base, uint64_t length, uint64_t mode);
int tvmm_uffd_read(int fd, struct tvmm_uffd_fault *faults, uint32_t room);

/* pager.h */
#define TVMM_REQUEST_MAGIC ...
#define TVMM_REQUEST_BYTES ...
#define TVMM_REQUEST_PAGES_MAX ...
enum tvmm_pager_stop {
    TVMM_PAGER_WOKEN,
    TVMM_PAGER_COMPLETE,
    TVMM_PAGER_LOST,
    TVMM_PAGER_REFUSED,
    TVMM_PAGER_RELEASED,
    TVMM_PAGER_FAILED,
    ...
};
struct tvmm_pager_counters { uint64_t faults, requests, urgent, pushed, duplicates, returned; };
struct tvmm_pager {
    uint32_t released, overwriting;
    uint64_t remaining;
    struct tvmm_pager_counters counters;
    int32_t failure;
    struct tvmm_intake intake;
    struct tvmm_histogram service;
    ...;
};
struct tvmm_pager *tvmm_pager_new(struct tvmm_ram_pages *ram, struct tvmm_bitmap *claimed, struct tvmm_bitmap *received,
                                  struct tvmm_bitmap *requested, const uint8_t *paged, int uffd, int *error);
void tvmm_pager_free(struct tvmm_pager *pager);
int tvmm_pager_expect(struct tvmm_pager *pager, const struct tvmm_bitmap *bitmap);
enum tvmm_pager_stop tvmm_pager_serve(struct tvmm_pager *pager, int fd, struct tvmm_waker *waker);
void tvmm_pager_release(struct tvmm_pager *pager);
void tvmm_pager_touch(const struct tvmm_pager *pager, uint32_t block, uint64_t offset, uint64_t length);

/* page_server.h */
#define TVMM_PREFETCH_MAX ...
enum tvmm_server_stop { TVMM_SERVER_WOKEN, TVMM_SERVER_LOST, TVMM_SERVER_REFUSED, ... };
enum tvmm_server_refusal {
    TVMM_REQUEST_FINE,
    TVMM_REQUEST_BAD_MAGIC,
    TVMM_REQUEST_BAD_ZERO,
    TVMM_REQUEST_BAD_BLOCK,
    TVMM_REQUEST_BAD_COUNT,
    TVMM_REQUEST_BAD_RANGE,
    ...
};
struct tvmm_server_counters { uint64_t requests, pages, taken, prefetched, bytes; };
struct tvmm_page_server {
    struct tvmm_lane_group *group;
    int32_t fd, failure;
    uint32_t refusal;
    uint64_t refused_value, refused_limit;
    uint32_t prefetch;
    struct tvmm_server_counters counters;
    ...;
};
enum tvmm_server_stop tvmm_page_server_serve(struct tvmm_page_server *server, int fd, struct tvmm_waker *waker);
void tvmm_bitmap_lacking(struct tvmm_bitmap *into, const struct tvmm_bitmap *wanted, const struct tvmm_bitmap *received);

/* pixels.h */
#define TVMM_VRAM_PAGE ...
struct tvmm_surface {
    uint32_t width, height, bits;
    uint64_t stride, offset;
    uint32_t palette[256];
};
int32_t tvmm_screen_refresh(const struct tvmm_surface *surface, const uint8_t *vram, uint64_t vram_size,
                            const uint8_t *touched, uint64_t touched_size, uint8_t *canvas, uint64_t canvas_size,
                            uint8_t *damage, uint64_t damage_size);

/* rfb.h */
#define TVMM_RFB_SLACK ...
#define TVMM_RFB_AREA_MAX ...
#define TVMM_RFB_PALETTE_MAX ...
struct tvmm_rfb_format {
    uint32_t red[256], green[256], blue[256], bytes, plain, shifted, red_shift, green_shift, blue_shift;
};
struct tvmm_rfb_palette { uint32_t count, limit, overflow, key, colours[256]; ...; };
struct tvmm_rfb_job {
    const struct tvmm_rfb_format *format;
    const uint8_t *canvas;
    uint64_t canvas_size;
    uint32_t width, height;
    uint8_t *out;
    uint64_t room;
    struct tvmm_rfb_palette palette;
    ...;
};
struct tvmm_rfb_rect { uint32_t x, y, width, height; };
enum tvmm_rfb_kind { TVMM_RFB_SOLID, TVMM_RFB_FLAT, TVMM_RFB_PHOTO, ... };
struct tvmm_rfb_piece { struct tvmm_rfb_rect rect; uint32_t kind; };
enum tvmm_rfb_rows { TVMM_RFB_ROWS_TIGHT, TVMM_RFB_ROWS_GRADIENT, TVMM_RFB_ROWS_PNG, ... };
int64_t tvmm_rfb_raw(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect);
int64_t tvmm_rfb_hextile(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect);
int64_t tvmm_rfb_zrle(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect);
int64_t tvmm_rfb_plan(const struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, uint32_t photos,
                      struct tvmm_rfb_piece *pieces, uint64_t limit);
int64_t tvmm_rfb_piece_rows(struct tvmm_rfb_job *job, const struct tvmm_rfb_rect *rect, enum tvmm_rfb_rows rows,
                            uint32_t colours, uint32_t *bits);
/* vram.h */
struct tvmm_vram_log {
    int vm_fd;
    uint32_t slot;
    uint64_t pages;
    uint64_t *scratch;
    uint8_t *touched;
    uint64_t *pending;
};
int64_t tvmm_vram_collect(struct tvmm_vram_log *log);

/* scroll.h */
struct tvmm_scroll { uint32_t x, y, width, height, source_y; };
struct tvmm_scroll_finder {
    uint8_t *previous;
    uint64_t previous_size;
    uint32_t width, height;
    uint64_t key;
    struct tvmm_scroll found[4];
    ...;
};
int32_t tvmm_scroll_update(struct tvmm_scroll_finder *finder, const uint8_t *canvas, uint64_t canvas_size,
                           const uint8_t *damage, uint64_t damage_size);

/* remap.h */
int tvmm_map_file(uint8_t *at, uint64_t length, int fd, uint64_t offset, int shared);
int tvmm_map_anonymous(uint8_t *at, uint64_t length);
void tvmm_tell_bus_errors(void);

/* discard.h */
struct tvmm_run { uint64_t first, count; };
enum tvmm_backing { TVMM_BACKED_PRIVATE, TVMM_BACKED_SHARED, TVMM_BACKED_FILE };
int tvmm_discard(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count, int backing);
int tvmm_populate(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count);

/* snapshot.h */
#define TVMM_SNAPSHOT_CHUNK ...
enum tvmm_snapshot_failure { TVMM_SNAPSHOT_FINE, TVMM_SNAPSHOT_ERRNO, TVMM_SNAPSHOT_SHORT, TVMM_SNAPSHOT_DIFFERS };
struct tvmm_snapshot_block { uint64_t offset; uint64_t *sums; uint32_t sparse, skip; };
struct tvmm_snapshot {
    struct tvmm_ram_pages *ram;
    struct tvmm_snapshot_block *blocks;
    uint64_t *key;
    int32_t fd, direct_fd;
    uint64_t cursor;
    uint32_t stop, failure;
    int32_t error;
    uint32_t bad_block;
    uint64_t bad_chunk, pages_done, pages_data, bytes_done;
};
int tvmm_snapshot_write(struct tvmm_snapshot *snapshot, struct tvmm_waker *waker);
int tvmm_snapshot_read(struct tvmm_snapshot *snapshot, struct tvmm_waker *waker, uint8_t *scratch);
int tvmm_snapshot_put(struct tvmm_snapshot *snapshot, uint32_t block, uint64_t first, uint32_t count,
                      const uint8_t *from);
uint64_t tvmm_snapshot_sum(const uint8_t *page, uint64_t number, const uint64_t *key);

/* rounds.h */
struct tvmm_rounds {
    struct tvmm_dirty_log *log;
    uint32_t first, stop;
    uint64_t cursor, pages, bytes, room, kept;
    ...;
};
struct tvmm_rounds *tvmm_rounds_new(struct tvmm_snapshot *snapshot, struct tvmm_bitmap *bitmap, uint64_t room);
void tvmm_rounds_free(struct tvmm_rounds *rounds);
int tvmm_rounds_write(struct tvmm_rounds *rounds, struct tvmm_waker *waker);
uint64_t tvmm_rounds_keep(struct tvmm_rounds *rounds);
int tvmm_rounds_put(struct tvmm_rounds *rounds, struct tvmm_waker *waker);

/* live.h */
#define TVMM_LIVE_CHUNK ...
#define TVMM_LIVE_WORDS ...
#define TVMM_LIVE_NONE ...
enum tvmm_live_phase { TVMM_LIVE_ARMING, TVMM_LIVE_SAVING, TVMM_LIVE_ENDED };
enum tvmm_live_answer { TVMM_LIVE_LIFT, TVMM_LIVE_WAIT };
struct tvmm_live_counters { uint64_t faults, kept, waits, handled_ns_max, frozen; };
struct tvmm_live {
    int32_t uffd;
    uint32_t phase;
    int32_t failure;
    uint32_t chunk_count, left, pool_pages;
    struct tvmm_live_counters counters;
    ...;
};
struct tvmm_live_piece {
    uint32_t block, pages;
    uint64_t first;
    uint64_t data[...];
};
struct tvmm_live *tvmm_live_new(const struct tvmm_ram_pages *ram, const uint32_t *grains, uint32_t pool_pages);
int tvmm_live_open(struct tvmm_live *live);
int tvmm_live_arm(struct tvmm_live *live);
int64_t tvmm_live_rearm(struct tvmm_live *live);
int64_t tvmm_live_freeze(struct tvmm_live *live);
int tvmm_live_take(struct tvmm_live *live, uint8_t *buffer, struct tvmm_live_piece *piece);
int tvmm_live_write(struct tvmm_live *live, struct tvmm_snapshot *snapshot);
int tvmm_live_secure(struct tvmm_live *live, uint32_t block, uint64_t first, uint64_t count);
void tvmm_live_abandon(struct tvmm_live *live);
int tvmm_live_end(struct tvmm_live *live);
void tvmm_live_free(struct tvmm_live *live);
enum tvmm_live_answer tvmm_live_fault(struct tvmm_live *live, uint32_t block, uint64_t page, uint64_t *first,
                                      uint32_t *count);
uint32_t tvmm_live_claim(struct tvmm_live *live);
void tvmm_live_fill(struct tvmm_live *live, uint32_t number, uint8_t *buffer, struct tvmm_live_piece *piece,
                    const uint64_t *absent);
void tvmm_live_saved(struct tvmm_live *live, uint32_t number);
