/*
 * Virtio 1.3 as a driver sees it: devices behind virtio-pci (modern) or virtio-mmio (version 2), and their
 * queues, split or packed. Device drivers (virtio_*.c) use only what is here; they never see the transport.
 *
 * Command-line words: `packed` takes packed rings if offered, `noevent` declines the event index, `noindirect`
 * indirect descriptors, `noinorder` in-order use, and `intx` leaves MSI-X alone.
 */
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include "pci.h"

#define VIRTIO_NET     1
#define VIRTIO_BLK     2
#define VIRTIO_CONSOLE 3
#define VIRTIO_RNG     4
#define VIRTIO_BALLOON 5
#define VIRTIO_INPUT   18
#define VIRTIO_VSOCK   19

/* Device status (2.1). */
#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER      2
#define STATUS_DRIVER_OK   4
#define STATUS_FEATURES_OK 8
#define STATUS_NEEDS_RESET 64
#define STATUS_FAILED      128

#define FEATURE(bit) (1ull << (bit))
/* Reserved feature bits (6). */
#define F_INDIRECT_DESC FEATURE(28)
#define F_EVENT_IDX     FEATURE(29)
#define F_VERSION_1     FEATURE(32)
#define F_RING_PACKED   FEATURE(34)
#define F_IN_ORDER      FEATURE(35)
#define F_RING_RESET    FEATURE(40)

#define VIRTIO_MAX_DEVICES 32
#define VIRTIO_MAX_QUEUES  80 /* of one device: a console of 31 ports has 64 */
#define VIRTQ_MAX_SIZE     1024
#define VIRTIO_MAX_VECTORS 9 /* of one device: configuration, and queues in turn */

struct virtio;

/* One piece of a request: device-readable pieces come first. */
struct buffer {
    u64 address;
    u32 length;
    bool device_writes;
};

/* Of the split ring and its indirect tables; the packed ring's have an id and the flags in place of the last two. */
struct virtq_descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};

struct virtq_slot { /* one request in the ring, by the id of its first descriptor */
    u64 token;
    u32 writable;    /* bytes that the device may write */
    u16 descriptors; /* how many it takes in the ring; 0: the slot is free */
    u16 next;        /* packed: next free id */
};

struct virtq {
    struct virtio *device;
    u16 index, size, table_entries;
    bool packed, event_idx, indirect, in_order;
    u8 vector;         /* interrupt vector, or 0; several queues may share it */
    bool quiet;        /* interrupts are off */
    u64 notify;        /* address of the doorbell */
    u64 memory;        /* descriptors, then the driver's and the device's area */
    u64 driver_area, device_area;
    u64 tables;        /* indirect tables, table_entries for each slot */
    u16 limit;         /* what memory is there for */
    struct virtq_slot *slots;
    u16 *order;        /* in-order: ids as they were added */
    u16 order_head, order_tail; /* all requests so far: added, popped */
    u16 free_count, free_head;
    u16 added;         /* descriptors (packed) or requests (split) since the last kick */
    u16 next, last_used; /* indexes: next to fill, next used one */
    bool wrap, used_wrap; /* packed */
    u16 event;         /* split: what we last wrote to used_event */
    u16 ready;         /* in-order: requests that are done and not yet popped */
    u32 ready_length;  /* what the device wrote into the last of them */
    u64 kicks;
    u32 interrupts_before; /* irq_count[vector] when the counts began */
    u64 broken;        /* answers that made no sense */
};

struct virtio {
    u32 type;          /* VIRTIO_NET and so on */
    u32 number;        /* the how manyth of its type */
    u64 mmio;          /* registers of virtio-mmio, or 0: virtio-pci */
    pci_address function;
    u64 common, isr, config, notify_base;
    u32 notify_multiplier, config_bytes;
    bool use_msix;
    struct msix msix;
    u8 vectors[VIRTIO_MAX_VECTORS]; /* by MSI-X table entry; without MSI-X entry 0 is the line */
    u32 seen;          /* irq_count[vectors[0]] at the last look */
    bool config_pending;
    bool running;      /* between DRIVER_OK and the next reset */
    u64 offered, features;
    u16 queue_count;
    struct virtq *queues[VIRTIO_MAX_QUEUES];
    void (*service)(struct virtio *device); /* runs from irq_poll() after an interrupt; may be NULL */
    void *driver;
};

extern struct virtio *virtio_devices[VIRTIO_MAX_DEVICES];
extern size_t virtio_count;

/* virtio_probe.c */
void virtio_probe(void);                               /* finds all devices; does so once */
struct virtio *virtio_find(u32 type, u64 number);      /* NULL if there is none */
const char *virtio_name(u32 type);
void virtio_where(const struct virtio *device, char *to, size_t size); /* `pci 00:01.0`, `mmio 0xfeb00000` */

/* virtio.c */
u64 virtio_offered(struct virtio *device);             /* the device's features */
/*
 * Reset, then all steps up to FEATURES_OK with what is wanted and offered; ring features are added here. False,
 * with a line printed, if the device refuses.
 */
bool virtio_begin(struct virtio *device, u64 wanted);
/* Sets queue `index` up with at most `limit` entries. Up to `table_entries` buffers go into one indirect table. */
struct virtq *virtio_queue(struct virtio *device, u16 index, u16 limit, u16 table_entries);
void virtio_ready(struct virtio *device);              /* DRIVER_OK */
bool virtio_reset(struct virtio *device);              /* false if status does not come back as 0 */
u8 virtio_status(struct virtio *device);
bool virtq_reset(struct virtq *q); /* with F_RING_RESET: this queue alone; false: the whole device was reset */
u16 virtio_queue_limit(struct virtio *device, u16 index); /* the size the device allows; 0: no such queue */

/* Configuration space. Fields of more than 4 bytes are read between two equal generations. */
u8 virtio_config8(struct virtio *device, u32 offset);
u16 virtio_config16(struct virtio *device, u32 offset);
u32 virtio_config32(struct virtio *device, u32 offset);
u64 virtio_config64(struct virtio *device, u32 offset);
void virtio_set_config8(struct virtio *device, u32 offset, u8 value);
void virtio_set_config32(struct virtio *device, u32 offset, u32 value);
bool virtio_config_changed(struct virtio *device); /* since the last call */

/* virtq.c, virtq_split.c, virtq_packed.c */
struct virtq *virtq_allocate(u16 size, u16 table_entries); /* NULL: no memory */
void virtq_init(struct virtq *q);                      /* empty, interrupts off */
bool virtq_add(struct virtq *q, const struct buffer *buffers, u16 count, u64 token); /* false: no room */
bool virtq_kick(struct virtq *q);                      /* publishes; rings the doorbell if the device wants it */
bool virtq_pop(struct virtq *q, u64 *token, u32 *length); /* length: what the device wrote */
/* Switches interrupts on or off; on: false if requests are already done, so that none may come for them. */
bool virtq_interrupts(struct virtq *q, bool on);
u32 virtq_interrupt_count(const struct virtq *q);      /* since virtq_start_counts() */
u64 virtq_interrupt_sum(struct virtq *const *queues, u16 count); /* of several; a vector that they share counts once */
void virtq_start_counts(struct virtq *q);
u16 virtq_in_flight(const struct virtq *q);

/*
 * One ring format. `add` puts `flags` on each descriptor; `get` looks at the next used request and leaves it there,
 * `release` goes past it.
 */
struct virtq_format {
    void (*init)(struct virtq *q);
    void (*add)(struct virtq *q, const struct buffer *buffers, u16 count, u16 id, u16 flags);
    bool (*wants_kick)(struct virtq *q);
    bool (*get)(struct virtq *q, u16 *id, u32 *length);
    void (*release)(struct virtq *q, u16 id);
    bool (*interrupts)(struct virtq *q, bool on);
};

extern const struct virtq_format split_format, packed_format;

#define DESC_NEXT     1
#define DESC_WRITE    2
#define DESC_INDIRECT 4

#endif
