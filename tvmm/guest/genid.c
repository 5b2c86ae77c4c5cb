/*
 * The generation ID (tvmm/devices/generation_id.py). Found by the ACPI tables (ACPI 6.5, chapter 5), with as much of
 * AML as it takes to know the one device by its _CID, its ADDR and the event that tells of a change.
 */
#include "genid.h"
#include "lib.h"
#include "power.h"

#define RSDP_START 0xe0000
#define RSDP_END   0x100000
#define HEADER     36
#define MOST_TABLES 64
#define MOST_BYTES  0x100000 /* of a table: more is a table that is none */

#define FADT_DSDT   40
#define FADT_GPE0   80
#define FADT_GPE0_LENGTH 92
#define FADT_X_DSDT 140

static const u8 *guid; /* in memory; NULL: there is none */
static u8 seen[GUID_BYTES];
static u16 gpe_port;
static u8 gpe_bytes, gpe_event;
static u32 notifications, changes;

static u32 u32_at(const u8 *at)
{
    u32 value;
    memcpy(&value, at, sizeof value);
    return value;
}

static u64 u64_at(const u8 *at) { return u32_at(at) | (u64)u32_at(at + 4) << 32; }

/* Its length if a table with this signature is there, else 0. */
static u32 table(const u8 *at, const char *signature)
{
    u32 length = at && !memcmp(at, signature, 4) ? u32_at(at + 4) : 0;
    return length >= HEADER && length <= MOST_BYTES ? length : 0;
}

static const u8 *find(const u8 *from, const u8 *end, const void *what, size_t length)
{
    for (; from + length <= end; from++)
        if (!memcmp(from, what, length))
            return from;
    return NULL;
}

/* An integer of AML (20.2.3), and where what follows it is; NULL if it is something else. */
static const u8 *integer(const u8 *at, u64 *value)
{
    switch (*at) {
    case 0x00:
    case 0x01: *value = *at; return at + 1;
    case 0x0a: *value = at[1]; return at + 2;
    case 0x0b: *value = at[1] | (u64)at[2] << 8; return at + 3;
    case 0x0c: *value = u32_at(at + 1); return at + 5;
    case 0x0e: *value = u64_at(at + 1); return at + 9;
    default: return NULL;
    }
}

/* Name (ADDR, Package () {low, high}) of the device with the _CID; the first method _E0n is taken for its event. */
static void read_definitions(const u8 *from, const u8 *end)
{
    static const char known[] = "VM_Gen_Counter", address[] = "\x08""ADDR\x12";
    u64 low, high;
    const u8 *at = find(from, end, known, sizeof known);
    if (at)
        at = find(at, end, address, sizeof address - 1);
    if (!at || at + 32 > end || !(at = integer(at + sizeof address + 1, &low)) || !integer(at, &high))
        return;
    guid = (const u8 *)(low & 0xffffffff) + (high << 32);
    at = find(from, end, "_E0", 3);
    if (at && at + 4 <= end)
        gpe_event = (u8)(at[3] <= '9' ? at[3] - '0' : at[3] - 'A' + 10);
}

static const u8 *find_root(void)
{
    for (u64 at = RSDP_START; at < RSDP_END; at += 16)
        if (!memcmp((const u8 *)at, "RSD PTR ", 8))
            return (const u8 *)at;
    return NULL;
}

static const u8 *fadt_in(const u8 *list, u32 length, u32 width)
{
    for (u32 at = HEADER, count = 0; at + width <= length && count < MOST_TABLES; at += width, count++) {
        const u8 *one = (const u8 *)(width == 8 ? u64_at(list + at) : u32_at(list + at));
        if (table(one, "FACP") >= FADT_X_DSDT)
            return one;
    }
    return NULL;
}

static void service(void)
{
    u8 bit = (u8)(1u << gpe_event);
    if (!(inb(gpe_port) & bit))
        return;
    outb(gpe_port, bit);
    notifications++;
    changes += memcmp(seen, guid, sizeof seen) != 0;
    memcpy(seen, guid, sizeof seen);
}

static void look_for_it(void)
{
    const u8 *root = find_root();
    if (!root)
        return;
    const u8 *rsdt = (const u8 *)(u64)u32_at(root + 16), *xsdt = root[15] >= 2 ? (const u8 *)u64_at(root + 24) : NULL;
    const u8 *fadt = table(xsdt, "XSDT") ? fadt_in(xsdt, u32_at(xsdt + 4), 8)
                     : table(rsdt, "RSDT") ? fadt_in(rsdt, u32_at(rsdt + 4), 4) : NULL;
    if (!fadt)
        return;
    const u8 *dsdt = (const u8 *)(u64)u32_at(fadt + FADT_DSDT);
    if (u32_at(fadt + 4) >= FADT_X_DSDT + 8 && u64_at(fadt + FADT_X_DSDT))
        dsdt = (const u8 *)u64_at(fadt + FADT_X_DSDT);
    u32 length = table(dsdt, "DSDT");
    if (length)
        read_definitions(dsdt + HEADER, dsdt + length);
    gpe_port = (u16)u32_at(fadt + FADT_GPE0);
    gpe_bytes = fadt[FADT_GPE0_LENGTH] / 2;
    if (!guid || !gpe_bytes || gpe_event >= 8)
        return;
    memcpy(seen, guid, sizeof seen);
    outb(gpe_port, (u8)(1u << gpe_event));
    power_also(service);
    outb((u16)(gpe_port + gpe_bytes), (u8)(1u << gpe_event));
}

const u8 *genid(void)
{
    static bool looked;
    if (!looked)
        look_for_it();
    looked = true;
    return guid;
}

u32 genid_notifications(void) { return notifications; }
u32 genid_changes(void) { return changes; }
