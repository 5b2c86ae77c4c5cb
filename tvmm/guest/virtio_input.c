/* The virtio input device (5.8): a keyboard, mouse or tablet that speaks in Linux's events. */
#include "clock.h"
#include "console.h"
#include "input.h"
#include "irq.h"
#include "machine.h"
#include "virtio.h"

enum { CONFIG_SELECT = 0, CONFIG_SUBSELECT = 1, CONFIG_SIZE = 2, CONFIG_DATA = 8 };
enum { ID_NAME = 0x01, EVENT_BITS = 0x11, ABSOLUTE_INFO = 0x12 };

struct event {
    u16 type, code;
    u32 value;
};

#define EVENTS      256 /* buffers for the device to fill */
#define STATUSES    4   /* three LEDs and what ends them */
#define TIMEOUT_MS  1000

struct input {
    struct virtio *device;
    struct input_source *source;
    struct virtq *events, *statuses;
    struct event *buffers; /* EVENTS, then STATUSES */
};

/* How many bytes the device has to say of it. */
static u32 select(struct virtio *device, u8 what, u8 which)
{
    virtio_set_config8(device, CONFIG_SELECT, what);
    virtio_set_config8(device, CONFIG_SUBSELECT, which);
    return virtio_config8(device, CONFIG_SIZE);
}

static u32 range(struct virtio *device, u8 axis)
{
    return select(device, ABSOLUTE_INFO, axis) >= 8 ? virtio_config32(device, CONFIG_DATA + 4) : 0;
}

static void post(struct input *input, u64 index)
{
    struct buffer buffer = {(u64)&input->buffers[index], sizeof(struct event), true};
    virtq_add(input->events, &buffer, 1, index);
}

static void take(struct input *input)
{
    u64 index;
    u32 length;
    while (virtq_pop(input->events, &index, &length)) {
        struct event event = input->buffers[index];
        post(input, index);
        if (length == sizeof event)
            input_report(input->source, event.type, event.code, (int)event.value);
    }
    virtq_kick(input->events);
}

static void service(struct virtio *device)
{
    struct input *input = device->driver;
    do
        take(input);
    while (!virtq_interrupts(input->events, true));
}

static bool set_leds(struct input_source *source, u32 leds)
{
    struct input *input = source->driver;
    static const u8 bits[] = {LED_NUM, LED_CAPS, LED_SCROLL}; /* by Linux's number of the LED */
    u64 token, end = rdtsc() + ms_to_tsc(TIMEOUT_MS);
    u32 length;
    for (u16 i = 0; i < STATUSES; i++) {
        struct event *event = &input->buffers[EVENTS + i];
        struct buffer buffer = {(u64)event, sizeof *event, false};
        *event = (struct event){i < 3 ? EVENT_LED : EVENT_SYNC, i < 3 ? i : 0, i < 3 && leds & bits[i]};
        virtq_add(input->statuses, &buffer, 1, i);
    }
    virtq_kick(input->statuses);
    while (virtq_in_flight(input->statuses) && rdtsc() < end && !input->statuses->broken)
        if (!virtq_pop(input->statuses, &token, &length))
            cpu_relax();
    return !virtq_in_flight(input->statuses);
}

static bool start(struct input *input)
{
    struct virtio *device = input->device;
    if (!virtio_begin(device, 0) || !(input->events = virtio_queue(device, 0, EVENTS, 1)) ||
        !(input->statuses = virtio_queue(device, 1, STATUSES, 1)))
        return false;
    virtio_ready(device);
    for (u64 i = 0; i < input->events->size; i++)
        post(input, i);
    virtq_kick(input->events);
    return true;
}

static void open(struct virtio *device)
{
    struct input *input = (struct input *)page_alloc(1);
    struct input_source *source = input ? input_add() : NULL;
    if (!source)
        return;
    _Static_assert(sizeof *input + (EVENTS + STATUSES) * sizeof(struct event) <= PAGE_SIZE, "all in a page");
    *input = (struct input){.device = device, .source = source, .buffers = (struct event *)(input + 1)};
    source->driver = device->driver = input;
    char where[24];
    virtio_where(device, where, sizeof where);
    format(source->where, sizeof source->where, "virtio %s", where);
    u32 length = (u32)min_u64(select(device, ID_NAME, 0), sizeof source->name - 1);
    for (u32 i = 0; i < length; i++)
        source->name[i] = (char)virtio_config8(device, CONFIG_DATA + i);
    if (select(device, EVENT_BITS, EVENT_ABSOLUTE)) {
        source->range_x = range(device, AXIS_X);
        source->range_y = range(device, AXIS_Y);
    }
    bool has_leds = select(device, EVENT_BITS, EVENT_LED);
    if (!start(input))
        return;
    source->set_leds = has_leds ? set_leds : NULL;
    device->service = service;
    service(device);
}

void virtio_input_open(void)
{
    virtio_probe();
    for (size_t i = 0; i < virtio_count; i++)
        if (virtio_devices[i]->type == VIRTIO_INPUT)
            open(virtio_devices[i]);
}
