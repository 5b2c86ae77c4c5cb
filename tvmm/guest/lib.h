/* Memory, strings, numbers, checksums: what a C library would have given. */
#ifndef GUEST_LIB_H
#define GUEST_LIB_H

#include <stdarg.h>

#include "arch.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

void *memset(void *to, int byte, size_t length);
void *memcpy(void *to, const void *from, size_t length);
void *memmove(void *to, const void *from, size_t length);
int memcmp(const void *a, const void *b, size_t length);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
bool starts_with(const char *s, const char *prefix);

/* Decimal or 0x-hexadecimal with an optional K, M or G; false if `s` is anything else. */
bool parse_number(const char *s, u64 *value);

/*
 * Formats %s %c %u %d %x %p %% with optional `-`, `0`, width and `l` (64 bits). Returns the length without
 * the final NUL; output beyond `size` is cut off.
 */
size_t format_list(char *to, size_t size, const char *format, va_list list);
size_t format(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define FNV1A_START 0x811c9dc5u
u32 fnv1a(u32 hash, const void *data, size_t length); /* 32-bit FNV-1a */

u64 random_next(u64 *state); /* xorshift64*: the same seed gives the same sequence; state must not be 0 */

static inline u64 min_u64(u64 a, u64 b) { return a < b ? a : b; }
static inline u64 max_u64(u64 a, u64 b) { return a > b ? a : b; }

#endif
